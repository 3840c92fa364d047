"""Two hundred simulated evaluators on a cluster whose nodes come and go: how busy they are, and whether results differ.

    python -m benchmarks.simulated_cluster --evaluators 200 --nodes 8 --minutes 6 --out runs/simulated_cluster

Nodes are Ray's (`ray.cluster_utils`), each with a raylet of its own; every minute one is killed and one is added.
An evaluator is what a campaign takes for an engine: it sleeps for a time of a long-tailed (log-normal) distribution and
then answers. It is a lane of an actor that Ray places on a node: a lane runs one stage at a time, and all of a node's
die with it. Everything above is the campaign's own: driver, house, pool, retries, event log.

Busy: seconds in which evaluators ran a stage, over seconds for which they were there, while there was work for all.
Useful leaves out what died with its node. The results must be those of the same campaign in one process without Ray.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster as RayCluster

from agents.base import Proposal, ProposalRequest, Proposer, Usage
from search.campaign.campaign import Campaign
from search.config import CampaignConfig
from search.executors import house, rooms
from search.executors.actors import Actors
from search.executors.placement import Resources
from search.executors.ray_cluster import RayExecutor
from search.executors.workers import CpuWorker, EngineSetup
from search.log import events as ev
from search.log.run import open_run
from search.log.store import SqliteEventStore
from search.simulation import SimulatedExecutor, simulated_flow, simulated_library, simulated_stage
from tests.chaos.clusters import add_node
from vortex_core.ir.flow import Flow

STAGES: dict[Any, Any] = {
    "search": [("static", False), ("accuracy", True), ("modelled", True)],
    "fresh": [("accuracy", True), ("modelled", True)],
    "holdout": [("holdout", True)],
    "serving": [],
}


def point(x: float, budget: int) -> Flow:
    """A flow for each point and budget: a space without an end."""
    return replace(simulated_flow(x).with_knobs(budget=str(budget)), name=f"point_{x}_{budget}")


def seconds_of(key: str, stage: str, seed: int, mean: float) -> float:
    """How long a stage takes: log-normal, one in a hundred more than five times the mean's half."""
    spread = 0.8
    return mean * random.Random(f"{key}{stage}{seed}").lognormvariate(-spread * spread / 2, spread)


class Numbered(Proposer):
    """The answer to an ask depends on its seed alone."""

    name = "numbered"
    repairs = False
    needs_language = False

    async def propose(self, request: ProposalRequest) -> Proposal:
        """See `Proposer`."""
        rng = random.Random(request.seed)
        program = {"x": rng.randrange(101) / 100, "budget": 64 * rng.randrange(1, 200)}
        return Proposal(json.dumps(program), "", self.name, Usage(calls=1))


class Tracer(CpuWorker):
    """Makes the flow that a proposal names."""

    def trace(self, source: str, campaign: str = "") -> dict[str, Any]:
        """See `CpuWorker`."""
        flow = point(**json.loads(source))
        return {"value": flow.to_json() | {"key": flow.key}}

    def run(self, stage: str, flow: dict[str, Any], setup: EngineSetup, seed: int) -> dict[str, Any]:
        """See `CpuWorker`."""
        return {"value": simulated_stage(stage, flow, seed).to_json()}


class Host:
    """The evaluators of one node."""

    def __init__(self, mean: float) -> None:
        self.mean = mean

    async def node(self) -> str:
        """Where it is."""
        return str(ray.get_runtime_context().get_node_id())

    async def run(self, stage: str, flow: dict[str, Any], seed: int) -> dict[str, Any]:
        """A stage of one lane."""
        await asyncio.sleep(seconds_of(flow["key"], stage, seed, self.mean))
        return {"value": simulated_stage(stage, flow, seed).to_json()}

    async def reference(self, seed: int, known: dict[str, Any] | None) -> dict[str, Any]:
        """Dense answers."""
        return {"value": known or {"seed": seed}}


class Lanes:
    """Gives out the lanes of hosts, and keeps account of them."""

    def __init__(self, each: int, mean: float) -> None:
        self.each, self.mean = each, mean
        self.free: list[tuple[Any, str]] = []
        self.dead: set[str] = set()
        self.opening: asyncio.Task[None] | None = None
        self.number = 0
        self.there: dict[str, float] = {}
        self.since: dict[str, float] = {}
        self.present = self.occupied = self.useful = 0.0
        self.counting = False

    async def take(self) -> tuple[Any, str]:
        """A lane of a host that lives; one more host is asked for where none has room."""
        while True:
            while self.free:
                host, node = self.free.pop()
                if node not in self.dead:
                    return host, node
            if self.opening is None:
                self.opening = asyncio.create_task(self._open())
            await asyncio.wait({self.opening})

    async def _open(self) -> None:
        host = (
            ray.remote(Host)
            .options(num_cpus=1, resources={"evaluators": 1}, max_concurrency=2 * self.each)
            .remote(self.mean)
        )
        node = await host.node.remote()
        self.free += [(host, node)] * self.each
        self.opening = None

    def came(self, name: str) -> None:
        """An evaluator is there."""
        self.there[name] = time.monotonic()

    def went(self, name: str) -> None:
        """It is not any more."""
        now = time.monotonic()
        if name in self.there:
            self._count("present", self.there.pop(name), now)
        if name in self.since:
            self._count("occupied", self.since.pop(name), now)

    def _count(self, what: str, since: float, now: float) -> None:
        if self.counting:
            setattr(self, what, getattr(self, what) + now - max(since, self.began))

    def begin(self) -> None:
        """Count from now on."""
        self.began, self.counting = time.monotonic(), True

    def end(self) -> None:
        """Count until now."""
        for name in list(self.there):
            self.went(name)
        self.counting = False


class Lane(Actors):
    """One evaluator, in the place of an engine's actors."""

    def __init__(self, lanes: Lanes) -> None:
        super().__init__([], "a lane")
        self.lanes = lanes
        lanes.number += 1
        self.label = f"evaluator {lanes.number}"

    async def locate(self, deadline: float | None) -> None:
        """See `Actors`."""
        host, node = await self.lanes.take()
        self.handles, self.places = [host], [(node, 0)]
        self.lanes.came(self.label)

    async def start(self, deadline: float) -> Any:
        """See `Actors`."""
        return {"kind": "cpu", "name": "evaluator", "host": "simulated", "ranks": 1}

    async def call(self, work: Any, deadline: float) -> Any:
        """See `Actors`, with account of the time."""
        began = self.lanes.since[self.label] = time.monotonic()
        try:
            answer = await super().call(work, deadline)
        except BaseException:
            self.lanes.dead.add(self.places[0][0] if self.places else "")
            raise
        now = time.monotonic()
        if self.lanes.since.pop(self.label, None) is not None:
            self.lanes._count("occupied", began, now)
            self.lanes._count("useful", began, now)
        return answer


def configuration(candidates: int, evaluators: int) -> CampaignConfig:
    """Random asks, so that the set of programs is fixed."""
    return CampaignConfig.model_validate(
        {
            "references": ["dense", "quest"],
            "objective": {"gates": [{"metric": "accuracy_delta", "at_least": -0.25}]},
            "arms": [{"name": "random", "strategy": {"kind": "random"}}],
            "limits": {"candidates": 10**6, "evaluations": candidates},
            "cluster": {
                "engines": evaluators,
                "cpu_tasks": 1,
                "start_deadline": 300,
                "deadline": 600,
                "double_after": 0,
            },
        }
    )


def results(root: Path, run: str) -> dict[Any, Any]:
    """Every result, without the time it took; but for sealed items, which every run draws from a secret of its own."""
    with open_run(run, readonly=True, root=root) as opened:
        events = [record.event for record in opened.store.read()]
    found = [e for e in events if isinstance(e, ev.StageFinished) and e.purpose != "holdout"]
    by = {(e.key, e.purpose, e.stage): {k: v for k, v in e.result.items() if k != "seconds"} for e in found}
    assert len(by) == len(found), "a result was recorded twice"
    return by


def campaign(
    root: Path, run: str, config: CampaignConfig, executor: Any, watch: Any = lambda r, s: None
) -> None:
    """One campaign to its end."""
    with open_run(run, readonly=False, root=root) as opened:
        assert isinstance(opened.store, SqliteEventStore)
        opened.store.durable(False)
        made = Campaign(
            opened,
            config,
            executor,
            {"random": Numbered()},
            seed=1,
            model={},
            library=simulated_library,
            watch=watch,
        )
        asyncio.run(made.run_to_end(ev.CampaignStarted(run, {}, {}, {}, {}), ev.SessionStarted(1, {})))


class WithoutRay(SimulatedExecutor):
    """The same campaign in one process, undisturbed."""

    async def trace(self, source: str) -> Flow:
        """See `Executor`."""
        return point(**json.loads(source))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--evaluators", type=int, default=200)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--mean", type=float, default=20.0, help="seconds of a stage")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    root: Path = given.out
    root.mkdir(parents=True, exist_ok=True)
    # What the cluster could measure in the time: two stages of a candidate hold an evaluator.
    candidates = given.evaluators + int(given.evaluators * given.minutes * 60 / (2 * given.mean))
    config = configuration(candidates, given.evaluators)
    each = given.evaluators // given.nodes
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - the name is Ray's
    options: dict[str, Any] = {"num_cpus": 1, "resources": {"evaluators": 1}, "object_store_memory": 80 << 20}
    made = RayCluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 2, "include_dashboard": False, "object_store_memory": 80 << 20,
            "_system_config": {"enable_worker_prestart": False},
        },
        shutdown_at_exit=False,  # its hooks are for nodes that are made in a main thread
    )  # fmt: skip
    nodes = [add_node(made, **options) for _ in range(given.nodes)]
    lanes = Lanes(each, given.mean)
    house.on_engine = lambda worker, setup: Lane(lanes)  # type: ignore[assignment]
    kill = rooms.kill_now
    rooms.kill_now = lambda actors: lanes.went(actors.label) if isinstance(actors, Lane) else kill(actors)  # type: ignore[assignment]

    class Executor(RayExecutor):
        def _init_ray(self) -> house.House:
            import sys

            ray.init(address=made.address, logging_level="ERROR", log_to_driver=False)
            ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
            return house.House(
                lambda: Resources(0, 2 + given.nodes, given.nodes, "the cluster"), elastic=True
            )

    stop, moved = threading.Event(), [0]

    def disturb() -> None:
        while not stop.wait(60):
            made.remove_node(nodes.pop(0), allow_graceful=False)
            nodes.append(add_node(made, **options))
            moved[0] += 1

    def watch(record: Any, state: Any) -> None:
        if (
            not lanes.counting
            and not hasattr(lanes, "began")
            and len(state.engines) >= given.evaluators
            and state.finished_found >= 10
        ):
            lanes.begin()
            threading.Thread(target=disturb, daemon=True).start()
        # From here on there are fewer candidates left than evaluators.
        if lanes.counting and state.finished_found + given.evaluators >= candidates:
            stop.set()
            taken["seconds"] = time.monotonic() - lanes.began
            lanes.end()

    taken: dict[str, float] = {}
    executor = Executor(config.cluster, EngineSetup("none", {}), lambda device: STAGES, cpu=Tracer)
    began = time.monotonic()
    try:
        campaign(root, "disturbed", config, executor, watch)
        whole = time.monotonic() - began
    finally:
        stop.set()
        made.shutdown()
    campaign(root, "undisturbed", config, WithoutRay(lanes=given.evaluators))
    alike = results(root, "disturbed") == results(root, "undisturbed")
    with open_run("disturbed", readonly=True, root=root) as opened:
        kinds = [record.event.kind for record in opened.store.read()]
    found = {
        "evaluators": given.evaluators, "nodes": given.nodes, "mean_stage_seconds": given.mean,
        "candidates": candidates,
        "counted_seconds": taken.get("seconds"), "whole_seconds": whole, "nodes_exchanged": moved[0],
        "busy": lanes.occupied / lanes.present, "useful": lanes.useful / lanes.present,
        "engines_joined": kinds.count("engine_joined"), "engines_left": kinds.count("engine_left"),
        "stages_lost": kinds.count("infrastructure_failed"), "results": len(results(root, "disturbed")),
        "results_equal": alike, "load": os.getloadavg()[0],
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    (root / "simulated_cluster.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

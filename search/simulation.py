"""A campaign without any model: programs are numbers from 0 to 1, and stages measure them by a formula.

Everything else is the real thing: the driver, the log, strategies and commands are tried and timed with it.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from agents.base import Proposal, ProposalRequest, Proposer, Usage
from evaluators.results import Failure, Metric, StageResult
from search.campaign.strategies.base import randomness
from search.executors.base import Notice, StageRun, WorkerLostError
from search.log import events as ev
from search.log.state import CampaignState
from search.log.store import SqliteEventStore
from vortex_core.errors import VortexError
from vortex_core.flow import ops, vFlow
from vortex_core.flow.trace import trace
from vortex_core.ir.flow import Flow
from vortex_core.ir.program import Program

_SIMULATED_STAGES: dict[ev.Purpose, tuple[str, ...]] = {
    "screen": ("screen",),
    "full_screen": ("full_screen",),
    "second": ("second",),
    "search": ("static", "accuracy", "modelled"),
    "fresh": ("accuracy", "modelled"),
    "holdout": ("holdout",),
    "serving": ("serving",),
}


class Crash(BaseException):
    """Stands for `kill -9`: raised from inside an append, caught by nothing."""


class SimulatedProposer(Proposer):
    """Writes "programs" that are JSON: a point from 0 to 1 that `SimulatedExecutor` measures.

    Args:
        delay: seconds a proposal takes.
    """

    def __init__(self, name: str = "simulated", delay: float = 0.0) -> None:
        self.name = name
        self.delay = delay
        self.requests: list[ProposalRequest] = []

    async def propose(self, request: ProposalRequest) -> Proposal:
        """See `Proposer`: moves a little from the first parent."""
        self.requests.append(request)
        await asyncio.sleep(self.delay)
        rng = randomness(request.seed, 0)
        if request.failed is not None:
            program = json.loads(request.failed.source) | {"broken": False}
        else:
            x = point_of(request.parents[0].flow) if request.parents else 0.5
            broken = rng.random() < 0.1
            program = {"x": round(min(1.0, max(0.0, x + rng.uniform(-0.2, 0.2))), 2), "broken": broken}
        usage = Usage(input_tokens=100, output_tokens=10, dollars=0.01, calls=1)
        return Proposal(json.dumps(program), f"x={program['x']}", self.name, usage)


class SimulatedExecutor:
    """Measures points from 0 to 1: accuracy falls with `x`, speed rises; some points fail a stage.

    Args:
        fail: called before every stage with (stage, key, attempt); may raise `WorkerLostError`.
        delay: seconds a stage takes.
        lanes: engines.
        device: their name.
    """

    def __init__(
        self,
        fail: Callable[[str, str, int], None] | None = None,
        delay: float = 0.0,
        lanes: int = 1,
        device: str = "simulated",
    ) -> None:
        self.lanes = lanes
        self.device = device
        self.most_at_once = 0
        self._at_once = 0
        self.ran: Counter[tuple[str, str, int]] = Counter()
        self.traced: Counter[str] = Counter()
        self.references: Counter[str] = Counter()
        self.fail = fail
        self.delay = delay
        self.closed = False
        self.facts: dict[str, Any] = {}

    @property
    def engines(self) -> int:
        """See `Executor`."""
        return self.lanes

    @property
    def screeners(self) -> int:
        """See `Executor`."""
        return self.lanes

    async def record(self, seed: int) -> None:
        """See `Executor`."""
        self.references["recorded"] += 1

    async def start(self, notice: Callable[[Notice], None]) -> list[dict[str, Any]]:
        """See `Executor`."""
        facts = {"kind": "cpu", "name": self.device, "host": "simulated", "ranks": 1}
        return [facts | self.facts] * self.lanes

    def stages(self, purpose: ev.Purpose) -> tuple[str, ...]:
        """See `Executor`."""
        return _SIMULATED_STAGES[purpose]

    def needs_engine(self, stage: str) -> bool:
        """See `Executor`."""
        return stage in ("accuracy", "holdout")

    async def trace(self, source: str) -> Flow:
        """See `Executor`."""
        self.traced[source] += 1
        await asyncio.sleep(self.delay)
        program = json.loads(source)
        if program.get("broken"):
            raise VortexError("VF012", "the program is broken", "mend it")
        return simulated_flow(program["x"])

    async def run_stage(self, stage: str, flow: Flow, seed: int) -> StageRun:
        """See `Executor`."""
        on_engine = self.needs_engine(stage)
        self._at_once += on_engine
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            result = await self.measure(stage, flow, seed)
        finally:
            self._at_once -= on_engine
        return StageRun(result, "simulated" if on_engine else "")

    async def measure(self, stage: str, flow: Flow, seed: int) -> StageResult:
        """What a stage finds."""
        self.ran[flow.key, stage, seed] += 1
        await asyncio.sleep(self.delay)
        if self.fail is not None:
            self.fail(stage, flow.key, self.ran[flow.key, stage, seed])
        return _measured(stage, point_of(flow), seed)

    async def reference(self, purpose: ev.Purpose, seed: int, known: dict[str, Any] | None) -> dict[str, Any]:
        """See `Executor`."""
        if known is not None:
            return known
        self.references[purpose] += 1
        return {"purpose": purpose, "seed": seed, "needle": [1.0] * 40}

    async def close(self) -> None:
        """See `Executor`."""
        self.closed = True


def simulated_stage(stage: str, flow: dict[str, Any], seed: int) -> StageResult:
    """What a stage finds of a flow that came as JSON: for workers in processes of their own."""
    return _measured(
        stage, point_of(Flow.from_json({k: flow[k] for k in ("name", "program", "knobs", "doc")})), seed
    )


def _measured(stage: str, x: float, seed: int) -> StageResult:
    if stage == "serving":
        return StageResult(stage, True, {"serving_speedup": Metric(1 + x, 1 + x / 2, 1 + 2 * x, unit="x")})
    if stage in ("screen", "full_screen"):
        value = 1 - 0.3 * x * x
        found = {
            "screen_beyond": Metric(value, value - 0.01, value + 0.01, how="recorded"),
            "screen_own_output": Metric(1 - 0.1 * abs(x - 0.3), how="recorded"),
            "state_share": Metric(0.2 * (1 - x), higher_is_better=False, how="modelled"),
            "modelled_speedup_h200": Metric(1 + 2 * x, how="modelled"),
        }
        return StageResult(stage, True, found, seconds=0.001)
    if stage == "static":
        return StageResult(stage, passed=True, seconds=0.001)
    if stage == "modelled":
        return StageResult(
            stage, True, {"modelled_speedup_h200": Metric(1 + 2 * x, how="modelled")}, seconds=0.001
        )
    if round(x * 100) % 13 == 12:
        error = VortexError("VV104", "recall too low", "keep more pages", fault="candidate")
        metrics = {"recall": Metric(0.1)}
        return StageResult(stage, False, metrics, failure=Failure.of(error), seconds=0.01)
    rng = randomness(seed, round(x * 100))
    items = [float(rng.random() > 0.3 * x * x) for _ in range(40)]
    delta = sum(items) / 40 - 1
    return StageResult(
        stage,
        True,
        {
            "accuracy": Metric(sum(items) / 40, n=40),
            "accuracy_delta": Metric(delta, delta - 0.05, delta + 0.05, n=40),
        },
        {"needle": items},
        {"worst_task": "needle"},
        seconds=0.01,
    )


@lru_cache(maxsize=65536)
def simulated_flow(x: float, name: str = "", *, rows: bool = False) -> Flow:
    """The flow that stands for a point: a page's score is at least `1 + x`.

    One of the library, with a budget of its own, if it is named.

    Args:
        rows: whether it keeps a row for every token, not one for every page.
    """

    class Point(vFlow):
        def create_cache(self, page):  # type: ignore[no-untyped-def]
            return {"mean": page.state(dim=page.head_dim)}

        def forward_cache(self, page):  # type: ignore[no-untyped-def]
            return {"mean": page.k.mean("token")}

        def forward_indexer(self, q, cache):  # type: ignore[no-untyped-def]
            return ops.topk(ops.maximum((q * cache["mean"]).sum("dim").max("head"), 1 + round(x, 2)))

    class Rows(vFlow):
        def create_cache(self, page):  # type: ignore[no-untyped-def]
            return {"keys": page.state(row=page.size, dim=page.head_dim)}

        def forward_cache(self, page):  # type: ignore[no-untyped-def]
            return {"keys": page.k.rename(token="row")}

        def forward_indexer(self, q, cache):  # type: ignore[no-untyped-def]
            scores = (q * cache["keys"]).sum("dim").max("row")
            return ops.topk(ops.maximum(scores.max("head"), 1 + round(x, 2)))

    flow = trace(Rows if rows else Point).flow
    return replace(flow.with_knobs(budget="512"), name=name) if name else replace(flow, name=f"point_{x:.2f}")


def point_of(flow: Flow) -> float:
    """The point that a simulated flow stands for."""
    value = next(float(node.attr["value"]) for node in flow.program.index.nodes if node.op == "const")
    return round(value - 1, 2)


def simulated_library(flow: str, knobs: dict[str, Any]) -> tuple[Flow, str]:
    """A library of named points."""
    x = {"dense": 0.0, "quest": 0.31, "block_topk": 0.45}[flow]
    found = simulated_flow(x, flow)
    if knobs:
        found = replace(found.with_knobs(**knobs), name=f"{flow} with knobs")
    return found, json.dumps({"x": x})


class SortedProposer(SimulatedProposer):
    """Writes points of two sorts: `page` moves as `SimulatedProposer`'s do, and one child in four changes its sort."""

    async def propose(self, request: ProposalRequest) -> Proposal:
        """See `Proposer`."""
        found = await super().propose(request)
        rng = randomness(request.seed, 1)
        rows = rows_of(request.parents[0].flow.program) if request.parents else rng.random() < 0.5
        program = json.loads(found.source) | {"rows": rows != (rng.random() < 0.25), "broken": False}
        return replace(found, source=json.dumps(program))


class SortedExecutor(SimulatedExecutor):
    """A machine whose screen errs, as one of GPUs was seen to: programs of one sort keep more mass than answers need
    and are modelled fast, and take a multiple of what their bytes say.

    Args:
        seconds: of stages by name; the others take none.
        workers: CPU workers.
        lanes: engines.
    """

    def __init__(
        self, seconds: Mapping[str, float] | None = None, *, workers: int = 16, lanes: int = 1
    ) -> None:
        super().__init__(lanes=lanes)
        self.seconds = seconds or {}
        self.workers = workers
        self.busy = 0.0

    @property
    def screeners(self) -> int:
        """See `Executor`."""
        return self.workers

    def stages(self, purpose: ev.Purpose) -> tuple[str, ...]:
        """See `Executor`."""
        return ("machine_code", "decode", "accuracy") if purpose == "search" else super().stages(purpose)

    def needs_engine(self, stage: str) -> bool:
        """See `Executor`."""
        return stage == "decode" or super().needs_engine(stage)

    async def trace(self, source: str) -> Flow:
        """See `Executor`."""
        program = json.loads(source)
        return simulated_flow(program["x"], rows=program["rows"])

    async def measure(self, stage: str, flow: Flow, seed: int) -> StageResult:
        """See `SimulatedExecutor`."""
        await asyncio.sleep(self.seconds.get(stage, 0.0))
        self.busy += self.seconds.get(stage, 0.0) if self.needs_engine(stage) else 0.0
        return sorted_measured(stage, point_of(flow), rows=rows_of(flow.program))


def sorted_measured(stage: str, x: float, *, rows: bool) -> StageResult:
    """What a stage of `SortedExecutor` finds; answers are kept from a mass of 0.8 on."""
    mass = 1 - (0.1 if rows else 0.3) * x * x
    modelled = 1 + 2 * x + rows
    if stage in ("screen", "full_screen"):
        found = {
            "screen_beyond": Metric(mass, mass - 0.01, mass + 0.01, how="recorded"),
            "state_share": Metric(0.2 if rows else 0.05, higher_is_better=False, how="modelled"),
            "modelled_speedup_h200": Metric(modelled, how="modelled"),
        }
        return StageResult(stage, True, found)
    if stage == "machine_code":
        return StageResult(stage, passed=True)
    speed = modelled * ((0.4 if rows else 0.9) if x else 1.0)
    if stage == "decode":
        return StageResult(stage, True, {"decode_speedup": Metric(speed, 0.99 * speed, 1.01 * speed)})
    items = [float(n >= 40 * 5 * max(0.0, 0.8 - mass)) for n in range(40)]
    delta = sum(items) / 40 - 1
    found = {
        "accuracy": Metric(sum(items) / 40, n=40),
        "accuracy_delta": Metric(delta, delta - 0.02, delta + 0.02, n=40),
        "decode_speedup": Metric(speed, 0.99 * speed, 1.01 * speed),
    }
    return StageResult(stage, True, found, {"needle": items}, {"worst_task": "needle"})


def rows_of(program: Program) -> bool:
    """Whether a simulated program keeps a row for every token."""
    return any(dim.symbol == "S" for state in program.states for _, dim in state.dims)


def lost(*, timed_out: bool = False) -> WorkerLostError:
    """The error of a worker that died."""
    return WorkerLostError(VortexError("VS008", "killed", ""), timed_out=timed_out)


def simulated_campaign(
    root: Path,
    name: str,
    *,
    candidates: int,
    engine: dict[str, Any] | None = None,
    executor: SimulatedExecutor | None = None,
) -> CampaignState:
    """A campaign on disk without a model: what commands on runs are tried with.

    Args:
        root: folder of runs.
        name: of the run; an existing one is resumed.
        candidates: distinct programs wanted.
        engine: further facts of the engine, e.g. its `versions` and `weights`.
        executor: runs stages.
    """
    from search.campaign.campaign import Campaign
    from search.config import CampaignConfig
    from search.log.run import open_run

    config = CampaignConfig.model_validate(
        {
            "references": ["dense", "quest", "block_topk"],
            "objective": {"gates": [{"metric": "accuracy_delta", "at_least": -0.25}], "margin": 0.1},
            "arms": [
                {"name": "evolve", "strategy": {"kind": "evolve"}, "share": 2},
                {"name": "random", "strategy": {"kind": "random"}, "control": True},
            ],
            "limits": {"candidates": candidates},
        }
    )
    settings = {
        "campaign": config.model_dump(mode="json", exclude={"limits", "cluster", "serving", "description"})
    }
    limits = config.model_dump(mode="json", include={"limits", "cluster", "serving"})
    executor = executor or SimulatedExecutor()
    executor.facts = engine or {}
    with open_run(name, readonly=False, root=root) as run:
        proposers = {arm.name: SimulatedProposer() for arm in config.arms}
        campaign = Campaign(
            run, config, executor, proposers, seed=1, model={"name": "sim"}, library=simulated_library
        )
        started = ev.CampaignStarted(name, settings, {}, {}, {})
        assert isinstance(run.store, SqliteEventStore)
        run.store.durable(False)
        return asyncio.run(campaign.run_to_end(started, ev.SessionStarted(1, limits)))

"""Ray as executor: the campaign's side of a house of workers, on this machine or on a cluster that is joined.

Ray has no per-task timeout, and its own retries would hide failures from the event log. So nothing is
retried here: a stage that overran or lost its worker raises `WorkerLostError`, and another worker takes the place
of the lost one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray

from evaluators.plan import load_plan
from evaluators.results import StageResult
from search.commands.evaluation import SCREENS, SECOND, SERVING
from search.config import Cluster, Screen
from search.errors import no_cluster
from search.executors import workers
from search.executors.actors import last_line
from search.executors.base import Joined, Left, Notice, StageRun, WorkerLostError
from search.executors.house import House
from search.executors.local_cluster import private_cluster, ray_folder
from search.executors.placement import Placement, Resources, place, resources_here
from search.executors.rooms import Call, Kind, Member
from search.executors.shared import PACKAGES, ROOT, SharedHouse
from search.executors.workers import EngineSetup
from search.log.events import Purpose
from search.together import together
from vortex_core.errors import VortexError
from vortex_core.ir.flow import Flow

_OBJECT_STORE_BYTES = 128 << 20  # results are kilobytes; Ray would take a third of the memory
_GRACE = 15.0  # seconds beyond a stage's deadline that its own, gentler deadline has to speak up first
_LOOK = 5.0  # seconds after which a campaign gives a sign of life, news or not


class RayExecutor:
    """See `search.executors.base.Executor`.

    Args:
        config: of the cluster.
        setup: what engines load; device, threads and ranks are filled in once it is known what there is.
        stages: for a device of the engines, each purpose's stages as (name, whether it runs on an engine).
        engine: what an engine actor runs; has the methods of `search.executors.workers.EngineWorker`.
        found: what this machine has, for tests; looked up by default.
        campaign: name of the run, for logs and others on the cluster.
        logs: folder where workers of this machine write their logs.
        cpu: what CPU workers run.
        screen: how programs are screened, where they are.
        second: what is loaded of the finals' second model.
    """

    def __init__(
        self,
        config: Cluster,
        setup: EngineSetup,
        stages: Callable[[str], Mapping[Purpose, Sequence[tuple[str, bool]]]],
        engine: type[workers.EngineWorker] = workers.EngineWorker,
        found: Resources | None = None,
        *,
        campaign: str = "campaign",
        logs: str = "",
        cpu: type[workers.CpuWorker] | None = None,
        screen: Screen | None = None,
        second: EngineSetup | None = None,
    ) -> None:
        self.config = config
        self.setup = setup if screen is None else replace(setup, screeners=config.cpu_tasks or 1)
        self.placement: Placement | None = None
        self.campaign = f"{campaign}-{uuid.uuid4().hex[:8]}"  # two drivers may give their runs one name
        self._name = campaign
        self._engine = engine
        self._cpu = cpu or workers.CpuWorker
        self._found = found
        self._logs = logs
        self.screen = screen
        self.second = second
        self._recordings: tuple[str, ...] = ()
        self._table = stages
        self._stages: dict[Purpose, tuple[str, ...]] = {}
        self._on_engine: dict[str, bool] = {}
        self._house: House | SharedHouse | None = None
        self._view: dict[str, Any] = {}
        self._listening: asyncio.Task[None] | None = None
        self._started = False

    @property
    def engines(self) -> int:
        """See `Executor`."""
        return max(1, int(self._view.get("engines", 1)))

    @property
    def screeners(self) -> int:
        """See `Executor`."""
        return 1 if self.placement is None else self.placement.cpu_tasks

    @property
    def view(self) -> dict[str, Any]:
        """Workers and what they do, the queue, other campaigns: see `House.look`."""
        return self._view

    async def start(self, notice: Callable[[Notice], None]) -> list[dict[str, Any]]:
        """Start or join a cluster, then start the workers.

        Raises:
            VortexError: `VS008`, `VS016`, `VS040`, `VS041`, or the evaluator's own reason (no weights, no memory).
        """
        self._house = await asyncio.to_thread(self._init_ray)
        self._started = True
        joined = await self._join()
        placed: Placement = joined["placement"]
        self.placement = placed
        table = self._table(placed.device)
        self._stages = {purpose: tuple(name for name, _ in listed) for purpose, listed in table.items()}
        self._on_engine = {name: on_engine for listed in table.values() for name, on_engine in listed}
        self._listening = asyncio.create_task(self._listen(notice))
        return list(joined["engines"])

    async def _join(self) -> dict[str, Any]:
        assert self._house is not None
        member = Member(
            self.campaign, self.config, self.setup, self._engine, self._cpu, workers.ServingWorker
        )
        try:
            joined = await self._house.join(member)
        except WorkerLostError as lost:
            raise lost.error from lost
        if "error" in joined:
            raise VortexError.from_json(joined["error"])
        self._view = {"engines": len(joined["engines"])}
        return joined

    async def _listen(self, notice: Callable[[Notice], None]) -> None:
        """Hear of engines that come and go, for as long as the campaign runs."""
        assert self._house is not None
        while True:
            try:
                found = await self._house.look(self.campaign, _LOOK)
                if found.get("forgotten"):
                    await self._join()
                    continue
            except (WorkerLostError, VortexError) as error:
                notice(error.error if isinstance(error, WorkerLostError) else error)
                await asyncio.sleep(_LOOK)
                with contextlib.suppress(VortexError):
                    await self._join()
                continue
            self._view = found
            for said in found.pop("notices"):
                notice(_heard(said))

    def stages(self, purpose: Purpose) -> tuple[str, ...]:
        """See `Executor`."""
        return self._stages[purpose]

    def needs_engine(self, stage: str) -> bool:
        """See `Executor`."""
        return self._on_engine[stage]

    async def trace(self, source: str) -> Flow:
        """See `Executor`."""
        call = Call("trace", (source, self._name), "trace", self._deadline("trace"))
        return workers.received((await self._run("cpu", call))["value"])

    async def run_stage(self, stage: str, flow: Flow, seed: int) -> StageRun:
        """See `Executor`."""
        given = workers.sent(flow) | {"campaign": self._name}
        deadline = self._deadline(stage)
        if stage in SCREENS:
            assert self.screen is not None
            full = stage != SCREENS[0]
            recordings = self._recordings if full else self._recordings[:1]
            layers = self.screen.full_layers if full else self.screen.layers
            asked = (stage, given, self._told, seed, recordings, layers)
            ran = await self._run("cpu", Call("screen", asked, stage, deadline, urgent=full))
            ran["worker"] = ""
        elif stage == SECOND:
            call = Call("second", (given, self.second, seed), stage, deadline, urgent=True)
            ran = await self._run("cpu", call)
        elif stage == SERVING and stage not in self._stages["search"]:
            ran = await self._run("serving", Call("run", (stage, given, self._told, seed), stage, deadline))
        elif not self._on_engine[stage]:
            # Where programs are screened, many screens wait for these workers, and an engine for this candidate.
            call = Call(
                "run", (stage, given, self._told, seed), stage, deadline, urgent=self.screen is not None
            )
            ran = await self._run("cpu", call)
            ran["worker"] = ""
        else:
            call = Call("run", (stage, given, seed), stage, deadline, flow.key, flow.ir_hash, seed)
            ran = await self._run("engine", call)
        return StageRun(StageResult.from_json(ran["value"]), ran["worker"], ran["doubled"])

    @property
    def _told(self) -> EngineSetup:
        """The setup with the device that was found, and how many workers share a machine. `setup` itself stays: a
        campaign that joins a house again asks for the same engine."""
        placed = self.placement
        assert placed is not None
        return replace(
            self.setup, device=placed.device, threads=placed.threads, ranks=placed.ranks, cpu_workers=placed.cpu_tasks
        )  # fmt: skip

    async def record(self, seed: int) -> None:
        """See `Executor`. The target model's attention is recorded by an engine, further models' by a worker. Whoever
        screens reads the files, so on a cluster the cache lies on a disk that all nodes share."""
        assert self.screen is not None
        deadline = self.config.start_deadline

        async def other(model: str, plan: Mapping[str, Any]) -> str:
            call = Call("record", (model, plan, seed), "record", deadline)
            return str((await self._run("cpu", call))["value"])

        async def target() -> str:
            return str((await self._run("engine", Call("screen_file", (seed,), "record", deadline)))["value"])

        others = []
        for further in self.screen.models:
            plan = dict(self.setup.plan)
            if further.evaluation is not None:
                plan = load_plan(further.evaluation).model_dump(mode="json")
            others.append((further.model, plan))
        self._recordings = tuple(await together([target(), *(other(*one) for one in others)]))

    async def reference(self, purpose: Purpose, seed: int, known: dict[str, Any] | None) -> dict[str, Any]:
        """See `Executor`. Idle engines prefill at once; the first one's answers stand for all."""
        assert self._house is not None
        answer: dict[str, Any] = {}
        for _ in range(self.config.retries + 1):
            answer = await self._house.reference(self.campaign, seed, known, self.config.start_deadline)
            if "lost" not in answer:
                break
        else:
            raise VortexError.from_json(answer["lost"])
        if "error" in answer:
            raise VortexError.from_json(answer["error"])
        found: dict[str, Any] = answer["value"]
        return found

    async def _run(self, kind: Kind, call: Call) -> dict[str, Any]:
        assert self._house is not None
        answer = await self._house.run(self.campaign, kind, call)
        if "lost" in answer:
            error = VortexError.from_json(answer["lost"])
            raise WorkerLostError(error, timed_out=answer["timed_out"], died=answer["died"])
        if "error" in answer:
            raise VortexError.from_json(answer["error"])
        return answer

    async def close(self) -> None:
        """End the workers and, if it was started here, the cluster."""
        if not self._started:
            return
        self._started = False
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
        assert self._house is not None
        await self._house.leave(self.campaign)
        await asyncio.to_thread(ray.shutdown)

    def _deadline(self, stage: str) -> float:
        """Later than the gentler deadline that the plan may set and the stage itself keeps.

        A stage that holds no engine may be one long call into a compiler, which keeps no deadline of its own: it is
        killed soon after the plan's, where the plan sets one, so that a search does not wait for it.
        """
        gentle = float(self.setup.plan.get("deadlines", {}).get(stage, 0.0))
        if gentle and not self.needs_engine(stage) and stage not in self.config.deadlines:
            return gentle + _GRACE
        return max(self.config.deadline_of(stage), gentle + _GRACE if gentle else 0.0)

    # -- the cluster -------------------------------------------------------------------------------------

    def _init_ray(self) -> House | SharedHouse:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        address = self.config.address
        try:
            if address:
                if address.startswith("ray://"):
                    raise no_cluster(
                        f"{address} is Ray's client protocol, and a driver runs on a node of its cluster",
                        "submit it: ray job submit --address http://HEAD:8265 -- vortex-search --address auto",
                    )
                # The driver's own code runs there, whatever version is installed; dependencies must be.
                ours = [str(ROOT / name) for name in PACKAGES]
                if (
                    not ray.is_initialized()
                ):  # the cluster may have been asked for the model's dimensions already
                    ray.init(address=address, runtime_env={"py_modules": ours}, **quiet)
                return SharedHouse()
            found = self._found or resources_here()
            placed = place(self.config, found)
            folder = ray_folder()
            with private_cluster(folder, self._logs):
                ray.init(
                    address="local",  # without it Ray joins any cluster that it finds running on this machine
                    num_cpus=placed.cpus,
                    num_gpus=placed.gpus,
                    include_dashboard=False,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    _temp_dir=str(folder),
                    **quiet,
                )
            return House(lambda: found)
        except VortexError:
            raise
        except Exception as error:  # Ray raises plain ones too, where a node does not come up in time
            raise no_cluster(last_line(str(error))) from error


def _heard(said: dict[str, Any]) -> Notice:
    if said["kind"] == "joined":
        return Joined(said["worker"], said["device"])
    error = VortexError.from_json(said["error"])
    return error if said["kind"] == "lost" else Left(said["worker"], error, said["waiting"], said["device"])

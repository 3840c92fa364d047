"""Ray as executor: resident engines, CPU workers beside them, hard deadlines, replacement of the dead.

Ray has no per-task timeout, and its own retries would hide failures from the event log. So nothing is
retried here: a stage that overran or lost its worker raises `WorkerLostError`, and another worker takes the place
of the lost one. Workers are actors that are given one call at a time, so a call begins when it is made: what waits
for a worker waits in `Pool.take`, and no deadline runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray

from evaluators.results import StageResult
from search.commands.evaluation import SERVING
from search.config import Cluster
from search.errors import engine_lost, no_cluster
from search.executors import workers
from search.executors.actors import Actors, for_serving, kill_now, last_line, on_cpu, on_engine
from search.executors.base import StageRun, WorkerLostError
from search.executors.placement import Placement, Resources, place, resources_here
from search.executors.pool import Pool
from search.executors.workers import EngineSetup
from search.log.events import Purpose
from vortex_core.errors import VortexError
from vortex_core.ir.flow import Flow

_OBJECT_STORE_BYTES = 128 << 20  # results are kilobytes; Ray would take a third of the memory
_SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")
_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("vortex_core", "evaluators", "agents", "search", "configs")
_GRACE = 15.0  # seconds beyond a stage's deadline that its own, gentler deadline has to speak up first
_COMPILED = 512  # programs an engine is remembered to have compiled
# Ready for work, no longer than this: a CPU worker loads libraries, no model.
_CPU_START = 300.0


@dataclass
class _Live:
    """A live worker: one actor, or the ranks of one engine.

    Attributes:
        actors: and how to kill them.
        facts: what it runs on.
        ran: key of the candidate it ran last: its flow is loaded and its answers are remembered.
        compiled: programs it has run, the latest last.
    """

    actors: Actors
    facts: dict[str, Any] = field(default_factory=dict)
    ran: str = ""
    compiled: OrderedDict[str, None] = field(default_factory=OrderedDict)

    async def kill(self) -> None:
        """End all its processes and what they started."""
        await asyncio.to_thread(kill_now, self.actors)

    def suits(self, flow: Flow) -> int:
        """2 if the candidate is loaded, 1 if its program is compiled, else 0."""
        return 2 if self.ran == flow.key else int(flow.ir_hash in self.compiled)

    def took(self, flow: Flow) -> None:
        """Note what it runs now."""
        self.ran = flow.key
        self.compiled[flow.ir_hash] = None
        self.compiled.move_to_end(flow.ir_hash)
        if len(self.compiled) > _COMPILED:
            self.compiled.popitem(last=False)


class RayExecutor:
    """See `search.executors.base.Executor`.

    Args:
        config: of the cluster.
        setup: what engines load; device, threads and ranks are filled in once it is known what there is.
        stages: for a device of the engines, each purpose's stages as (name, whether it runs on an engine).
        engine: what an engine actor runs; has the methods of `search.executors.workers.EngineWorker`.
        found: what this machine has, for tests; looked up by default.
    """

    def __init__(
        self,
        config: Cluster,
        setup: EngineSetup,
        stages: Callable[[str], Mapping[Purpose, Sequence[tuple[str, bool]]]],
        engine: type[workers.EngineWorker] = workers.EngineWorker,
        found: Resources | None = None,
    ) -> None:
        self.config = config
        self.setup = setup
        self.placement: Placement | None = None
        self._engine = engine
        self._found = found
        self._table = stages
        self._stages: dict[Purpose, tuple[str, ...]] = {}
        self._on_engine: dict[str, bool] = {}
        self._switching = asyncio.Lock()
        self._seen: dict[int, dict[str, Any] | None] = {}
        self._engines: Pool[_Live] = Pool(self._new_engine, lambda error: None)
        self._cpu: Pool[_Live] = Pool(self._new_cpu_worker, lambda error: None)
        self._serving: Pool[_Live] = Pool(self._new_serving_worker, lambda error: None)
        self._started = False

    @property
    def engines(self) -> int:
        """See `Executor`."""
        return max(1, self._engines.size)

    async def start(self, lost: Callable[[VortexError], None]) -> list[dict[str, Any]]:
        """Start or join a cluster, then start the workers.

        Raises:
            VortexError: `VS008`, `VS016`, `VS040`, `VS041`, or the evaluator's own reason (no weights, no memory).
        """
        self._engines = Pool(self._new_engine, lost)
        self._cpu = Pool(self._new_cpu_worker, lost)
        self.placement = await asyncio.to_thread(self._init_ray)
        self._started = True
        placed = self.placement
        table = self._table(placed.device)
        self._stages = {purpose: tuple(name for name, _ in listed) for purpose, listed in table.items()}
        self._on_engine = {name: on_engine for listed in table.values() for name, on_engine in listed}
        self.setup = replace(self.setup, device=placed.device, threads=placed.threads, ranks=placed.ranks)
        filled = await asyncio.gather(
            self._engines.fill(placed.engines), self._cpu.fill(placed.cpu_tasks), return_exceptions=True
        )
        for failure in filled:  # both are over by now: nothing starts behind the back of `close`
            if failure is not None:
                raise failure
        return [engine.facts for engine in self._engines.workers]

    def stages(self, purpose: Purpose) -> tuple[str, ...]:
        """See `Executor`."""
        return self._stages[purpose]

    def needs_engine(self, stage: str) -> bool:
        """See `Executor`."""
        return self._on_engine[stage]

    async def trace(self, source: str) -> Flow:
        """See `Executor`."""
        answer, _ = await self._run(self._cpu, "trace", lambda actor: actor.trace.remote(source), None)
        return workers.received(answer)

    async def run_stage(self, stage: str, flow: Flow, seed: int) -> StageRun:
        """See `Executor`."""
        given, setup = workers.sent(flow), self.setup
        if stage == SERVING and stage not in self._stages["search"]:
            await self._make_way_for_serving()
            answer, worker = await self._run(
                self._serving, stage, lambda actor: actor.run.remote(stage, given, setup, seed), None
            )
            return StageRun(StageResult.from_json(answer), worker.actors.label)
        if not self._on_engine[stage]:
            answer, _ = await self._run(
                self._cpu, stage, lambda actor: actor.run.remote(stage, given, setup, seed), None
            )
            return StageRun(StageResult.from_json(answer))
        answer, worker = await self._run(
            self._engines, stage, lambda actor: actor.run.remote(stage, given, seed), flow
        )
        return StageRun(StageResult.from_json(answer), worker.actors.label)

    async def reference(self, purpose: Purpose, seed: int, known: dict[str, Any] | None) -> dict[str, Any]:
        """See `Executor`. Every engine prefills; the first one's answers stand for all, so all take them over."""
        self._seen[seed] = known
        engines = [await self._engines.take() for _ in self._engines.workers]
        answers = await self._prepare_all(engines, seed)
        self._seen[seed] = answers[0]
        return answers[0]

    async def _prepare_all(self, engines: list[_Live], seed: int) -> list[dict[str, Any]]:
        """Prefill on engines that were taken, and give them back; who fails is replaced."""
        found = await asyncio.gather(*(self._prepare(e, seed) for e in engines), return_exceptions=True)
        good = [engine for engine, answer in zip(engines, found, strict=True) if isinstance(answer, dict)]
        answers = [answer for answer in found if isinstance(answer, dict)]
        errors = [answer for answer in found if isinstance(answer, BaseException)]
        if good and self._seen[seed] is None and len(good) > 1:
            self._seen[seed] = answers[0]
            await asyncio.gather(*(self._prepare(engine, seed) for engine in good[1:]))
        for engine in engines:
            await (self._engines.give_back(engine) if engine in good else self._engines.replace(engine))
        if not good or any(not isinstance(error, VortexError) for error in errors):
            raise errors[0]
        return answers

    async def _prepare(self, engine: _Live, seed: int) -> dict[str, Any]:
        """Have an engine prefill a seed's prompts."""
        deadline, known = self.config.start_deadline, self._seen[seed]
        try:
            answer: dict[str, Any] = await engine.actors.call(
                lambda actor: actor.reference.remote(seed, known), deadline
            )
        except TimeoutError as error:
            raise engine_lost(f"prefill was not done in {deadline:g} s") from error
        except WorkerLostError as lost:
            raise lost.error from lost
        return answer

    async def _make_way_for_serving(self) -> None:
        """End the engines and give their place to SGLang: two of its servers and an engine do not share a GPU."""
        async with self._switching:
            if self._serving.size == 0:
                await self._engines.close()
                await self._serving.fill(1)

    async def close(self) -> None:
        """End the workers and, if it was started here, the cluster."""
        if not self._started:
            return
        self._started = False
        await self._engines.close()
        await self._cpu.close()
        await self._serving.close()
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

    # -- workers -----------------------------------------------------------------------------------------

    async def _run(
        self, pool: Pool[_Live], stage: str, call: Callable[[Any], Any], flow: Flow | None
    ) -> tuple[Any, _Live]:
        """One call on a worker of a pool; a worker that failed under it is replaced."""
        worker = await pool.take() if flow is None else await pool.take(lambda w: w.suits(flow))
        if flow is not None:
            worker.took(flow)
        deadline = self._deadline(stage)
        try:
            answer = await worker.actors.call(call, deadline)
        except VortexError:  # an answer like any other: the worker is well
            await pool.give_back(worker)
            raise
        except TimeoutError as error:
            await pool.replace(worker)
            why = engine_lost(f"stage {stage} was killed after {deadline:g} s")
            raise WorkerLostError(why, timed_out=True) from error
        except WorkerLostError:
            await pool.replace(worker)
            raise
        except BaseException:  # cancelled in the middle of a stage: its state is unknown
            kill_now(worker.actors)
            raise
        await pool.give_back(worker)
        return answer, worker

    async def _new_engine(self) -> _Live:
        """An engine that has loaded the model and prefilled what the others have."""
        live = _Live(await self._ready(on_engine(self._engine, self.setup), self.config.start_deadline))
        # A stage's deadline is for the stage: the new engine prefills before it is given one.
        try:
            live.facts = await self._loaded(live.actors)
            for seed in list(self._seen):
                await self._prepare(live, seed)
        except BaseException:
            kill_now(live.actors)
            raise
        return live

    async def _loaded(self, actors: Actors) -> dict[str, Any]:
        deadline = self.config.start_deadline
        try:
            facts: dict[str, Any] = await actors.start(deadline)
        except TimeoutError as error:
            raise engine_lost(f"the model was not loaded in {deadline:g} s") from error
        except WorkerLostError as lost:
            raise lost.error from lost
        return facts

    async def _new_cpu_worker(self) -> _Live:
        return _Live(await self._ready(on_cpu(workers.CpuWorker), _CPU_START))

    async def _new_serving_worker(self) -> _Live:
        return _Live(await self._ready(for_serving(workers.ServingWorker, self.setup), _CPU_START))

    async def _ready(self, actors: Actors, deadline: float) -> Actors:
        """Wait until actors run somewhere."""
        try:
            await actors.locate(deadline)
        except TimeoutError as error:
            kill_now(actors)
            free = {name: n for name, n in ray.available_resources().items() if name in ("CPU", "GPU")}
            raise engine_lost(
                f"no place was found for {actors.wants} in {deadline:g} s; free are {free or 'none'}"
            ) from error
        except WorkerLostError as lost:
            kill_now(actors)
            raise lost.error from lost
        return actors

    def _init_ray(self) -> Placement:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        try:
            if self.config.address:
                # The driver's own code runs there, whatever version is installed; dependencies must be.
                ours = [str(_ROOT / name) for name in _PACKAGES]
                ray.init(address=self.config.address, runtime_env={"py_modules": ours}, **quiet)
                return place(self.config, _resources_of_cluster())
            placed = place(self.config, self._found or resources_here())
            with _workers_environment():
                ray.init(
                    address="local",  # without it Ray joins any cluster that it finds running on this machine
                    num_cpus=placed.cpus,
                    num_gpus=placed.gpus,
                    include_dashboard=False,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    **quiet,
                )
            return placed
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise no_cluster(last_line(str(error))) from error


def _resources_of_cluster() -> Resources:
    total = ray.cluster_resources()
    alive = [node for node in ray.nodes() if node["Alive"]]
    with_gpus = [node for node in alive if node["Resources"].get("GPU")]
    return Resources(
        gpus=int(total.get("GPU", 0)),
        cores=int(total.get("CPU", 1)),
        nodes=len(with_gpus or alive) or 1,
        whose="the cluster",
    )


@contextlib.contextmanager
def _workers_environment() -> Iterator[None]:
    """What a local cluster inherits: our import path, and no secrets (workers run generated programs)."""
    saved = dict(os.environ)
    for name in saved:
        if any(word in name.upper() for word in _SECRET):
            del os.environ[name]
    # Ray starts workers at nice 15, where anything else on the machine starves an engine being timed.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - the name is Ray's
    root = str(_ROOT)
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [saved.get("PYTHONPATH")])])
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved)

"""Ray as executor: resident engines, CPU work beside them, hard deadlines, replacement of the dead.

Ray has no per-task timeout, and its own retries would hide failures from the event log. So nothing is
retried here: a stage that overran or lost its worker raises `WorkerLostError` once the worker is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from evaluators.results import StageResult
from search.config import Cluster
from search.errors import crashed, engine_lost, no_cluster
from search.executors import workers
from search.executors.base import WorkerLostError
from search.log.events import Purpose
from vortex_core.errors import VortexError
from vortex_core.ir.flow import Flow

_OBJECT_STORE_BYTES = 128 << 20  # results are kilobytes; Ray would take a third of the memory
_SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")
_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("vortex_core", "evaluators", "agents", "search", "configs")
_GRACE = 15.0  # seconds beyond a stage's deadline that its own, gentler deadline has to speak up first


@dataclass
class _Engine:
    """A live engine actor and how to kill it."""

    actor: Any
    group: int
    node: str
    ran: str = ""  # key of the candidate it ran last: its flow is loaded and its answers are remembered


class RayExecutor:
    """See `search.executors.base.Executor`.

    Args:
        config: of the cluster.
        model: name or path of the model evaluated.
        plan: evaluation plan as JSON.
        stages: for each purpose, (name, whether it needs the engine).
        engine: what an engine actor runs; has the methods of `search.executors.workers.EngineWorker`.
    """

    def __init__(
        self,
        config: Cluster,
        model: str,
        plan: dict[str, Any],
        stages: Mapping[Purpose, Sequence[tuple[str, bool]]],
        engine: type[workers.EngineWorker] = workers.EngineWorker,
    ) -> None:
        self.config = config
        self.model = model
        self.plan = plan
        self._engine = engine
        self._stages = {purpose: tuple(name for name, _ in listed) for purpose, listed in stages.items()}
        self._on_engine = {name: engine for listed in stages.values() for name, engine in listed}
        self._free: list[_Engine] = []
        self._freed = asyncio.Condition()
        self._engines: list[_Engine] = []
        self._replacing = 0
        self._cpu = asyncio.Semaphore(config.cpu_tasks)
        self._seen: dict[int, dict[str, Any] | None] = {}
        self._started = False

    async def start(self) -> None:
        """Start or join a cluster, then start the engines.

        Raises:
            VortexError: `VS008`, `VS016`, or the evaluator's own reason (no weights, no memory).
        """
        await asyncio.to_thread(self._init_ray)
        self._started = True
        for engine in await asyncio.gather(*(self._new_engine() for _ in range(self.config.engines))):
            await self._give_back(engine)

    def stages(self, purpose: Purpose) -> tuple[str, ...]:
        """See `Executor`."""
        return self._stages[purpose]

    def needs_engine(self, stage: str) -> bool:
        """See `Executor`."""
        return self._on_engine[stage]

    async def trace(self, source: str) -> Flow:
        """See `Executor`."""
        answer = await self._on_cpu("trace", _trace.remote, source)
        return workers.received(answer)

    async def run_stage(self, stage: str, flow: Flow, seed: int) -> StageResult:
        """See `Executor`."""
        given = workers.sent(flow)
        if not self._on_engine[stage]:
            answer = await self._on_cpu(stage, _cpu_stage.remote, stage, given, self.model, self.plan, seed)
            return StageResult.from_json(answer)
        deadline = self._deadline(stage)
        return StageResult.from_json(
            await self._on_an_engine(
                stage, deadline, flow.key, lambda actor: actor.run.remote(stage, given, seed)
            )
        )

    async def reference(self, purpose: Purpose, seed: int, known: dict[str, Any] | None) -> dict[str, Any]:
        """See `Executor`. Every engine prefills; they agree, so the first one's results stand for all."""
        self._seen[seed] = known
        engines = [await self._take("") for _ in self._engines]
        try:
            answers = await asyncio.gather(*(self._prepare(engine, seed) for engine in engines))
        finally:
            for engine in engines:
                await self._give_back(engine)
        self._seen[seed] = answers[0]
        return answers[0]

    async def _prepare(self, engine: _Engine, seed: int) -> dict[str, Any]:
        """Have an engine prefill a seed's prompts."""
        deadline = self.config.start_deadline
        try:
            answer: dict[str, Any] = await self._within(
                deadline, engine.actor.reference.remote(seed, self._seen[seed])
            )
        except TimeoutError as error:
            raise engine_lost(f"prefill was not done in {deadline:g} s") from error
        except WorkerLostError as lost:
            raise lost.error from lost
        return answer

    async def close(self) -> None:
        """Kill the engines and, if it was started here, the cluster."""
        if not self._started:
            return
        self._started = False
        for engine in self._engines:
            self._kill(engine)
        self._engines.clear()
        await asyncio.to_thread(ray.shutdown)

    def _deadline(self, stage: str) -> float:
        """Later than the gentler deadline that the plan may set and the stage itself keeps."""
        gentle = float(self.plan.get("deadlines", {}).get(stage, 0.0))
        return max(self.config.deadline_of(stage), gentle + _GRACE if gentle else 0.0)

    # -- workers -----------------------------------------------------------------------------------------

    async def _on_cpu(self, stage: str, remote: Any, *arguments: Any) -> Any:
        async with self._cpu:
            reference = remote(*arguments)
            deadline = self._deadline(stage)
            try:
                return await self._within(deadline, reference)
            except TimeoutError as error:
                ray.cancel(reference, force=True)
                raise _overran(stage, deadline) from error

    async def _on_an_engine(self, stage: str, deadline: float, key: str, call: Any) -> Any:
        engine = await self._take(key)
        try:
            answer = await self._within(deadline, call(engine.actor))
        except VortexError:  # an answer like any other: the engine is well
            await self._give_back(engine)
            raise
        except (TimeoutError, WorkerLostError) as error:
            lost = _overran(stage, deadline) if isinstance(error, TimeoutError) else error
            lost.error.message += await self._replace(engine)
            raise lost from error
        except BaseException:  # cancelled in the middle of a stage: its state is unknown
            self._kill(engine)
            raise
        await self._give_back(engine)
        return answer

    async def _take(self, key: str) -> _Engine:
        """A free engine, the one that ran `key` last if it is among them."""
        async with self._freed:
            await self._freed.wait_for(lambda: self._free)
            engine = next((e for e in self._free if e.ran == key), self._free[0])
            self._free.remove(engine)
        engine.ran = key
        return engine

    async def _give_back(self, engine: _Engine) -> None:
        async with self._freed:
            self._free.append(engine)
            self._freed.notify()

    async def _replace(self, engine: _Engine) -> str:
        """Kill an engine and put a new one, prefilled like the others, in its place.

        Returns:
            What to add to the error if it cannot be replaced and others go on without it, else nothing.

        Raises:
            VortexError: it cannot be replaced, and it was the last one.
        """
        self._kill(engine)
        self._replacing += 1
        replacement = None
        try:
            replacement = await self._new_engine()
            # A stage's deadline is for the stage: the new engine prefills before it is given one.
            for seed in self._seen:
                await self._prepare(replacement, seed)
        except VortexError as error:
            if replacement is not None:
                self._kill(replacement)
            left = len(self._engines)
            if left == 0 and self._replacing == 1:
                raise
            return f"; it could not be replaced ({error.code}: {error.message}), {left} others go on"
        finally:
            self._replacing -= 1
        await self._give_back(replacement)
        return ""

    async def _within(self, deadline: float, reference: Any) -> Any:
        """The value of an answer (`search.executors.workers`).

        Raises:
            TimeoutError: it took longer.
            WorkerLostError: the process died.
            VortexError: the error of the answer.
        """
        waiting = asyncio.wrap_future(reference.future())
        try:
            answer = await asyncio.wait_for(waiting, deadline)
        except ray.exceptions.RayTaskError as error:  # raised around what `workers` catches
            raise WorkerLostError(crashed(error.cause or error), died=False) from error
        except ray.exceptions.RayError as error:
            raise WorkerLostError(engine_lost(_last_line(str(error)))) from error
        if "error" in answer:
            raise VortexError.from_json(answer["error"])
        if "crash" in answer:
            raise WorkerLostError(VortexError.from_json(answer["crash"]), died=False)
        return answer["value"]

    async def _new_engine(self) -> _Engine:
        actor = _actor(self.config, self._engine).remote(self.model, self.plan, self.config.threads)
        try:
            group, node = await self._within(self.config.start_deadline, actor.locate.remote())
        except TimeoutError as error:
            ray.kill(actor)
            raise engine_lost("it did not start in time") from error
        except WorkerLostError as lost:
            ray.kill(actor)
            raise lost.error from lost
        engine = _Engine(actor, group, node)
        self._engines.append(engine)
        return engine

    def _kill(self, engine: _Engine) -> None:
        """End the actor and everything it started, wherever it runs."""
        if engine in self._engines:
            self._engines.remove(engine)
        with contextlib.suppress(ray.exceptions.RayError):
            if engine.node == ray.get_runtime_context().get_node_id():
                _kill_group(engine.group)
            else:
                there = NodeAffinitySchedulingStrategy(engine.node, soft=False)
                _kill_remote_group.options(scheduling_strategy=there).remote(engine.group)
            ray.kill(engine.actor)

    def _init_ray(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        try:
            if self.config.address:
                # The driver's own code runs there, whatever version is installed; dependencies must be.
                ours = [str(_ROOT / name) for name in _PACKAGES]
                ray.init(address=self.config.address, runtime_env={"py_modules": ours}, **quiet)
                return
            with _workers_environment():
                ray.init(
                    address="local",  # without it Ray joins any cluster that it finds running on this machine
                    num_cpus=self.config.engines + self.config.cpu_tasks,
                    include_dashboard=False,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    **quiet,
                )
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise no_cluster(_last_line(str(error))) from error


def _actor(config: Cluster, engine: type[workers.EngineWorker]) -> Any:
    # max_restarts=0: a replacement is our decision, recorded as an event.
    options = {"num_cpus": 1, "num_gpus": config.engine_gpus, "max_restarts": 0, "max_task_retries": 0}

    class Located(engine):  # type: ignore[misc, valid-type]  # a class made of an argument
        def locate(self) -> dict[str, Any]:
            """Start; the value is (process group, node)."""
            started: dict[str, Any] = self.start()
            if "value" in started:
                started["value"] = (started["value"], ray.get_runtime_context().get_node_id())
            return started

    Located.__name__ = Located.__qualname__ = engine.__name__
    return ray.remote(**options)(Located)


_trace = ray.remote(num_cpus=1, max_retries=0)(workers.trace)
_cpu_stage = ray.remote(num_cpus=1, max_retries=0)(workers.run_cpu_stage)


@ray.remote(num_cpus=0, max_retries=0)
def _kill_remote_group(group: int) -> None:
    _kill_group(group)


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _overran(stage: str, deadline: float) -> WorkerLostError:
    return WorkerLostError(engine_lost(f"stage {stage} was killed after {deadline:g} s"), timed_out=True)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"


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

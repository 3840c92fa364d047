"""What the driver needs of whoever executes stages: `search.executors.ray_cluster` does it on Ray, tests in process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from evaluators.results import StageResult
from search.log.events import Purpose
from vortex_core.errors import VortexError
from vortex_core.ir.flow import Flow


@dataclass(frozen=True)
class StageRun:
    """A stage's result and the worker that ran it, e.g. `node1 gpu0`; empty for CPU workers, which are all alike.

    `doubled`: two workers were given it, because it took so long, and this is the faster one's.
    """

    result: StageResult
    worker: str = ""
    doubled: bool = False


@dataclass(frozen=True)
class Joined:
    """An engine more is at work: its name, and what it runs on (`search.machine.device_facts`)."""

    worker: str
    device: dict[str, Any]


@dataclass(frozen=True)
class Left:
    """An engine is gone. `waiting`: another one is asked for in its place and comes as soon as there is room."""

    worker: str
    error: VortexError
    waiting: bool
    device: dict[str, Any]


Notice = Joined | Left | VortexError
"""What a driver hears of its engines; an error is of one that could not be started."""


class WorkerLostError(Exception):
    """A worker died, hung or could not start: nobody's result. `error` says what was seen.

    Args:
        error: typed description.
        timed_out: the worker was killed because its stage ran past the deadline.
        died: its process ended or was killed. False: it raised what nobody expects, and is replaced because
            its state is unknown.
    """

    def __init__(self, error: VortexError, *, timed_out: bool = False, died: bool = True) -> None:
        super().__init__(str(error))
        self.error = error
        self.timed_out = timed_out
        self.died = died


class Executor(Protocol):
    """Executes; decides nothing. Methods may be awaited concurrently: each waits for a free worker."""

    @property
    def engines(self) -> int:
        """Engines that work for this campaign now, one at least: as many candidates are measured at once."""
        ...

    @property
    def screeners(self) -> int:
        """Programs that are screened at once. Known once started."""
        ...

    async def start(self, notice: Callable[[Notice], None]) -> list[dict[str, Any]]:
        """Bring the workers up, until one engine is ready; returns what each that is runs on
        (`search.machine.device_facts`, with its name as `worker`).

        Args:
            notice: called from then on when engines come and go.

        Raises:
            VortexError: what cannot work at all (no weights, no memory, no cluster).
        """
        ...

    def stages(self, purpose: Purpose) -> tuple[str, ...]:
        """Stages to run for a purpose, in order."""
        ...

    def needs_engine(self, stage: str) -> bool:
        """Whether a stage holds an engine."""
        ...

    async def trace(self, source: str) -> Flow:
        """Trace untrusted source in the jail.

        Raises:
            VortexError: the source is not a legal flow.
            WorkerLostError: the tracer could not be run.
        """
        ...

    async def run_stage(self, stage: str, flow: Flow, seed: int) -> StageRun:
        """Run one stage once. An engine that holds the candidate, or has compiled its program, is preferred.

        Raises:
            VortexError: what the stage needs could not be made ready: no engine is left, and why.
            WorkerLostError: no result; another worker takes its place, so trying again makes sense.
        """
        ...

    async def record(self, seed: int) -> None:
        """Have the attention recorded that programs are screened on, where it is not on disk yet.

        Raises:
            VortexError: it could not be.
        """
        ...

    async def reference(self, purpose: Purpose, seed: int, known: dict[str, Any] | None) -> dict[str, Any]:
        """Prefill the prompts of a purpose and answer them densely; the results as JSON.

        Args:
            known: results of an earlier session, which are taken over instead of measured again.
        """
        ...

    async def close(self) -> None:
        """Release all workers. Nothing is left running."""
        ...

"""What the driver needs of whoever executes stages: `search.executors.ray_cluster` does it on Ray, tests in process."""

from __future__ import annotations

from typing import Any, Protocol

from evaluators.results import StageResult
from search.log.events import Purpose
from vortex_core.errors import VortexError
from vortex_core.ir.flow import Flow


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

    async def start(self) -> None:
        """Bring the workers up.

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

    async def run_stage(self, stage: str, flow: Flow, seed: int) -> StageResult:
        """Run one stage once; an engine that ran this candidate before is preferred.

        Raises:
            VortexError: what the stage needs could not be made ready.
            WorkerLostError: no result; the worker has been replaced, so trying again makes sense.
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

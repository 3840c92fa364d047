"""A candidate's way through tracing and stages: infrastructure failures are retried, its own are results."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from evaluators.results import Failure, StageResult
from search.commands.evaluation import evaluation_seed
from search.config import CampaignConfig
from search.errors import deadline_passed, worker_killer
from search.executors.base import Executor, WorkerLostError
from search.log import events as ev
from search.log.run import Run
from search.log.state import CampaignState, Candidate, Proposal
from vortex_core.errors import VortexError
from vortex_core.ir import mistakes
from vortex_core.ir.flow import Flow


class LibraryLoader(Protocol):
    """Loads a library flow with some knobs changed."""

    def __call__(self, flow: str, knobs: dict[str, Any]) -> tuple[Flow, str]:
        """The traced flow and its source."""
        ...


class Pipeline:
    """Takes candidates through stages and records what happens.

    Args:
        run: where sources and programs are kept.
        executor: runs stages.
        state: read only; it changes through `record`.
        record: writes events.
        seed: of the campaign; evaluation seeds for each purpose derive from it.
    """

    def __init__(
        self,
        run: Run,
        config: CampaignConfig,
        executor: Executor,
        state: CampaignState,
        record: Callable[..., None],
        seed: int,
    ) -> None:
        self.run = run
        self.config = config
        self.executor = executor
        self.state = state
        self.record = record
        self._seed = seed
        # A candidate keeps its turn from its first engine stage to its last: swapping flows between stages
        # would rebuild page states and forget answers that the next stage reuses.
        self._turns = asyncio.Semaphore(config.cluster.engines)

    def seed(self, purpose: ev.Purpose) -> int:
        """The evaluation seed of a purpose: other items for fresh measurements, others again when sealed."""
        return evaluation_seed(self._seed, purpose)

    async def trace(self, proposal: Proposal) -> Candidate | None:
        """Trace a proposal; returns the candidate if it is a new one."""
        assert proposal.source is not None
        source = self.run.files.get(proposal.source, ".py")
        began = time.monotonic()
        tries = self.config.cluster.retries + 1
        last = ""
        for attempt in range(tries):
            try:
                flow = await self.executor.trace(source)
                break
            except VortexError as error:
                if error.code != mistakes.NO_JAIL.code:
                    self.record(ev.Rejected(proposal.id, error.to_json(), time.monotonic() - began))
                    return None
                self.record(ev.InfrastructureFailed("", "search", "trace", attempt, error.to_json()))
                if attempt == tries - 1:
                    raise
            except WorkerLostError as lost:
                self.record(ev.InfrastructureFailed("", "search", "trace", attempt, lost.error.to_json()))
                last = lost.error.message
        else:  # workers start well without it and die of it each time: it is to blame, and the campaign goes on
            self.record(
                ev.Rejected(
                    proposal.id, worker_killer("trace", tries, last).to_json(), time.monotonic() - began
                )
            )
            return None
        if flow.key in self.state.candidates:
            self.record(ev.Duplicate(proposal.id, flow.key))
            return None
        return self.admit(flow, source, proposal.id, time.monotonic() - began)

    def admit(self, flow: Flow, source: str, proposal: int | None, seconds: float = 0.0) -> Candidate:
        """Record a new candidate; without a proposal it is a reference."""
        self.record(
            ev.Admitted(
                key=flow.key,
                ir_hash=flow.ir_hash,
                name=flow.name,
                doc=flow.doc,
                source=self.run.files.put(source, ".py"),
                program=self.run.files.put_json(flow.program.to_json()),
                knobs=flow.knobs.to_json(),
                proposal=proposal,
                reference=proposal is None,
                seconds=seconds,
            )
        )
        return self.state.candidates[flow.key]

    async def dense_reference(self, purpose: ev.Purpose) -> None:
        """Have the engines prefill a purpose's prompts; the dense answers are recorded once per run."""
        seed = self.seed(purpose)
        recorded = self.state.references.get((purpose, seed))
        known = None if recorded is None else self.run.files.get_json(recorded)
        began = time.monotonic()
        results = await self.executor.reference(purpose, seed, known)
        if recorded is None:
            name = self.run.files.put_json(results)
            self.record(ev.ReferenceMeasured(purpose, seed, name, time.monotonic() - began))

    async def evaluate(self, candidate: Candidate, purpose: ev.Purpose) -> None:
        """Run the stages that have no result yet; the first that does not pass is the last."""
        flow = candidate.flow(self.run.files)
        done = candidate.results.get(purpose, {})
        waiting = [stage for stage in self.executor.stages(purpose) if stage not in done]
        passed = all(result.passed for result in done.values())
        first = next((i for i, s in enumerate(waiting) if self.executor.needs_engine(s)), len(waiting))
        if passed:
            passed = await self._stages(candidate, flow, purpose, waiting[:first])
        if passed and waiting[first:]:
            async with self._turns:
                passed = await self._stages(candidate, flow, purpose, waiting[first:])
        self.record(ev.CandidateFinished(candidate.key, purpose, self.seed(purpose), passed))

    async def _stages(
        self, candidate: Candidate, flow: Flow, purpose: ev.Purpose, names: Sequence[str]
    ) -> bool:
        """Run stages in order until one does not pass; returns whether all did."""
        for stage in names:
            result = await self._run(stage, flow, purpose)
            self.record(ev.StageFinished(candidate.key, purpose, stage, self.seed(purpose), result.to_json()))
            if not result.passed:
                return False
        return True

    async def _run(self, stage: str, flow: Flow, purpose: ev.Purpose) -> StageResult:
        """One stage, again after infrastructure failures; who fails on every new worker is to blame."""
        timeouts, last = 0, ""
        for attempt in range(self.config.cluster.retries + 1):
            began = time.monotonic()
            try:
                result = await self.executor.run_stage(stage, flow, self.seed(purpose))
            except WorkerLostError as lost:
                self.record(ev.InfrastructureFailed(flow.key, purpose, stage, attempt, lost.error.to_json()))
                timeouts, last = timeouts + lost.timed_out, lost.error.message
                if timeouts == 2:
                    break
                continue
            if result.failure is None or result.failure.kind == "candidate":
                return result
            if result.failure.kind == "budget":
                raise VortexError.from_json(result.failure.error)
            last = str(result.failure.error.get("message", ""))
            self.record(ev.InfrastructureFailed(flow.key, purpose, stage, attempt, result.failure.error))
        error = (
            deadline_passed(stage, self.config.cluster.deadline_of(stage))
            if timeouts == 2
            else worker_killer(stage, self.config.cluster.retries + 1, last)
        )
        return StageResult(stage, passed=False, failure=Failure.of(error), seconds=time.monotonic() - began)

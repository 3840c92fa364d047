"""A candidate's way through tracing and stages: infrastructure failures are retried, its own are results."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar
from weakref import WeakValueDictionary

from agents.base import Proposal as Answer
from evaluators.results import Failure, StageResult
from evaluators.tasks.base import FRESH_SEEDS
from search.campaign.breaker import CircuitBreaker
from search.campaign.cells import cell_of
from search.campaign.drain import Drain
from search.campaign.turns import Supply, Turns
from search.commands.evaluation import evaluation_seed
from search.config import CampaignConfig
from search.errors import deadline_passed, worker_killer
from search.executors.base import Executor, StageRun, WorkerLostError
from search.log import events as ev
from search.log.run import Run, sealed_secret
from search.log.state import CampaignState, Candidate, Proposal
from vortex_core.errors import VortexError
from vortex_core.geometry import Geometry
from vortex_core.ir.cost import state_bytes_per_token
from vortex_core.ir.flow import Flow
from vortex_core.ir.program import Program
from vortex_core.ir.verify import verify

_T = TypeVar("_T")

_MENDS = 8
"""Replacements tried on one refused source."""


_FLOWS = 512
"""Flows kept in memory: parents of what is asked, and what is measured."""


def _verified(flow: Flow) -> Flow:
    """The flow as whoever reads it from the log will have it: nothing is taken on trust, not even from here."""
    verify(flow.program)
    return flow


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
        drain: what holds work back when the campaign is to stop.
        geometry: the model's shapes, where they are known.
    """

    def __init__(
        self,
        run: Run,
        config: CampaignConfig,
        executor: Executor,
        state: CampaignState,
        record: Callable[..., None],
        seed: int,
        drain: Drain,
        geometry: Geometry | None = None,
    ) -> None:
        self.run = run
        self.config = config
        self.executor = executor
        self.state = state
        self.record = record
        self.breaker = CircuitBreaker()
        self._seed = seed
        self.drain = drain
        self.geometry = geometry
        self._flows: OrderedDict[str, Flow] = OrderedDict()
        # Programs of these by the names of their texts: under other knobs they need not be verified again.
        self._programs: WeakValueDictionary[str, Program] = WeakValueDictionary()
        # A candidate keeps its turn from its first engine stage to its last: swapping flows between stages would
        # rebuild page states and forget answers that the next stage reuses.
        self.turns = Turns(lambda: executor.engines)
        self.supply = Supply()
        self.prefill_seconds: float | None = None
        """That the search's prompts took; None before they were read."""
        self.running: dict[tuple[str, str], float] = {}  # candidate or proposal, stage -> when it was begun

    def seed(self, purpose: ev.Purpose) -> int:
        """The evaluation seed of a purpose: other items for fresh measurements, this run's own when sealed."""
        if purpose in ("holdout", "second"):
            return evaluation_seed(sealed_secret(self.run.folder, FRESH_SEEDS), purpose)
        return evaluation_seed(self._seed, purpose)

    def state_bytes(self, flow: Flow) -> float:
        """Bytes of a flow's page states for each cached token, by which programs cost alike or not."""
        assert self.geometry is not None, "the model's shapes are known where programs are screened"
        return state_bytes_per_token(flow.program, flow.knobs, self.geometry)

    def flow(self, candidate: Candidate) -> Flow:
        """A candidate's flow; read and verified once while it is in use, for that takes as long as a cheap screen.

        Raises:
            VortexError: what this version's verifier finds wrong with it.
        """
        flow = self._flows.get(candidate.key)
        if flow is None:
            known = self._programs.get(candidate.program)
            flow = candidate.flow(self.run.files) if known is None else candidate.flow_of(known)
        self._remember(candidate.program, flow)  # a parent stays, however long ago it came
        return flow

    def _remember(self, program: str, flow: Flow) -> None:
        """Keep a flow whose program has a file of this name."""
        self._programs[program] = flow.program
        self._flows[flow.key] = flow
        self._flows.move_to_end(flow.key)
        if len(self._flows) > _FLOWS:
            self._flows.popitem(last=False)

    async def trace(self, proposal: Proposal, answer: Answer | None = None) -> Candidate | None:
        """Trace a proposal; returns the candidate if it is a new one.

        Args:
            answer: the proposer's, where it came in this session. A program that was made as IR is verified, and no
                source is run.

        Raises:
            VortexError: `VS018`, if our own code failed the same way for too many sources.
        """
        assert proposal.source is not None
        source = self.run.files.get(proposal.source, ".py") if answer is None else answer.source
        began = time.monotonic()
        try:
            flow = await self._traced(proposal, source, None if answer is None else answer.flow)
        except VortexError as error:
            mended = await self._mend(proposal, source, error)
            if mended is None:
                self.record(ev.Rejected(proposal.id, error.to_json(), time.monotonic() - began))
                if error.fault == "infrastructure":
                    self.breaker.abandoned(f"proposal {proposal.id}", error)
                return None
            flow, source = mended
        if self.config.knobs:
            flow = flow.with_knobs(**self.config.knobs)
        if flow.key in self.state.candidates:
            self.record(ev.Duplicate(proposal.id, flow.key))
            return None
        return self.admit(flow, source, proposal.id, time.monotonic() - began)

    async def _traced(self, proposal: Proposal, source: str, made: Flow | None = None) -> Flow:
        """Trace a source, again where that may help.

        Raises:
            VortexError: what is wrong with it. `VS014` where workers start well without it and die of it each time:
                it is to blame, and the campaign goes on. What our own code or the machine could not do is nobody's
                to repair.
        """
        tries = self.config.cluster.retries + 1
        deaths = 0
        for attempt in range(tries):
            try:
                if made is not None:
                    return _verified(made)
                return await self._doing(
                    f"proposal {proposal.id}", "trace", lambda: self.executor.trace(source)
                )
            except VortexError as error:
                found, again = error, error.retryable
            except WorkerLostError as lost:
                found, deaths, again = lost.error, deaths + lost.died, True
            if found.fault == "infrastructure":
                self.record(ev.InfrastructureFailed("", "search", "trace", attempt, found.to_json()))
            if not again:
                break
        raise worker_killer("trace", tries, found.message) if deaths == tries else found

    async def _mend(self, proposal: Proposal, source: str, error: VortexError) -> tuple[Flow, str] | None:
        """Try what the errors themselves say to write: it costs no call. None where it is still refused."""
        codes = []
        for _ in range(_MENDS):
            if error.replacement is None:
                break
            codes.append(error.code)
            source = error.replacement.apply(source)
            try:
                flow = await self._traced(proposal, source)
            except VortexError as following:
                error = following
            else:
                self.record(ev.Mended(proposal.id, self.run.files.put(source, ".py"), tuple(codes)))
                return flow, source
        return None

    def admit(self, flow: Flow, source: str, proposal: int | None, seconds: float = 0.0) -> Candidate:
        """Record a new candidate; without a proposal it is a reference."""
        program = self.run.files.put_json(flow.program.to_json())
        self._remember(program, flow)
        self.record(
            ev.Admitted(
                key=flow.key,
                ir_hash=flow.ir_hash,
                name=flow.name,
                doc=flow.doc,
                source=self.run.files.put(source, ".py"),
                program=program,
                knobs=flow.knobs.to_json(),
                proposal=proposal,
                reference=proposal is None,
                seconds=seconds,
                cell=cell_of(flow, self.geometry),
                size=len(flow.program.cache.nodes) + len(flow.program.index.nodes),
            )
        )
        return self.state.candidates[flow.key]

    async def dense_reference(self, purpose: ev.Purpose) -> None:
        """Have the engines prefill a purpose's prompts; the dense answers are recorded once per run."""
        seed = self.seed(purpose)
        recorded = self.state.references.get((purpose, seed))
        known = None if recorded is None else self.run.files.get_json(recorded)
        began = time.monotonic()
        results = await self._doing(
            f"{purpose} items",
            "prefill and dense reference",
            lambda: self.executor.reference(purpose, seed, known),
        )
        if purpose == "search":
            self.prefill_seconds = float(results.get("prefill_seconds", 0.0))
        if recorded is None:
            name = self.run.files.put_json(results)
            self.record(ev.ReferenceMeasured(purpose, seed, name, time.monotonic() - began))

    async def _doing(self, what: str, stage: str, work: Callable[[], Awaitable[_T]]) -> _T:
        """Something that an executor does, for those who look, and held back once the campaign is to stop."""
        async with self.drain.work():
            self.running[what, stage] = time.time()
            try:
                return await work()
            finally:
                self.running.pop((what, stage), None)

    async def evaluate(
        self, candidate: Candidate, purpose: ev.Purpose, *, late: Callable[[], bool] = lambda: False
    ) -> None:
        """Run the stages that have no result yet; the first that does not pass is the last.

        A stage that cannot be run, for failures that are not the candidate's, leaves it unfinished until the next
        session.
        """
        flow = self.flow(candidate)
        done = candidate.results.get(purpose, {})
        waiting = [stage for stage in self.executor.stages(purpose) if stage not in done]
        passed = all(result.passed for result in done.values())
        if not passed or not waiting:
            self.record(self._finished(candidate, purpose, passed))
            return
        first = next((i for i, s in enumerate(waiting) if self.executor.needs_engine(s)), len(waiting))
        clock = asyncio.get_running_loop().time
        began = clock()
        passed = await self._stages(candidate, flow, purpose, waiting, waiting[:first])
        if passed and waiting[first:]:
            if first:
                self.supply.came(clock() - began)
            async with self.turns:
                if not late():
                    began = clock()
                    await self._stages(candidate, flow, purpose, waiting, waiting[first:])
                    self.supply.held(clock() - began)

    def _finished(self, candidate: Candidate, purpose: ev.Purpose, passed: bool) -> ev.CandidateFinished:
        return ev.CandidateFinished(candidate.key, purpose, self.seed(purpose), passed)

    async def _stages(
        self,
        candidate: Candidate,
        flow: Flow,
        purpose: ev.Purpose,
        waiting: Sequence[str],
        names: Sequence[str],
    ) -> bool:
        """Run some of the waiting stages in order, until one does not pass or cannot be run; returns whether all
        passed. The result that is the last one ends the candidate in the same append."""
        for stage in names:
            ran = await self._run(stage, flow, purpose)
            if ran is None:
                return False
            result, seed, passed = ran.result.to_json(), self.seed(purpose), ran.result.passed
            found = ev.StageFinished(candidate.key, purpose, stage, seed, result, ran.worker, ran.doubled)
            over = not passed or stage == waiting[-1]
            self.record(found, *([self._finished(candidate, purpose, passed)] if over else []))
            if not passed:
                return False
        return True

    async def _run(self, stage: str, flow: Flow, purpose: ev.Purpose) -> StageRun | None:
        """One stage, again after infrastructure failures where another try makes sense.

        Returns:
            Its result; or None where there is none because of failures that are not the candidate's. Who kills
            every new worker is to blame.

        Raises:
            VortexError: what only a person can mend, or what ended too many candidates (`VS018`).
        """
        tries = self.config.cluster.retries + 1
        timeouts = deaths = 0
        label = self.state.candidates[flow.key].label
        began = time.monotonic()
        for attempt in range(tries):
            began, lost_one = time.monotonic(), False
            try:
                ran = await self._doing(
                    label, stage, lambda: self.executor.run_stage(stage, flow, self.seed(purpose))
                )
            except WorkerLostError as lost:
                error, lost_one = lost.error, True
                timeouts, deaths = timeouts + lost.timed_out, deaths + lost.died
            except VortexError as found:  # what the stage needs could not be made ready
                if found.fault != "infrastructure":
                    raise
                error = found
            else:
                self.breaker.survived(stage)
                failure = ran.result.failure
                if failure is None or failure.kind == "candidate":
                    return ran
                error = VortexError.from_json(failure.error)
                if error.fault != "infrastructure":
                    raise error
            self.record(ev.InfrastructureFailed(flow.key, purpose, stage, attempt, error.to_json()))
            # Another worker takes a lost one's place, so another try makes sense whatever the error says.
            if timeouts == 2 or not (lost_one or error.retryable):
                break
        if timeouts < 2 and deaths < tries:
            self.record(ev.CandidateAbandoned(flow.key, purpose, stage, error.to_json()))
            self.breaker.abandoned(label, error)
            return None
        if timeouts == 2:
            blamed = deadline_passed(stage, self.config.cluster.deadline_of(stage))
        else:
            self.breaker.killed(label, stage, error)
            blamed = worker_killer(stage, tries, error.message)
        seconds = time.monotonic() - began
        return StageRun(StageResult(stage, passed=False, failure=Failure.of(blamed), seconds=seconds))

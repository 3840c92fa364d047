"""The state of a campaign as a fold of its events: proposals, candidates, results, spending, time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from evaluators.results import Metric, StageResult
from search.log import events as ev
from search.log.files import ContentStore
from search.log.store import Record
from vortex_core.ir.flow import Flow

Outcome = Literal["open", "failed", "rejected", "duplicate", "admitted"]
Status = Literal["waiting", "passed", "failed", "infrastructure"]
"""Of a candidate. `infrastructure`: given up until the next session, for a failure that was not its own."""


@dataclass
class Proposal:
    """One ask and what became of it. `number` counts the asks of its arm from 0; a repair has its root's."""

    id: int
    arm: str
    number: int
    request: str
    parents: tuple[str, ...]
    seed: int
    proposer: str
    repairs: int | None
    depth: int = 0
    source: str | None = None
    idea: str = ""
    outcome: Outcome = "open"
    key: str | None = None
    error: dict[str, Any] | None = None
    repaired: bool = False
    answered_by: str = ""
    dollars: float | None = None


@dataclass
class Candidate:
    """A distinct program with its knobs, and every result it has.

    Attributes:
        number: 1, 2, 3 ... in order of admission; how people name it.
        results: by purpose, then by stage, in the order they were run.
        finished: by purpose, whether it passed.
        seeds: by purpose, of the items it was measured on.
        abandoned: by purpose, where and why this session gave it up: a failure that is not its own.
    """

    number: int
    key: str
    ir_hash: str
    name: str
    doc: str
    source: str
    program: str
    knobs: dict[str, Any]
    reference: bool
    proposal: int | None
    arm: str
    parents: tuple[str, ...]
    idea: str
    proposer: str
    admitted_at: float
    results: dict[ev.Purpose, dict[str, StageResult]] = field(default_factory=dict)
    finished: dict[ev.Purpose, bool] = field(default_factory=dict)
    seeds: dict[ev.Purpose, int] = field(default_factory=dict)
    abandoned: dict[ev.Purpose, ev.CandidateAbandoned] = field(default_factory=dict)
    finished_at: float | None = None

    def flow(self, files: ContentStore) -> Flow:
        """The flow itself, verified again.

        Raises:
            VortexError: what this version's verifier finds wrong with it.
        """
        data = {
            "name": self.name,
            "program": files.get_json(self.program),
            "knobs": self.knobs,
            "doc": self.doc,
        }
        return Flow.from_json(data)

    @property
    def label(self) -> str:
        """How people and files name it, e.g. `c012`."""
        return f"c{self.number:03d}"

    def stages(self, purpose: ev.Purpose = "search") -> Iterator[StageResult]:
        """Results for one purpose, in the order they were run."""
        yield from self.results.get(purpose, {}).values()

    def metrics(self, purpose: ev.Purpose = "search") -> dict[str, Metric]:
        """Metrics of all stages run for one purpose; a later stage refines an earlier one's."""
        return {name: metric for result in self.stages(purpose) for name, metric in result.metrics.items()}

    def items(self, purpose: ev.Purpose = "search") -> dict[str, list[float]]:
        """Per-item outcomes by task; the last stage that answered a task counts."""
        return {task: scores for result in self.stages(purpose) for task, scores in result.items.items()}

    def info(self) -> dict[str, Any]:
        """Side information by stage, for agents and people."""
        return {result.stage: result.info for result in self.stages() if result.info}

    @property
    def devices(self) -> set[str]:
        """What its stages were measured on, in words; empty where nothing needed an engine."""
        found = (r.info.get("measured_on") for results in self.results.values() for r in results.values())
        return {str(label) for label in found if label}

    def status(self, purpose: ev.Purpose = "search") -> Status:
        """How far it got."""
        if purpose not in self.finished:
            return "infrastructure" if purpose in self.abandoned else "waiting"
        return "passed" if self.finished[purpose] else "failed"

    @property
    def is_dense(self) -> bool:
        """Whether it is the library's dense attention: measured to be compared with, never a beginning."""
        return self.reference and self.name.split()[0] == "dense"

    @property
    def failure(self) -> StageResult | None:
        """The stage that stopped it, if one did."""
        return next((result for result in self.stages() if not result.passed), None)

    @property
    def ended(self) -> str:
        """What kept it from being measured in the search, in words; empty if nothing did."""
        if self.failure is not None:
            return f"stopped at {self.failure.stage}"
        given_up = self.abandoned.get("search")
        return "" if given_up is None else f"given up at {given_up.stage}, not its fault"


@dataclass
class Spending:
    """What one proposer used. `unpriced` counts calls whose price is unknown; they are not free."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float = 0.0
    unpriced: int = 0
    proposals: int = 0
    failures: int = 0
    seconds: float = 0.0

    def add(self, e: ev.Proposed | ev.ProposalFailed) -> None:
        """Count what one call used."""
        self.calls += e.calls
        self.input_tokens += e.input_tokens
        self.output_tokens += e.output_tokens
        self.seconds += e.seconds
        if e.dollars is not None:
            self.dollars += e.dollars
        else:
            self.unpriced += e.calls


@dataclass
class StageTime:
    """Wall time spent in one stage."""

    runs: int = 0
    seconds: float = 0.0
    stopped: int = 0


class CampaignState:
    """Folded events. `apply` is the only way it changes.

    Attributes:
        devices: what engines of any session ran on, each once.
        busy: seconds of stages by engine.
        twins: keys of library programs that ran under a winner's knobs: references that came from the search.
        failed: candidates that a stage stopped while searching, in the order they finished.
        without_new: proposals closed since the last one that brought a new candidate.
        finished_found: found candidates that are done with the search's stages.
    """

    def __init__(self) -> None:
        self.started: ev.CampaignStarted | None = None
        self.started_at = 0.0
        self.limits: dict[str, Any] = {}
        self.sessions = 0
        self.proposals: dict[int, Proposal] = {}
        self.candidates: dict[str, Candidate] = {}
        self.references: dict[tuple[ev.Purpose, int], str] = {}
        self.spending: dict[str, Spending] = {}
        self.stage_time: dict[str, StageTime] = {}
        self.infrastructure: list[ev.InfrastructureFailed] = []
        self.proposer_failures_in_a_row = 0
        self.finalists: tuple[str, ...] | None = None
        self.matched: ev.MatchedChosen | None = None
        self.winner: ev.WinnerChosen | None = None
        self.finished: ev.CampaignFinished | None = None
        self.devices: list[dict[str, Any]] = []
        self.busy: dict[str, float] = {}
        self.twins: set[str] = set()
        self.failed: list[Candidate] = []
        self.without_new = 0
        self.finished_found = 0
        self.seq = 0
        self._programs: set[str] = set()
        self._asks: dict[str, int] = {}
        self._active = 0.0
        self._session_start = 0.0
        self._last_time = 0.0

    @classmethod
    def fold(cls, records: Iterable[Record]) -> CampaignState:
        """The state after `records`."""
        state = cls()
        for record in records:
            state.apply(record)
        return state

    @property
    def untouched(self) -> bool:
        """Whether nothing was asked or admitted yet: the run may still start with other settings."""
        return not self.candidates and not self.proposals

    @property
    def active_seconds(self) -> float:
        """Time some driver was working on the run, up to the last event; pauses do not count."""
        return self._active + self._last_time - self._session_start

    @property
    def dollars(self) -> float:
        """Money spent on proposers whose price is known."""
        return sum(s.dollars for s in self.spending.values())

    @property
    def found(self) -> list[Candidate]:
        """Candidates that were proposed, not given as references."""
        return [c for c in self.candidates.values() if not c.reference]

    @property
    def distinct_programs(self) -> int:
        """Different canonical programs among the finished candidates that were proposed."""
        return len(self._programs)

    def asks(self, arm: str) -> int:
        """How often an arm was asked, repairs not counted."""
        return self._asks.get(arm, 0)

    def root(self, proposal: Proposal) -> Proposal:
        """The ask that a chain of repairs began with."""
        while proposal.repairs is not None:
            proposal = self.proposals[proposal.repairs]
        return proposal

    def apply(self, record: Record) -> None:
        """Fold one event in. Records come in order and without gaps."""
        assert record.seq == self.seq + 1, f"event {record.seq} after {self.seq}"
        self.seq = record.seq
        match record.event:
            case ev.CampaignStarted() as e:
                self.started, self.started_at = e, record.time
                self._session_start, self._last_time, self._active, self.sessions = (
                    record.time,
                    record.time,
                    0,
                    0,
                )
            case ev.SessionStarted(limits=limits):
                if self.sessions:
                    self._active += self._last_time - self._session_start
                    self._session_start = record.time
                self.sessions += 1
                self.limits = limits
                self.proposer_failures_in_a_row = 0
                self.finished = None
                for candidate in self.candidates.values():
                    candidate.abandoned.clear()
            case ev.EnginesStarted(devices=devices):
                self.devices += [d for d in devices if d not in self.devices]
            case ev.ReferenceMeasured() as e:
                self.references[e.purpose, e.seed] = e.content
                self._timed("prefill and dense reference", e.seconds)
            case ev.Asked() as e:
                self._asked(e)
            case ev.Proposed() as e:
                self._proposed(e)
            case ev.ProposalFailed() as e:
                proposal = self.proposals[e.proposal]
                proposal.outcome, proposal.error = "failed", e.error
                self.proposer_failures_in_a_row += 1
                self.without_new += 1
                proposal.answered_by, proposal.dollars = e.proposer, e.dollars
                spending = self.spending.setdefault(e.proposer or proposal.proposer, Spending())
                spending.add(e)
                spending.failures += 1
            case ev.Rejected() as e:
                proposal = self.proposals[e.proposal]
                proposal.outcome, proposal.error = "rejected", e.error
                self.without_new += 1
                self._timed("trace", e.seconds, stopped=True)
            case ev.Duplicate() as e:
                proposal = self.proposals[e.proposal]
                proposal.outcome, proposal.key = "duplicate", e.key
                self.without_new += 1
            case ev.Admitted() as e:
                self._admitted(e, record.time)
            case ev.StageFinished() as e:
                result = StageResult.from_json(e.result)
                self.candidates[e.key].results.setdefault(e.purpose, {})[e.stage] = result
                self.candidates[e.key].seeds[e.purpose] = e.seed
                if e.worker:
                    self.busy[e.worker] = self.busy.get(e.worker, 0.0) + result.seconds
                name = e.stage if e.purpose == "search" else f"{e.stage} ({e.purpose})"
                self._timed(name, result.seconds, stopped=not result.passed)
            case ev.CandidateFinished() as e:
                candidate = self.candidates[e.key]
                candidate.finished[e.purpose] = e.passed
                if e.purpose == "search":
                    candidate.finished_at = record.time
                    if not e.passed:
                        self.failed.append(candidate)
                    if not candidate.reference:
                        self._programs.add(candidate.ir_hash)
                        self.finished_found += 1
                        # A run that is taken further has new elites to choose from.
                        self.finalists = self.winner = self.matched = None
            case ev.InfrastructureFailed() as e:
                self.infrastructure.append(e)
            case ev.CandidateAbandoned() as e:
                self.candidates[e.key].abandoned[e.purpose] = e
            case ev.FinalistsChosen(keys=keys):
                self.finalists = keys
            case ev.MatchedChosen() as e:
                self.matched = e
                if self.candidates[e.key].status() == "waiting":
                    self.twins.add(e.key)
            case ev.WinnerChosen() as e:
                self.winner = e
            case ev.CampaignFinished() as e:
                self.finished = e
            case ev.CampaignPaused():
                pass
            case _:
                raise AssertionError(f"event {record.event.kind} is not folded")
        self._last_time = record.time

    def _asked(self, e: ev.Asked) -> None:
        if e.repairs is None:
            number, depth = self._asks.get(e.arm, 0), 0
            self._asks[e.arm] = number + 1
        else:
            repaired = self.proposals[e.repairs]
            repaired.repaired = True
            number, depth = repaired.number, repaired.depth + 1
        self.proposals[e.proposal] = Proposal(
            e.proposal, e.arm, number, e.request, e.parents, e.seed, e.proposer, e.repairs, depth
        )

    def _proposed(self, e: ev.Proposed) -> None:
        proposal = self.proposals[e.proposal]
        proposal.source, proposal.idea = e.source, e.idea
        proposal.answered_by, proposal.dollars = e.proposer, e.dollars
        self.proposer_failures_in_a_row = 0
        self.spending.setdefault(e.proposer, Spending()).add(e)
        self.spending[e.proposer].proposals += 1
        self._timed("propose", e.seconds)

    def _admitted(self, e: ev.Admitted, when: float) -> None:
        proposal = None if e.proposal is None else self.proposals[e.proposal]
        if proposal is not None:
            proposal.outcome, proposal.key = "admitted", e.key
            self.without_new = 0
            self._timed("trace", e.seconds)
        assert e.key not in self.candidates, f"{e.key} admitted twice"
        self.candidates[e.key] = Candidate(
            number=len(self.candidates) + 1,
            key=e.key,
            ir_hash=e.ir_hash,
            name=e.name,
            doc=e.doc,
            source=e.source,
            program=e.program,
            knobs=e.knobs,
            reference=e.reference,
            proposal=e.proposal,
            arm=proposal.arm if proposal else "library",
            parents=proposal.parents if proposal else (),
            idea=proposal.idea if proposal else "",
            proposer=proposal.proposer if proposal else "library",
            admitted_at=when,
        )

    def _timed(self, stage: str, seconds: float, *, stopped: bool = False) -> None:
        spent = self.stage_time.setdefault(stage, StageTime())
        spent.runs += 1
        spent.seconds += seconds
        spent.stopped += stopped

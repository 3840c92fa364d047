"""The state of a campaign as a fold of its events: proposals, candidates, results, spending, time."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import Any

from evaluators.results import StageResult
from search.log import events as ev
from search.log.entries import SEARCHING as SEARCHING
from search.log.entries import Candidate as Candidate
from search.log.entries import Part as Part
from search.log.entries import Proposal as Proposal
from search.log.entries import Spending as Spending
from search.log.entries import StageTime as StageTime
from search.log.store import Record

USER = "user"
"""The arm of programs that a user handed in while a campaign ran."""

_OF_THE_SOFTWARE = ("weights", "versions")


class CampaignState:
    """Folded events. `apply` is the only way it changes.

    Attributes:
        devices: what engines of any session ran on, each once.
        busy: seconds of stages by engine.
        twins: keys of library programs that ran under a winner's knobs: references that came from the search.
        failed: candidates that a stage stopped while searching, in the order they finished.
        without_new: proposals closed since the last one that brought a new candidate.
        finished_found: found candidates that are done with the search's stages.
        screened: found candidates that are done with the screen.
        peers: the library's programs that the winner is compared with at equal cost.
        parts: what each session measured on.
        gpu_seconds: time that GPUs were held by engines, up to the last event.
        engines: engines at work as far as the log says, by name; those that came with a session have numbers.
        held_gpus: GPUs that they hold.
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
        self.peers: ev.PeersConsidered | None = None
        self.winner: ev.WinnerChosen | None = None
        self.finished: ev.CampaignFinished | None = None
        self.devices: list[dict[str, Any]] = []
        self.busy: dict[str, float] = {}
        self.twins: set[str] = set()
        self.failed: list[Candidate] = []
        self.without_new = 0
        self.finished_found = 0
        self.screened = 0
        self._screened_programs: set[str] = set()
        self.parts: list[Part] = []
        self.gpu_seconds = 0.0
        self.engines: dict[str, dict[str, Any]] = {}
        self.held_gpus = 0
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
        # What a fold makes it keeps: looking for cycles in it meanwhile finds nothing, again and again.
        collecting = gc.isenabled()
        gc.disable()
        try:
            for record in records:
                state.apply(record)
        finally:
            if collecting:
                gc.enable()
        return state

    @property
    def untouched(self) -> bool:
        """Whether nothing was asked or admitted yet: the run may still start with other settings."""
        return not self.candidates and not self.proposals

    @property
    def active_seconds(self) -> float:
        """Time some driver was working on the run, up to the last event; pauses do not count."""
        return self._active + max(0.0, self._last_time - self._session_start)

    @property
    def dollars(self) -> float:
        """Money spent on proposers whose price is known."""
        return sum(s.dollars for s in self.spending.values())

    @property
    def tokens(self) -> int:
        """Tokens in and out of all calls, those of lost ones at most."""
        return sum(s.input_tokens + s.output_tokens + s.lost_tokens for s in self.spending.values())

    @property
    def calls(self) -> int:
        """Calls of language models, lost ones included."""
        return sum(s.calls for s in self.spending.values())

    @property
    def found(self) -> list[Candidate]:
        """Candidates that were proposed, not given as references."""
        return [c for c in self.candidates.values() if not c.reference]

    @property
    def distinct_programs(self) -> int:
        """Different canonical programs among the finished candidates that were proposed."""
        return len(self._programs)

    @property
    def screened_programs(self) -> int:
        """Different canonical programs among the candidates that were proposed and screened."""
        return len(self._screened_programs)

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
        # Older logs were written by clocks that may have been set back: no time ever passes twice, or not at all.
        now = max(record.time, self._last_time)
        self.gpu_seconds += self.held_gpus * (now - self._last_time)
        match record.event:
            case ev.CampaignStarted() as e:
                self.started, self.started_at = e, record.time
                self._session_start, self._active, self.sessions = now, 0, 0
            case ev.SessionStarted(limits=limits) as e:
                if self.sessions:
                    self._active += max(0.0, self._last_time - self._session_start)
                    self.gpu_seconds -= self.held_gpus * (now - self._last_time)  # nobody held them meanwhile
                    self._session_start = now
                self.sessions += 1
                self.engines, self.held_gpus = {}, 0
                versions = e.versions or (self.started.versions if self.started and not self.parts else {})
                machine = e.machine or (self.started.machine if self.started and not self.parts else {})
                self.parts.append(Part(self.sessions, versions, machine))
                self.limits = limits
                self.proposer_failures_in_a_row = 0
                self.finished = None
                for candidate in self.candidates.values():
                    candidate.abandoned.clear()
                for proposal in self.proposals.values():
                    for call in proposal.booked:
                        self.spending.setdefault(call.proposer, Spending()).lose(call)
                    proposal.booked.clear()
            case ev.EnginesStarted(devices=devices):
                for number, device in enumerate(devices):
                    self._engine(device.get("worker") or str(number), device)
            case ev.EngineJoined(device=device, worker=worker):
                self._engine(worker, device)
            case ev.EngineLeft(worker=worker):
                self.held_gpus -= _gpus(self.engines.pop(worker, {}))
            case ev.ReferenceMeasured() as e:
                self.references[e.purpose, e.seed] = e.content
                self._timed("prefill and dense reference", e.seconds)
            case ev.Asked() as e:
                self._asked(e)
            case ev.CallBooked() as e:
                self.proposals[e.proposal].booked.append(e)
            case ev.Mended() as e:
                proposal = self.proposals[e.proposal]
                proposal.written = proposal.source or ""
                proposal.source, proposal.mended = e.source, e.codes
            case ev.Proposed() as e:
                self._proposed(e)
            case ev.ProposalFailed() as e:
                proposal = self.proposals[e.proposal]
                proposal.outcome, proposal.error = "failed", e.error
                if e.error.get("fault") != "budget":  # who found nothing new is not broken
                    self.proposer_failures_in_a_row += 1
                self.without_new += 1
                proposal.answered_by, proposal.dollars, proposal.change = e.proposer, e.dollars, e.change
                proposal.booked.clear()
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
                self._measured(self.candidates[e.key], e.purpose)
                if e.worker:
                    self.busy[e.worker] = self.busy.get(e.worker, 0.0) + result.seconds
                name = e.stage if e.purpose == "search" else f"{e.stage} ({e.purpose})"
                self._timed(name, result.seconds, stopped=not result.passed, doubled=e.doubled)
            case ev.CandidateFinished() as e:
                candidate = self.candidates[e.key]
                candidate.finished[e.purpose] = e.passed
                if e.purpose == "screen" and not candidate.reference:
                    self.screened += 1
                    self._screened_programs.add(candidate.ir_hash)
                    if not e.passed:
                        self.failed.append(candidate)
                if e.purpose == "search":
                    candidate.finished_at = record.time
                    if not e.passed:
                        self.failed.append(candidate)
                    if not candidate.reference:
                        self._programs.add(candidate.ir_hash)
                        self.finished_found += 1
                        # A run that is taken further has new elites to choose from. What the finals themselves had
                        # measured, a twin that the search had screened and left, is no reason to choose again.
                        if self.matched is None or e.key != self.matched.key:
                            self.finalists = self.winner = self.matched = self.peers = None
            case ev.Promoted() as e:
                self.candidates[e.key].promoted.append(e.purpose)
            case ev.PeersConsidered() as e:
                self.peers = e
                self.twins.update(k for k in e.keys if self.candidates[k].status("screen") == "waiting")
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
                self.finished, self.engines, self.held_gpus = e, {}, 0
            case ev.CampaignPaused():
                self.engines, self.held_gpus = {}, 0
            case _:
                raise AssertionError(f"event {record.event.kind} is not folded")
        self._last_time = now

    def _engine(self, name: str, device: dict[str, Any]) -> None:
        """An engine is at work."""
        self.held_gpus += _gpus(device) - _gpus(self.engines.get(name, {}))
        self.engines[name] = device
        if self.parts:
            self.parts[-1].add({k: v for k, v in device.items() if k != "worker"})
        plain = {k: v for k, v in device.items() if k not in _OF_THE_SOFTWARE and k != "worker"}
        if plain not in self.devices:
            self.devices.append(plain)

    def _measured(self, candidate: Candidate, purpose: ev.Purpose) -> None:
        if self.parts:
            self.parts[-1].results += 1
            known = candidate.parts.get(purpose, ())
            if self.parts[-1].session not in known:
                candidate.parts[purpose] = (*known, self.parts[-1].session)

    def _asked(self, e: ev.Asked) -> None:
        if e.repairs is None:
            number, depth = self._asks.get(e.arm, 0), 0
            self._asks[e.arm] = number + 1
        else:
            repaired = self.proposals[e.repairs]
            repaired.repaired = True
            number, depth = repaired.number, repaired.depth + 1
        self.proposals[e.proposal] = Proposal(
            e.proposal, e.arm, number, e.request, e.parents, e.seed, e.proposer, e.repairs, depth,
            point=e.point, by=e.by,
        )  # fmt: skip

    def _proposed(self, e: ev.Proposed) -> None:
        proposal = self.proposals[e.proposal]
        proposal.source, proposal.idea = e.source, e.idea
        proposal.words = tuple(name for name in (e.prompt, e.reply) if name)
        proposal.answered_by, proposal.dollars, proposal.change = e.proposer, e.dollars, e.change
        proposal.booked.clear()
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
            cell=e.cell,
            size=e.size,
        )

    def _timed(self, stage: str, seconds: float, *, stopped: bool = False, doubled: bool = False) -> None:
        spent = self.stage_time.setdefault(stage, StageTime())
        spent.doubled += doubled
        spent.runs += 1
        spent.seconds += seconds
        spent.stopped += stopped


def _gpus(device: dict[str, Any]) -> int:
    """GPUs that an engine holds."""
    return int(device.get("ranks", 1)) if device.get("kind") == "cuda" else 0

"""What a campaign's state consists of: proposals, candidates with their results, spending, and parts of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from evaluators.results import Metric, StageResult
from search.log import events as ev
from search.log.files import ContentStore
from vortex_core.ir.flow import Flow
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import Program
from vortex_core.text import visible, visible_lines

Outcome = Literal["open", "failed", "rejected", "duplicate", "admitted"]
Status = Literal["waiting", "passed", "failed", "infrastructure"]
"""Of a candidate. `infrastructure`: given up until the next session, for a failure that was not its own."""


SEARCHING: tuple[ev.Purpose, ...] = ("screen", "full_screen", "search")
"""What a search measures for, the cheapest first; what comes after must not steer it."""


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
    point: tuple[float, ...] = ()
    by: str = ""
    words: tuple[str, ...] = ()
    change: str = ""
    booked: list[ev.CallBooked] = field(default_factory=list)
    mended: tuple[str, ...] = ()
    written: str = ""


@dataclass
class Candidate:
    """A distinct program with its knobs, and every result it has.

    Attributes:
        number: 1, 2, 3 ... in order of admission; how people name it.
        results: by purpose, then by stage, in the order they were run.
        finished: by purpose, whether it passed.
        seeds: by purpose, of the items it was measured on.
        parts: by purpose, numbers of the sessions that measured it, in order.
        abandoned: by purpose, where and why this session gave it up: a failure that is not its own.
        promoted: to which dearer measurements the screen sent it.
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
    cell: str = ""
    size: int = 0
    results: dict[ev.Purpose, dict[str, StageResult]] = field(default_factory=dict)
    finished: dict[ev.Purpose, bool] = field(default_factory=dict)
    seeds: dict[ev.Purpose, int] = field(default_factory=dict)
    parts: dict[ev.Purpose, tuple[int, ...]] = field(default_factory=dict)
    abandoned: dict[ev.Purpose, ev.CandidateAbandoned] = field(default_factory=dict)
    promoted: list[ev.Purpose] = field(default_factory=list)
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

    def flow_of(self, program: Program) -> Flow:
        """The flow itself, where its program was read and verified already.

        Raises:
            VortexError: what this version finds wrong with its knobs.
        """
        return Flow(visible(self.name, 100), program, Knobs.from_json(self.knobs), visible_lines(self.doc))

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
        found = (result for purpose in SEARCHING for result in self.stages(purpose))
        return {result.stage: result.info for result in found if result.info}

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
        """The stage that stopped it, if one did, while it was screened or searched over."""
        found = (r for purpose in SEARCHING for r in self.stages(purpose))
        return next((result for result in found if not result.passed), None)

    @property
    def ended(self) -> str:
        """What kept it from being measured in the search, in words; empty if nothing did."""
        if self.failure is not None:
            return f"stopped at {self.failure.stage}"
        given_up = self.abandoned.get("search")
        return "" if given_up is None else f"given up at {given_up.stage}, not its fault"


@dataclass
class Spending:
    """What one proposer used. `unpriced` counts calls whose price is unknown; they are not free.

    Attributes:
        lost: calls whose answer a crash swallowed, counted in `calls` and `dollars` as the most they can have taken.
        lost_tokens: the most tokens of those, in no other count.
    """

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float = 0.0
    unpriced: int = 0
    proposals: int = 0
    failures: int = 0
    seconds: float = 0.0
    cached_tokens: int = 0
    lost: int = 0
    lost_tokens: int = 0

    def lose(self, booked: ev.CallBooked) -> None:
        """Count a call that was sent and whose answer never arrived."""
        self.calls += 1
        self.lost += 1
        self.lost_tokens += booked.tokens
        if booked.dollars is None:
            self.unpriced += 1
        else:
            self.dollars += booked.dollars

    def add(self, e: ev.Proposed | ev.ProposalFailed) -> None:
        """Count what one call used."""
        self.calls += e.calls
        self.input_tokens += e.input_tokens
        self.output_tokens += e.output_tokens
        self.cached_tokens += e.cached_tokens
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
    doubled: int = 0


@dataclass
class Part:
    """What one session measured on. Numbers of parts that differ in it stand in one table with a mark.

    Attributes:
        session: its number, from 1.
        versions: of the driver's libraries.
        machine: the driver's.
        engines: `search.machine.device_facts` of every engine that worked in it, each once, with `weights` and
            `versions` of its own.
        results: stages measured in it.
    """

    session: int
    versions: dict[str, str]
    machine: dict[str, Any]
    engines: list[dict[str, Any]] = field(default_factory=list)
    results: int = 0

    def add(self, device: dict[str, Any]) -> None:
        """An engine works in it."""
        if device and device not in self.engines:
            self.engines.append(device)

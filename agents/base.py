"""What a proposer is: a request in, one program's source out. Proposers never run the source they write."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from vortex_core.ir.flow import Flow
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import Program

RequestKind = Literal["seed", "mutate", "crossover", "repair", "diff", "tune", "invert", "simplify"]
CHANGES: tuple[RequestKind, ...] = ("mutate", "diff", "tune", "invert", "simplify")
"""Ways to change one parent: the whole program again, edits of it, its knobs alone, the opposite of what it assumes,
less of it."""
Booking = Callable[[str, int, "float | None"], None]
"""Called before a request is sent, with who is asked, and the most tokens and dollars it is expected to take."""
ALL_KINDS: frozenset[RequestKind] = frozenset(("seed", "crossover", "repair", *CHANGES))


@dataclass(frozen=True)
class Parent:
    """An evaluated program as a proposer sees it.

    Attributes:
        flow: program and knobs.
        source: vFlow source.
        metrics: `{name: {value, low, high, unit, how, ...}}`, as evaluators reported them.
        info: side information of the stages (per-head recall, bottleneck, worst task, ...).
    """

    flow: Flow
    source: str
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For people."""
        return self.flow.name

    @property
    def ir_hash(self) -> str:
        """Identity of the program."""
        return self.flow.ir_hash


@dataclass(frozen=True)
class FailedAttempt:
    """The program to repair, with the error as JSON (`VortexError.to_json`)."""

    source: str
    error: dict[str, Any]


@dataclass(frozen=True)
class Attempt:
    """A candidate that was tried and stopped.

    Attributes:
        key: identity of program and knobs: the same program under other knobs is another attempt.
        ir_hash: identity of the program.
        name: for people.
        idea: what its author said it tries.
        knobs: `Knobs.to_json()`.
        stage: where it stopped.
        code: of the error; attempts with one stage and code failed alike.
        reason: the error in words.
        metrics: what was measured before, by name.
    """

    key: str
    ir_hash: str
    name: str
    stage: str
    code: str
    reason: str
    idea: str = ""
    knobs: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Standing:
    """A candidate in one line: what it is and how it did.

    Attributes:
        name: for people.
        relation: what it is to the request: `best`, `library`, `ancestor` (the parent itself is the last), `child`.
        verdict: of the gates, or the stage and code that stopped it.
        idea: what its author said it tries.
        knobs: `Knobs.to_json()`.
        metrics: as `Parent.metrics`, only those that decide.
        note: what else to know when its numbers are set beside its parent's.
    """

    name: str
    relation: str
    verdict: str
    idea: str = ""
    knobs: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Lesson:
    """What results so far say about one kind of change.

    Attributes:
        text: the change and what came of it, in words.
        tried: children that made the change.
        helped: those of them that became better than their parent.
        confidence: that the change helps, from 0 to 1: `(helped + 1) / (tried + 2)`.
        evidence: names of the children, the latest last.
        source: the run it was learned in; empty for this one.
    """

    text: str
    tried: int
    helped: int
    confidence: float
    evidence: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True)
class Room:
    """What page states may take where every candidate has one page size.

    Attributes:
        tokens: of a page.
        channels: of a key.
        bytes: of the states of a page, per kv head.
    """

    tokens: int
    channels: int
    bytes: float


@dataclass(frozen=True)
class ProposalRequest:
    """One ask.

    Attributes:
        kind: `seed` (from nothing), `crossover` (two parents), `repair` (a failed attempt), or one of `CHANGES`. With a
            `point`, `tune` means the one parent's constants and dtypes there, for which no author is needed.
        parents: 0-2 parents.
        failed: set when `kind` is `repair`.
        seed: makes an offline proposer reproducible.
        model: name and dimensions of the model served, for the prompt.
        objective: what is being optimised and the accuracy gate, in words.
        ledger: the latest candidates that failed, the newest last.
        tried: keys of all candidates so far, good ones too.
        setting: where accuracy and speed are asked, what a byte and a launch cost there, and how far chance alone moves
            figures, in words.
        standings: the best so far, the library's, and the first parent's ancestors and children.
        lessons: what changes brought so far, the surest first.
        number: of the proposal in its campaign.
        book: told of every call before it is sent, so that no crash loses what was paid for.
        point: of the unit cube, where `kind` is `tune`.
        knobs: settings that every candidate of the campaign has, whatever a proposal says.
        fits: whether the campaign would look at a program: its states are small enough, its target serves it.
        room: the same as `fits` says of states, in bytes; None where page sizes differ or states have no bound.
        best: descriptions of the best so far, the best first.
        measured: descriptions of programs that keep the gates and the accuracy they had, in the order they came.
        under_way: what others were asked for and is not measured yet, in words.
        unanswered: asks shortly before this one that brought no program, and why.
    """

    kind: RequestKind
    seed: int
    parents: tuple[Parent, ...] = ()
    failed: FailedAttempt | None = None
    model: dict[str, Any] = field(default_factory=dict)
    objective: str = ""
    ledger: tuple[Attempt, ...] = ()
    tried: Collection[str] = frozenset()
    setting: str = ""
    standings: tuple[Standing, ...] = ()
    lessons: tuple[Lesson, ...] = ()
    number: int = 0
    book: Booking | None = None
    point: tuple[float, ...] = ()
    knobs: dict[str, Any] = field(default_factory=dict)
    fits: Callable[[Program, Knobs], bool] | None = None
    room: Room | None = None
    best: tuple[str, ...] = ()
    measured: Sequence[tuple[str, float]] = ()
    under_way: tuple[str, ...] = ()
    unanswered: tuple[str, ...] = ()


@dataclass(frozen=True)
class Usage:
    """Tokens and money of one proposal. `dollars` is None where the price is unknown ("unpriced"), never 0.
    `cached_tokens` are the part of `input_tokens` that the provider had in its cache."""

    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float | None = None
    calls: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class Proposal:
    """One program's source, what it tries, and what it cost.

    Attributes:
        prompt: what was asked, word for word, where words were asked; kept with the run.
        reply: the answer as it came.
        kind: what was asked in the end, where a caller let the proposer choose how to change a parent.
        flow: the program itself, where the proposer made it as IR: nothing untrusted ran, so nothing needs a jail.
    """

    source: str
    idea: str
    proposer: str
    usage: Usage = field(default_factory=Usage)
    prompt: str = ""
    reply: str = ""
    kind: str = ""
    flow: Flow | None = None


class Proposer(Protocol):
    """Writes programs. Implementations hold no campaign state.

    Derive from this class to get the defaults, or spell all of it out.

    Attributes:
        name: in logs and reports; a member's name is also what `Proposal.proposer` says.
        repairs: whether it can mend a refused program, that is, serves requests of kind `repair`.
        needs_language: whether it asks in words: its requests say where the search stands, its factory is given
            the language reference.
        changes: what a request of kind `mutate` may become instead (of `CHANGES`); empty: it knows only `mutate`.
        kinds: the requests that it serves.
    """

    name: str
    repairs: bool = True
    needs_language: bool = True
    changes: tuple[RequestKind, ...] = ()
    kinds: frozenset[RequestKind] = ALL_KINDS

    async def propose(self, request: ProposalRequest) -> Proposal:
        """One program for one request.

        Raises:
            VortexError: with a code that says whether retrying can help (missing key, refused, rate limit).
        """
        ...

    def prices(self) -> dict[str, Any]:
        """What calls cost by member, in dollars per million tokens, for the record; nothing by default."""
        return {}

    def tell(self, member: str, gain: float, dollars: float | None, kind: str = "") -> None:
        """Learn what a proposal brought; nothing by default.

        Args:
            member: who answered (`Proposal.proposer`, or `ProposerError.proposer`).
            gain: improvement it brought, at least 0, in any fixed unit; 0 for a failure.
            dollars: what it cost, None if unpriced.
            kind: what was asked (`Proposal.kind`).
        """
        return None  # noqa: RET501 - a default, not an abstract method

"""The typed events of a campaign. All a run knows is a fold of these; none is ever changed or removed.

An event is a frozen dataclass of JSON values with a stable `kind` and a `version`. Bodies never hold source
or programs: those are content-addressed texts (`search.log.files`), named here by their hash.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, ClassVar, Literal, TypeVar

from search.errors import bad_log
from vortex_core.text import visible

Purpose = Literal["screen", "full_screen", "search", "fresh", "holdout", "second", "serving"]
"""Why a candidate was measured: on recorded attention, in few layers or in more; to be searched over by its answers;
again on fresh seeds; once on the sealed set; once by a model that the search never saw; or inside SGLang."""

_KINDS: dict[str, type[Event]] = {}
_E = TypeVar("_E", bound="type[Event]")


class Event:
    """Base of all events."""

    kind: ClassVar[str]
    version: ClassVar[int] = 1

    def to_json(self) -> dict[str, Any]:
        """The body as plain JSON values."""
        return dict(self.__dict__)


def _event(kind: str, version: int = 1) -> Any:
    def add(cls: _E) -> _E:
        cls.kind, cls.version = kind, version
        assert kind not in _KINDS, kind
        _KINDS[kind] = cls
        return cls

    return add


@_event("campaign_started")
@dataclass(frozen=True)
class CampaignStarted(Event):
    """First event of a run.

    Attributes:
        settings: everything that decides what results mean (campaign, model, seed, proposers), resolved.
        plan: the evaluation plan as JSON.
        versions: of Python and the libraries that matter.
        machine: what it ran on.
    """

    run: str
    settings: dict[str, Any]
    plan: dict[str, Any]
    versions: dict[str, str]
    machine: dict[str, Any]


@_event("session_started", version=2)
@dataclass(frozen=True)
class SessionStarted(Event):
    """A driver process took the run up: the first time or again. `limits` and `proposers` (by arm) may differ between
    sessions.

    `versions` and `machine` are the driver's; empty in logs of version 1. `prices`: in dollars per million tokens, as
    they stood; `prompts`: identity of the templates.
    """

    pid: int
    limits: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    proposers: dict[str, str] = field(default_factory=dict)
    prices: dict[str, Any] = field(default_factory=dict)
    prompts: str = ""


@_event("engines_started")
@dataclass(frozen=True)
class EnginesStarted(Event):
    """What a session measures on: `search.machine.device_facts` of each engine."""

    devices: tuple[dict[str, Any], ...]


@_event("engine_joined")
@dataclass(frozen=True)
class EngineJoined(Event):
    """One more engine took up work while the campaign was running: what it runs on, and its name."""

    device: dict[str, Any]
    worker: str


@_event("engine_left")
@dataclass(frozen=True)
class EngineLeft(Event):
    """An engine is gone: its node was removed or drained, it died, or another campaign's share needed it.

    `waiting` says whether another one is asked for in its place; `error` is what was seen.
    """

    worker: str
    waiting: bool
    error: dict[str, Any]
    device: dict[str, Any] = field(default_factory=dict)


@_event("reference_measured")
@dataclass(frozen=True)
class ReferenceMeasured(Event):
    """Dense results per task, measured once; `content` names a JSON text."""

    purpose: Purpose
    seed: int
    content: str
    seconds: float


@_event("asked")
@dataclass(frozen=True)
class Asked(Event):
    """A strategy asked a proposer for a program. Written before the call is paid for.

    `point` and `by` are the strategy's own (`search.campaign.strategies.base.Ask`).
    """

    proposal: int
    arm: str
    request: str
    parents: tuple[str, ...]
    seed: int
    proposer: str
    repairs: int | None = None
    point: tuple[float, ...] = ()
    by: str = ""


@_event("call_booked")
@dataclass(frozen=True)
class CallBooked(Event):
    """A model is about to be asked: the most it is expected to take. Written before anything is sent, so that a call
    whose answer a crash swallowed is in the accounts; the answer's own event settles it."""

    proposal: int
    proposer: str
    tokens: int
    dollars: float | None = None


@_event("proposed")
@dataclass(frozen=True)
class Proposed(Event):
    """A proposer answered. `source` names a `.py` text; `dollars` is None where the price is unknown.

    `prompt` and `reply` name `.txt` texts of what was asked and answered, word for word; empty for proposers that
    are not asked in words. `change`: how a parent was changed, where the proposer could choose.
    """

    proposal: int
    source: str
    idea: str
    proposer: str
    seconds: float
    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float | None = None
    calls: int = 0
    prompt: str = ""
    reply: str = ""
    change: str = ""
    cached_tokens: int = 0


@_event("proposal_failed")
@dataclass(frozen=True)
class ProposalFailed(Event):
    """A proposer could not answer: not a candidate and never counted as one, but perhaps paid for. `proposer`: the
    member of an ensemble that failed; empty where the ask names who did."""

    proposal: int
    error: dict[str, Any]
    seconds: float
    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float | None = None
    calls: int = 0
    proposer: str = ""
    change: str = ""
    cached_tokens: int = 0


@_event("rejected")
@dataclass(frozen=True)
class Rejected(Event):
    """The source is not a legal flow: the tracer or the verifier refused it."""

    proposal: int
    error: dict[str, Any]
    seconds: float


@_event("mended")
@dataclass(frozen=True)
class Mended(Event):
    """The source was refused, and the replacements that the errors name made it legal: no one had to be asked.
    `source` names a `.py` text, `codes` are the errors'."""

    proposal: int
    source: str
    codes: tuple[str, ...]


@_event("duplicate")
@dataclass(frozen=True)
class Duplicate(Event):
    """The program and knobs were seen before; the results of `key` stand for it."""

    proposal: int
    key: str


@_event("admitted")
@dataclass(frozen=True)
class Admitted(Event):
    """A new candidate. `program` names a JSON text. References have `proposal` None and a library name.

    `cell` is what sort of program it is, `size` its operations: a resumed driver reads them here, not from programs.
    """

    key: str
    ir_hash: str
    name: str
    doc: str
    source: str
    program: str
    knobs: dict[str, Any]
    proposal: int | None = None
    reference: bool = False
    seconds: float = 0.0
    cell: str = ""
    size: int = 0


@_event("stage_finished", version=2)
@dataclass(frozen=True)
class StageFinished(Event):
    """One stage of one candidate. `result` is `StageResult.to_json()`; `worker` names the engine that ran it.

    `doubled`: it took so long that another worker was given the same, and this is the answer of the faster one.
    """

    key: str
    purpose: Purpose
    stage: str
    seed: int
    result: dict[str, Any]
    worker: str = ""
    doubled: bool = False


@_event("candidate_finished")
@dataclass(frozen=True)
class CandidateFinished(Event):
    """No stage is left to run for this purpose."""

    key: str
    purpose: Purpose
    seed: int
    passed: bool


@_event("promoted")
@dataclass(frozen=True)
class Promoted(Event):
    """A screened candidate goes on to a dearer measurement: the full screen, or answers."""

    key: str
    purpose: Purpose


@_event("infrastructure_failed")
@dataclass(frozen=True)
class InfrastructureFailed(Event):
    """A worker died or hung. Never a result: the stage runs again, here or in the next session."""

    key: str
    purpose: Purpose
    stage: str
    attempt: int
    error: dict[str, Any]


@_event("candidate_abandoned")
@dataclass(frozen=True)
class CandidateAbandoned(Event):
    """A stage failed on every try for reasons that are not the candidate's: it has no result. The next session tries
    again."""

    key: str
    purpose: Purpose
    stage: str
    error: dict[str, Any]


@_event("finalists_chosen")
@dataclass(frozen=True)
class FinalistsChosen(Event):
    """Who is measured again on fresh seeds, in order. A resumed run goes on with the same; written again, one longer,
    while none of the found ones keeps the gates."""

    keys: tuple[str, ...]


@_event("matched_chosen")
@dataclass(frozen=True)
class MatchedChosen(Event):
    """The best library program under the winner's knobs: tells a better program from better constants."""

    key: str
    library: str
    winner: str


@_event("peers_considered")
@dataclass(frozen=True)
class PeersConsidered(Event):
    """Library programs of at most the winner's state bytes, under its knobs: what it has to beat at equal cost."""

    keys: tuple[str, ...]
    winner: str


@_event("winner_chosen")
@dataclass(frozen=True)
class WinnerChosen(Event):
    """Chosen on fresh seeds, before the sealed set was looked at."""

    key: str
    library: str | None


@_event("campaign_paused")
@dataclass(frozen=True)
class CampaignPaused(Event):
    """The driver stopped on purpose (Ctrl-C, proposer down); the same command goes on."""

    reason: str
    error: dict[str, Any] | None = None


@_event("campaign_finished")
@dataclass(frozen=True)
class CampaignFinished(Event):
    """Budget reached and finals done. `summary` is the statement against library and control."""

    reason: str
    winner: str | None
    summary: dict[str, Any] = field(default_factory=dict)


_UPGRADES: dict[tuple[str, int], Callable[[dict[str, Any]], dict[str, Any]]] = {
    ("session_started", 1): lambda body: body | {"versions": {}, "machine": {}},
    ("stage_finished", 1): lambda body: body | {"doubled": False},
}
"""Steps from a version of an event's body to the next one. Logs keep what was written; readers take the steps."""


def from_json(kind: str, version: int, body: dict[str, Any], path: str = "") -> Event:
    """Rebuild an event.

    Raises:
        VortexError: `VS005`, for a kind, version or field that this version does not know.
    """
    cls = _KINDS.get(kind)
    if cls is None:
        raise bad_log(path, f"unknown event {kind!r}")
    if not isinstance(body, dict):
        raise bad_log(path, f"event {kind!r} is a {type(body).__name__}")
    for older in range(version, cls.version):
        if (kind, older) not in _UPGRADES:
            raise bad_log(
                path, f"event {kind!r} has version {version}, from which no step leads to {cls.version}"
            )
        body = _UPGRADES[kind, older](body)
    if version > cls.version:
        raise bad_log(path, f"event {kind!r} has version {version}, this version reads {cls.version}")
    rules, values = _rules(kind), {}
    for name, value in body.items():
        if name not in rules:
            raise bad_log(path, f"event {kind!r} has unknown fields {sorted(body.keys() - rules.keys())}")
        plain = rules[name]
        if plain is not None and not _is_plain(value, plain):
            raise bad_log(path, f"event {kind!r} says {visible(value, 40)} for {name}")
        values[name] = tuple(value) if isinstance(value, list) else value
    try:
        return cls(**values)
    except TypeError as error:
        raise bad_log(path, f"event {kind!r}: {error}") from error


_PLAIN: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}


@cache
def _rules(kind: str) -> dict[str, tuple[type, ...] | None]:
    """Fields of an event; of those that hold one text, truth or number, with the types they may have."""
    found: dict[str, tuple[type, ...] | None] = {}
    for field_ in fields(_KINDS[kind]):  # type: ignore[arg-type]  # dataclasses, see Event
        named, _, rest = str(field_.type).partition(" | ")
        plain = _PLAIN.get(named) if rest in ("", "None") else None
        found[field_.name] = (*plain, type(None)) if plain and rest else plain
    return found


def _is_plain(value: object, types: tuple[type, ...]) -> bool:
    """Whether a value is of these types. Numbers are what was counted and spent: none is negative or endless, or a
    forged log would give its run a budget of its own."""
    kind = type(value)  # a truth is no number
    return kind in types and (kind not in (int, float) or 0 <= value < 1e18)  # type: ignore[operator]


def kinds() -> dict[str, type[Event]]:
    """Every event class by its kind."""
    return dict(_KINDS)

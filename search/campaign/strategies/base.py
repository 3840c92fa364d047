"""The contract of a strategy. `search.testing.StrategyConformance` checks an implementation against it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from agents.base import RequestKind
from search.campaign.archive import Verdict
from vortex_core.configs import Strict

Outcome = Literal["asked", "scored", "stopped", "rejected", "duplicate"]


@dataclass(frozen=True)
class Ask:
    """What to ask for.

    Attributes:
        kind: of request.
        parents: keys of told candidates: none for `seed`, two for `crossover`, else one.
        seed: for an offline proposer.
        point: of the unit cube, for `tune`.
        by: which part of a strategy of several asks; comes back with the tells.
    """

    kind: RequestKind
    parents: tuple[str, ...]
    seed: int
    point: tuple[float, ...] = ()
    by: str = ""


@dataclass(frozen=True)
class Tell:
    """What became of an ask.

    Attributes:
        number: of the ask; None for a reference, which no one asked for.
        outcome: `asked` as soon as it is, `scored` with both axes, `stopped` by a stage, `rejected` by the tracer, or
            `duplicate` (of `key`, told before or still under way). A candidate that was measured better since is told
            again as `scored`: what was said of it before no longer counts.
        key: identity of program and knobs; empty if rejected.
        ir_hash: identity of the program; empty if rejected.
        accuracy: higher is better; None unless scored.
        speed: higher is better; None unless scored.
        verdict: of the gates.
        parents: keys it came from.
        low, high: interval of the accuracy; None where there is none.
        cell: what sort of program it is (`search.campaign.cells`): one that is best of its sort is kept.
        size: operations of the program.
        point: of the ask.
        by: of the ask.
        own: False where another part of a strategy of several asked.
    """

    number: int | None
    outcome: Outcome
    key: str = ""
    ir_hash: str = ""
    accuracy: float | None = None
    speed: float | None = None
    verdict: Verdict = Verdict.FAILED
    parents: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    cell: str = ""
    size: int = 0
    point: tuple[float, ...] = ()
    by: str = ""
    own: bool = True


class Strategy(Protocol):
    """Chooses requests.

    `ask(n)` depends on the seed, `n` and what was told, and changes nothing: asking twice gives the same
    answer, so a resumed campaign replays its tells and goes on as if it had never stopped.

    Attributes:
        name: as in campaign files.
        settings: the model of what a campaign file may say of it; its fields are the constructor's keywords.
    """

    name: str
    settings: type[Strict]

    def __init__(self, seed: int, **settings: Any) -> None:
        """Made with the campaign's seed and the fields of its settings."""

    def ask(self, number: int) -> Ask:
        """The `number`-th request, counted from 0."""
        ...

    def tell(self, told: Tell) -> None:
        """Learn what became of an ask. Tells arrive in the order of the event log, not of the asks."""
        ...


class NoSettings(Strict):
    """Of strategies that have none."""


def randomness(seed: int, number: int) -> random.Random:
    """Random numbers for one ask."""
    return random.Random(f"{seed}/{number}")


def proposal_seed(seed: int, number: int) -> int:
    """The seed that an ask passes on to its proposer; different for every ask."""
    return randomness(seed, number).getrandbits(31)


Axis = Literal["accuracy", "speed"]


@dataclass(frozen=True)
class Member:
    """A scored program in a population."""

    key: str
    ir_hash: str
    accuracy: float
    speed: float
    verdict: Verdict
    low: float
    high: float
    cell: str = ""
    size: int = 0

    @classmethod
    def of(cls, told: Tell) -> Member | None:
        """The member a tell stands for, if it has scores (a duplicate brings those of its first sight)."""
        if told.accuracy is None or told.speed is None:
            return None
        low = told.accuracy if told.low is None else told.low
        high = told.accuracy if told.high is None else told.high
        return cls(
            told.key, told.ir_hash, told.accuracy, told.speed, told.verdict, low, high, told.cell, told.size
        )

    def beats(self, other: Member, prefer: Axis = "speed") -> bool:
        """Whether it is the better one to go on from: verdict, then the preferred axis (accuracy if gates fail)."""
        if self.verdict is not other.verdict:
            return self.verdict < other.verdict
        if prefer == "accuracy" or self.verdict is Verdict.FAILED:
            return (self.accuracy, self.speed) > (other.accuracy, other.speed)
        return (self.speed, self.accuracy) > (other.speed, other.accuracy)

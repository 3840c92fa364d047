"""The contract of a strategy. `search.testing.StrategyConformance` checks an implementation against it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from agents.base import RequestKind
from search.campaign.archive import Verdict
from vortex_core.configs import Strict

Outcome = Literal["scored", "stopped", "rejected", "duplicate"]


@dataclass(frozen=True)
class Ask:
    """What to ask for.

    Attributes:
        kind: of request.
        parents: keys of told candidates: none for `seed`, one for `mutate`, two for `crossover`.
        seed: for an offline proposer.
    """

    kind: RequestKind
    parents: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class Tell:
    """What became of an ask.

    Attributes:
        number: of the ask; None for a reference, which no one asked for.
        outcome: `scored` with both axes, `stopped` by a stage, `rejected` by the tracer, or `duplicate`
            (of `key`, told before or still under way).
        key: identity of program and knobs; empty if rejected.
        ir_hash: identity of the program; empty if rejected.
        accuracy: higher is better; None unless scored.
        speed: higher is better; None unless scored.
        verdict: of the gates.
        parents: keys it came from.
    """

    number: int | None
    outcome: Outcome
    key: str = ""
    ir_hash: str = ""
    accuracy: float | None = None
    speed: float | None = None
    verdict: Verdict = Verdict.FAILED
    parents: tuple[str, ...] = ()


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


@dataclass(frozen=True)
class Member:
    """A scored program in a population."""

    key: str
    ir_hash: str
    accuracy: float
    speed: float
    verdict: Verdict

    @classmethod
    def of(cls, told: Tell) -> Member | None:
        """The member a tell stands for, if it has scores (a duplicate brings those of its first sight)."""
        if told.accuracy is None or told.speed is None:
            return None
        return cls(told.key, told.ir_hash, told.accuracy, told.speed, told.verdict)

    def beats(self, other: Member) -> bool:
        """Whether it is the better one to go on from: verdict first, then speed (accuracy if gates fail)."""
        if self.verdict is not other.verdict:
            return self.verdict < other.verdict
        if self.verdict is Verdict.FAILED:
            return (self.accuracy, self.speed) > (other.accuracy, other.speed)
        return (self.speed, self.accuracy) > (other.speed, other.accuracy)

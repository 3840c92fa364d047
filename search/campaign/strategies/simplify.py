"""Simplification: the smallest program that is statistically equal to the best.

A search leaves programs with parts that do nothing. What is left after taking them away is read, ported and believed
more easily, and often faster. Equal means: not surely worse than the program it began with, so that many small losses
do not add up to a large one.
"""

from __future__ import annotations

from pydantic import Field

from search.campaign.archive import Verdict
from search.campaign.strategies.base import Ask, Axis, Member, Tell, proposal_seed
from vortex_core.configs import Strict


class SimplifySettings(Strict):
    """See `SimplifyStrategy`."""

    patience: int = Field(8, ge=1)
    confidence: float = Field(0.25, ge=0, le=1)
    prefer: Axis = "accuracy"


class SimplifyStrategy:
    """Takes things away from the best program for as long as nothing is lost, then from the next best.

    Args:
        seed: of the campaign.
        patience: tries without a smaller equal program after which the next one's turn comes.
        confidence: part of the first program's interval that counts as equal.
        prefer: axis by which the best is chosen.
    """

    name = "simplify"
    settings = SimplifySettings

    def __init__(
        self, seed: int, *, patience: int = 8, confidence: float = 0.25, prefer: Axis = "accuracy"
    ) -> None:
        self.seed = seed
        self.patience = patience
        self.confidence = confidence
        self.prefer: Axis = prefer
        self._best: dict[str, Member] = {}
        self._done: set[str] = set()
        self._first: Member | None = None
        self._current: Member | None = None
        self._without = 0

    def ask(self, number: int) -> Ask:
        """See `Strategy`."""
        seed = proposal_seed(self.seed, number)
        if self._current is None:
            return Ask("seed", (), seed)
        return Ask("simplify", (self._current.key,), seed)

    def tell(self, told: Tell) -> None:
        """See `Strategy`."""
        if told.outcome == "asked":
            return
        member = Member.of(told)
        if member is None:
            self._best.pop(told.key, None)
        else:
            self._keep(member)
        mine = told.own and self._current is not None and told.parents == (self._current.key,)
        if mine and member is not None and self._equal(member):
            self._current, self._without = member, 0
            self._done.add(member.key)
        elif mine:
            self._without += 1
        if self._current is None or self._without >= self.patience:
            # What breaks the gates is not worth having smaller.
            left = [
                m for m in self._best.values() if m.key not in self._done and m.verdict is not Verdict.FAILED
            ]
            self._first = self._current = max(left, key=self._rank) if left else None
            self._without = 0
            if self._first is not None:
                self._done.add(self._first.key)

    def _equal(self, member: Member) -> bool:
        first, current = self._first, self._current
        assert first is not None
        assert current is not None
        bound = first.accuracy + self.confidence * (first.low - first.accuracy)
        return member.verdict <= first.verdict and member.size < current.size and member.accuracy >= bound

    def _keep(self, member: Member) -> None:
        self._best[member.key] = member
        if len(self._best) > 64:
            del self._best[min(self._best.values(), key=self._rank).key]

    def _rank(self, member: Member) -> tuple[int, float, str]:
        return -member.verdict, member.accuracy if self.prefer == "accuracy" else member.speed, member.key

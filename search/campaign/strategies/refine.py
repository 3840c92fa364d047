"""Sequential refinement: one chain that always changes its last improvement.

The simple baseline that evolution has to beat (2602.16805 finds that it often does not).
"""

from __future__ import annotations

from pydantic import Field

from search.campaign.strategies.base import Ask, Axis, Member, Tell, proposal_seed
from vortex_core.configs import Strict


class RefineSettings(Strict):
    """See `RefineStrategy`."""

    patience: int = Field(6, ge=1)
    prefer: Axis = "speed"


class RefineStrategy:
    """Mutate the best so far; after `patience` tells without improvement, start a new chain from nothing.

    Args:
        seed: of the campaign.
        patience: tells without improvement that end a chain.
        prefer: axis that decides between programs of one verdict.
    """

    name = "refine"
    settings = RefineSettings

    def __init__(self, seed: int, *, patience: int = 6, prefer: Axis = "speed") -> None:
        self.seed = seed
        self.patience = patience
        self.prefer: Axis = prefer
        self._current: Member | None = None
        self._without = 0

    def ask(self, number: int) -> Ask:
        """See `Strategy`."""
        seed = proposal_seed(self.seed, number)
        if self._current is None or self._without >= self.patience:
            return Ask("seed", (), seed)
        return Ask("mutate", (self._current.key,), seed)

    def tell(self, told: Tell) -> None:
        """See `Strategy`. The chain begins at the best reference."""
        if told.outcome == "asked":
            return
        member = Member.of(told)
        if self._current is not None and told.key == self._current.key:  # measured again, or stopped since
            self._current = member
            return
        own = told.number is not None and told.own
        restarting = own and self._without >= self.patience and not told.parents
        better = member is not None and (self._current is None or member.beats(self._current, self.prefer))
        if member is not None and (better or restarting):
            self._current, self._without = member, 0
        elif own:
            self._without += 1

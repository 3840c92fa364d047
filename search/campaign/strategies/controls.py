"""Controls: what a search must beat to be worth its name. Neither learns from what it found."""

from __future__ import annotations

from search.campaign.strategies.base import Ask, Axis, Member, NoSettings, Tell, proposal_seed
from vortex_core.configs import Strict


class BestOfNSettings(Strict):
    """See `BestOfNStrategy`."""

    prefer: Axis = "speed"


class BestOfNStrategy:
    """Independent changes to the best reference program: N samples, the best one counts.

    Args:
        seed: of the campaign.
        prefer: axis by which the best reference is chosen.
    """

    name = "best_of_n"
    settings = BestOfNSettings

    def __init__(self, seed: int, *, prefer: Axis = "speed") -> None:
        self.seed = seed
        self.prefer: Axis = prefer
        self._start: Member | None = None

    def ask(self, number: int) -> Ask:
        """See `Strategy`."""
        seed = proposal_seed(self.seed, number)
        if self._start is None:
            return Ask("seed", (), seed)
        return Ask("mutate", (self._start.key,), seed)

    def tell(self, told: Tell) -> None:
        """See `Strategy`. Only references move the starting point."""
        member = Member.of(told)
        if told.number is not None or member is None:
            return
        if self._start is None or member.beats(self._start, self.prefer):
            self._start = member


class RandomStrategy:
    """Every program grown from nothing.

    Args:
        seed: of the campaign.
    """

    name = "random"
    settings = NoSettings

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def ask(self, number: int) -> Ask:
        """See `Strategy`."""
        return Ask("seed", (), proposal_seed(self.seed, number))

    def tell(self, told: Tell) -> None:
        """See `Strategy`."""

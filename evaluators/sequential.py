"""Paired tests that may stop at any item, both ways, and how many items a margin needs.

Two wagers run along the items (test martingales; Waudby-Smith and Ramdas, arXiv 2010.09686, whose bets are here a
mixture over a grid). One bets against "the candidate loses the margin or more", the other against "it loses no more
than is tolerated". A wager against the truth multiplies its stake by 1 / error with probability `error` at most
(Ville), however often one looks. So the chance to accept a candidate that loses the margin is at most `error`, and so
is the chance to reject one that loses what is tolerated; for losses between the two nothing is promised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evaluators import stats
from evaluators.stats import Interval

Outcome = Literal["accept", "reject", "undecided"]
_GRID = 40


@dataclass(frozen=True)
class SequentialResult:
    """Where a paired comparison stands.

    Attributes:
        outcome: `accept`: a loss of the margin is excluded; `reject`: a loss of no more than tolerated is.
        items: pairs after which it was settled; all that were given where it was not.
        against_loss: what the wager against a loss of the margin has made of 1, at its best.
        against_none: likewise of the wager against a tolerated loss.
    """

    outcome: Outcome
    items: int
    against_loss: float
    against_none: float


def sequential_test(
    differences: Sequence[float], *, margin: float, tolerated: float = 0.0, error: float = 0.05
) -> SequentialResult:
    """Follow paired differences (candidate less dense, each from -1 to 1) until one side is settled.

    Items must be exchangeable: asked in an order that was drawn, not sorted by task. Where several answers belong to
    one question or passage, give their mean: the wager counts independent units.

    Args:
        margin: the loss that is too much.
        tolerated: the loss that counts as none, from 0 (any loss is found) to the margin (only what breaks it is).
        error: chance of a wrong acceptance, and of a wrong rejection.

    Raises:
        ValueError: for numbers outside these ranges, or a difference outside [-1, 1].
    """
    if not 0 < margin < 1 or not 0 < error < 1 or not 0 <= tolerated <= margin:
        raise ValueError(f"margin {margin}, tolerated {tolerated} and error {error} are not in their ranges")
    x = np.asarray(differences, dtype=np.float64)
    if x.ndim != 1 or (x.size and np.abs(x).max() > 1):
        raise ValueError("differences lie from -1 to 1")
    # Too much: mean(x) <= -margin. Tolerated: mean(x) >= -tolerated, that is mean(-x) <= tolerated.
    loss, none = _wealth(x, -margin), _wealth(-x, tolerated)
    accepted, rejected = (_first(w >= 1 / error) for w in (loss, none))
    best = (float(loss.max(initial=1)), float(none.max(initial=1)))
    if min(accepted, rejected) == len(x):
        return SequentialResult("undecided", len(x), *best)
    outcome: Outcome = "accept" if accepted <= rejected else "reject"
    return SequentialResult(outcome, min(accepted, rejected) + 1, *best)


def paired_scores(candidate: Sequence[float], reference: Sequence[float], level: float = 0.95) -> Interval:
    """Interval of the mean paired difference of scores: Tango's of right and wrong answers, the wagers' of shares.

    Raises:
        ValueError: if the lengths differ, there is no pair, or a score lies outside [0, 1].
    """
    if set(candidate) | set(reference) <= {0.0, 1.0}:
        return stats.paired_difference(candidate, reference, level)
    return wagered_difference(candidate, reference, level)


def wagered_difference(
    candidate: Sequence[float], reference: Sequence[float], level: float = 0.95
) -> Interval:
    """Interval of the mean paired difference of scores from 0 to 1, such as shares of several answers that are right.

    It holds what neither of two wagers has excluded, each with half of the error. So it is valid for any such scores
    and any number of items, and does not collapse where all differences are equal, as a variance would.

    Raises:
        ValueError: if the lengths differ, there is no pair, or a score lies outside [0, 1].
    """
    ours, theirs = np.asarray(candidate, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if ours.shape != theirs.shape or ours.ndim != 1 or not ours.size:
        raise ValueError("as many scores of one as of the other, at least one")
    if min(ours.min(), theirs.min()) < 0 or max(ours.max(), theirs.max()) > 1:
        raise ValueError("scores lie from 0 to 1")
    x, stake = ours - theirs, 2 / (1 - level)
    value = float(x.mean())

    def lowest(x: NDArray[np.float64]) -> float:
        """The largest mean that a wager on more has excluded, to a thousandth; the wager wins less the larger it is."""
        low, high = -1.0, float(x.mean())
        while high - low > 1e-3:
            middle = (low + high) / 2
            if _wealth(x, middle)[-1] >= stake:
                low = middle
            else:
                high = middle
        return low

    return Interval(value, lowest(x), -lowest(-x), len(x), level)


def _wealth(x: NDArray[np.float64], mean: float) -> NDArray[np.float64]:
    """What a stake of 1 becomes, item by item, betting that the mean is above `mean` (x at least -1)."""
    if not x.size:
        return np.ones(0)
    # Bets up to the largest that no outcome can ruin; small ones for noisy differences, large ones for quiet.
    bets = np.linspace(0, 1, _GRID + 1)[1:] * 0.999 / (1 + mean)
    gains = np.log1p(bets[:, None] * (x[None, :] - mean)).cumsum(1)
    top = gains.max(0)
    found: NDArray[np.float64] = np.exp(np.minimum(top, 700.0)) * np.exp(gains - top).mean(0)
    return found


def _first(hit: NDArray[np.bool_]) -> int:
    return int(hit.argmax()) if hit.any() else len(hit)


def items_to_prove(margin: float, level: float = 0.95, lost: int = 0) -> int:
    """Items after which a candidate that lost `lost` of dense's answers, and gained none, is proven within the margin.

    With fewer than `items_to_prove(margin)` items not even identical answers prove it.
    """
    n = max(1, lost)
    while n < 100_000:
        pairs = [0.0] * lost + [1.0] * (n - lost)
        if stats.paired_difference(pairs, [1.0] * n, level).low > -margin:
            return n
        n += 1
    raise ValueError(f"a margin of {margin} is out of reach")

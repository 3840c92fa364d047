"""What the compiler may assume about an operator: facts that stand beside it and are read everywhere else.

The normal form, the facts about values, the lint, the oracle's masks, the kernels' fills and the random programs
of the tests all follow from these. An operator without traits is legal and correct: it is only not simplified.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Traits:
    """Facts about one operator. Every default is the weakest claim.

    Attributes:
        increasing: whether the result rises with the input: `always`, only where the input is not below 0
            (`nonneg`), or not known to. An increasing function of a score selects the same pages as the score.
        sign: what is known of the result for finite inputs, and for sources always: `positive` is above 0,
            `nonneg` not below it.
        scale: what a constant factor of the input does: it leaves unchanged (`linear`), or a positive one makes no
            difference (`invariant`).
        picks: every value of the result is a value of an input, so whatever holds of all inputs holds of it.
        keeps_zero: inputs that are 0 everywhere give a result that is 0 everywhere.
        neutral: the value that changes nothing where the operator looks along a dimension: what padding holds.
        mirror: the operator that does the same to negated inputs, with a negated result.
        scalar: its value for one number, where constants may be folded.
        bounded: every result is within [-1, 1].
        continuous: a small change of the input is a small change of the result; False where it jumps.
    """

    increasing: Literal["", "nonneg", "always"] = ""
    sign: Literal["", "nonneg", "positive"] = ""
    scale: Literal["", "linear", "invariant"] = ""
    picks: bool = False
    keeps_zero: bool = False
    neutral: float | None = None
    mirror: str = ""
    scalar: Callable[[float], float] | None = None
    bounded: bool = False
    continuous: bool = True


NOTHING = Traits()

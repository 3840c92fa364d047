"""What a stage's section of an evaluation plan derives from."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vortex_core.configs import Strict

if TYPE_CHECKING:
    from evaluators.plan import EvaluationPlan


class Decoded(NamedTuple):
    """Prompts of its own that a stage decodes together.

    Attributes:
        sequences: decoded at once.
        context: tokens of each prompt.
        new: tokens decoded behind each.
    """

    sequences: int
    context: int
    new: int


class StageSettings(Strict):
    """Settings of one stage: the section of a plan that has the stage's name. Unknown keys are errors."""

    def check(self, plan: EvaluationPlan) -> None:
        """Raise `ValueError`, with the key and the value, where the section contradicts the rest of the plan."""

    def decodes(self) -> Decoded | None:
        """Prompts that the stage decodes beside the plan's items: the engine keeps room for them."""
        return None

    def lengths(self) -> tuple[int, ...]:
        """Contexts in tokens at which the stage looks at a candidate, by default those it decodes."""
        decoded = self.decodes()
        return () if decoded is None else (decoded.context,)

    def longest(self) -> int:
        """Tokens of the longest sequence that the model evaluated must be made for."""
        decoded = self.decodes()
        return 0 if decoded is None else decoded.context + decoded.new

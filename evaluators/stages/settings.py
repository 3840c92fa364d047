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
        least: sequences that do where memory is short; 0: all of them are needed.
    """

    sequences: int
    context: int
    new: int
    least: int = 0

    @property
    def required(self) -> int:
        """Sequences there must be room for."""
        return self.least or self.sequences


class StageSettings(Strict):
    """Settings of one stage: the section of a plan that has the stage's name. Unknown keys are errors."""

    def check(self, plan: EvaluationPlan) -> None:
        """Raise `ValueError`, with the key and the value, where the section contradicts the rest of the plan."""

    def decodes(self, plan: EvaluationPlan) -> Decoded | None:
        """Prompts that the stage decodes beside the plan's items: the engine keeps room for them."""
        return None

    def lengths(self, plan: EvaluationPlan) -> tuple[int, ...]:
        """Contexts in tokens at which the stage looks at a candidate, by default those it decodes."""
        decoded = self.decodes(plan)
        return () if decoded is None else (decoded.context,)

    def longest(self, plan: EvaluationPlan) -> int:
        """Tokens of the longest sequence that the model evaluated must be made for."""
        decoded = self.decodes(plan)
        return 0 if decoded is None else decoded.context + decoded.new

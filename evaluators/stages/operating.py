"""Operating points: the contexts and batches at which speed is asked, the very ones at which accuracy is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from evaluators.stages.settings import Decoded, StageSettings
from vortex_core.engine.kv.blocks import BLOCK_TOKENS, blocks_for

if TYPE_CHECKING:
    from evaluators.plan import EvaluationPlan


@dataclass(frozen=True)
class OperatingPoint:
    """Where speed is asked.

    Attributes:
        context: tokens of each sequence.
        batch: sequences decoded together.
        weight: share of this point in the objective; all points' weights add up to 1.
    """

    context: int
    batch: int
    weight: float


class OperatingSettings(StageSettings):
    """Contexts, batch and the mix of a stage about speed."""

    contexts: Literal["asked"] | tuple[PositiveInt, ...] = Field(
        "asked", description="tokens; asked: those of the accuracy tasks, each weighted by its items"
    )
    weights: tuple[PositiveFloat, ...] = Field((), description="of contexts that are listed; none: equal")
    batch: Literal["auto"] | PositiveInt = Field(
        "auto", description="sequences; auto: what the KV memory holds, at most `most` (one on a CPU)"
    )
    most: PositiveInt = Field(64, description="sequences that auto takes at most")

    def check(self, plan: EvaluationPlan) -> None:
        """Contexts and weights belong together; speed may be asked where accuracy is, or between."""
        if self.contexts == "asked":
            if self.weights:
                raise ValueError("weights are for contexts that are listed; asked ones are weighted by items")
            return
        if not self.contexts or len(set(self.contexts)) < len(self.contexts):
            raise ValueError(f"contexts {list(self.contexts)}: list each once, or say asked")
        if self.weights and len(self.weights) != len(self.contexts):
            raise ValueError(f"{len(self.weights)} weights of {len(self.contexts)} contexts")

    def mix(self, plan: EvaluationPlan) -> dict[int, float]:
        """Weight of each context, in rising order; they add up to 1."""
        if self.contexts == "asked":
            shares: dict[int, float] = {}
            for task in plan.accuracy.tasks:
                shares[task.context] = shares.get(task.context, 0.0) + task.items
        else:
            shares = dict(zip(self.contexts, self.weights or (1.0,) * len(self.contexts), strict=True))
        total = sum(shares.values())
        return {context: shares[context] / total for context in sorted(shares)}

    def points(self, plan: EvaluationPlan, tokens: int, new: int, copies: int = 1) -> list[OperatingPoint]:
        """The points, with batches for a memory of `tokens` tokens of KV.

        Args:
            new: tokens decoded behind each context.
            copies: times that a sequence's KV is held.
        """
        found = []
        for context, weight in self.mix(plan).items():
            if self.batch == "auto":
                room = tokens // (copies * blocks_for(context + new) * BLOCK_TOKENS)
                batch = max((b for b in _EVEN if b <= min(room, self.most)), default=0)
            else:
                batch = self.batch
            found.append(OperatingPoint(context, batch, weight))
        return found

    def widest(self, plan: EvaluationPlan, new: int) -> Decoded:
        """The largest of the points, as what it decodes; auto may do with one sequence."""
        sequences = self.most if self.batch == "auto" else self.batch
        return Decoded(sequences, max(self.mix(plan)), new, least=1 if self.batch == "auto" else self.batch)


# Batches that serving engines capture: a step of 21 sequences takes as long as one of 24.
_EVEN = (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, *range(96, 1025, 32))

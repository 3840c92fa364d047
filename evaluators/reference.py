"""Dense results of one seed: what candidates are paired with. Plain data, so a run can store and reuse it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from evaluators.errors import stale_reference
from evaluators.tasks.items import ItemSet


@dataclass(frozen=True)
class DenseReference:
    """How the dense model answered.

    Attributes:
        plan: digest of the evaluation plan.
        model: name of the model.
        seed: of the items.
        scores: 0 or 1 per item, by task key, in item order.
        texts: what it said.
        logprobs: of the true continuation, per passage and token (nats).
        prefill_seconds: time spent prefilling, 0 where everything was there.
        answer_seconds: time spent answering.
    """

    plan: str
    model: str
    seed: int
    scores: dict[str, list[float]]
    texts: dict[str, list[str]]
    logprobs: list[list[float]]
    prefill_seconds: float = 0.0
    answer_seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain dict, inverse of `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> DenseReference:
        """Rebuild.

        Raises:
            VortexError: `VV005` if fields are missing or unknown.
        """
        try:
            return cls(**data)
        except TypeError as error:
            raise stale_reference(f"malformed: {error}") from error

    def check(self, plan: str, model: str, items: ItemSet) -> None:
        """Raise `VV005` unless this was measured with that plan, model and items."""
        if (self.plan, self.model, self.seed) != (plan, model, items.seed):
            raise stale_reference(
                f"of plan {self.plan}, {self.model}, seed {self.seed}; "
                f"wanted are {plan}, {model}, seed {items.seed}"
            )
        sizes = {key: len(scores) for key, scores in self.scores.items()}
        wanted = {key: len(found) for key, found in items.needles.items()}
        if sizes != wanted or len(self.logprobs) != len(items.passages):
            raise stale_reference("of other items")

    @property
    def accuracy(self) -> float:
        """Mean over all retrieval items."""
        flat = [score for scores in self.scores.values() for score in scores]
        return sum(flat) / len(flat)

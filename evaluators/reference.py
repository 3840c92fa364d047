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
        identity: of the engine: weights, tokenizer, dtype, device kind, versions (`identity.engine_identity`).
        items: digest of what was asked (`identity.items_digest`).
        model: its name, for people.
        seed: of the items.
        scores: share of right answers per item, 0 or 1 where one is asked for, by task key, in item order.
        texts: what it said, the first of several answers.
        passed: 1 where any answer to the item was right.
        tokens: mean length of an item's answers.
        logprobs: of the true continuation, per passage and token (nats).
        prefill_seconds: time spent prefilling, 0 where everything was there.
        answer_seconds: time spent answering.
    """

    identity: str
    items: str
    model: str
    seed: int
    scores: dict[str, list[float]]
    texts: dict[str, list[str]]
    passed: dict[str, list[float]]
    tokens: dict[str, list[float]]
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

    def check(self, identity: str, digest: str, items: ItemSet) -> None:
        """Raise `VV005` unless this was measured by that engine on those items."""
        if self.items != digest:
            raise stale_reference(f"of other items ({self.items}) than this plan and seed ask ({digest})")
        if self.identity != identity:
            raise stale_reference(
                f"{self.model}'s under other weights, tokenizer, engine, dtype, device or versions "
                f"({self.identity}; here it is {identity})"
            )
        sizes = {key: len(scores) for key, scores in self.scores.items()}
        wanted = {key: len(found) for key, found in items.needles.items()}
        if sizes != wanted or len(self.logprobs) != len(items.passages):
            raise stale_reference("incomplete")

    @property
    def accuracy(self) -> float:
        """Mean over all retrieval items."""
        flat = [score for scores in self.scores.values() for score in scores]
        return sum(flat) / len(flat)

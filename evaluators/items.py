"""The items of one seed: retrieval questions by task, and passages."""

from __future__ import annotations

import math
from dataclasses import dataclass

from evaluators.errors import context_too_long
from evaluators.plan import EvaluationPlan
from evaluators.tasks.needle import NeedleItem, needle_item
from evaluators.tasks.perplexity import PerplexityItem, perplexity_item
from evaluators.tasks.tokens import Tokenizer
from vortex_core.specs import ModelSpec

# Seeds from here up are for fresh measurements and hold-outs: they get the plan's `fresh.share` of the items.
FRESH_SEEDS = 1_000_000


@dataclass(frozen=True)
class ItemSet:
    """Everything a seed is asked.

    Attributes:
        seed: of the generators.
        needles: items by task key (`needle_single@1024`).
        passages: perplexity items.
    """

    seed: int
    needles: dict[str, tuple[NeedleItem, ...]]
    passages: tuple[PerplexityItem, ...]

    def in_order(self, gate_items: int) -> list[tuple[str, int]]:
        """`(task key, index)` of all retrieval items: the gate's first, then the rest, tasks in turn."""
        order = [(key, i) for key, items in self.needles.items() for i in range(min(gate_items, len(items)))]
        longest = max(map(len, self.needles.values()))
        for i in range(gate_items, longest):
            order += [(key, i) for key, items in self.needles.items() if i < len(items)]
        return order

    def batches(self, places: list[tuple[str, int]], size: int) -> list[list[tuple[str, int]]]:
        """Consecutive places in batches; inside a batch by context, so that equal lengths lie together."""
        groups = [places[i : i + size] for i in range(0, len(places), size)]
        return [sorted(group, key=lambda p: self.needles[p[0]][p[1]].context) for group in groups]

    @property
    def tokens(self) -> int:
        """Prompt tokens of all items."""
        return sum(len(item.prompt) for items in self.needles.values() for item in items) + sum(
            len(item.prompt) for item in self.passages
        )


def build_items(plan: EvaluationPlan, tokenizer: Tokenizer, seed: int) -> ItemSet:
    """The items of a plan for one seed; fresh seeds keep a share of every task's items, at least one.

    Raises:
        VortexError: `VV002` where an item cannot be built at its size.
    """
    share = plan.fresh.share if seed >= FRESH_SEEDS else 1.0
    needles = {
        task.key: tuple(
            needle_item(
                tokenizer,
                task=task.task,
                context=task.context,
                seed=seed,
                index=i,
                distractors=task.distractors,
            )
            for i in range(math.ceil(task.items * share))
        )
        for task in plan.accuracy.tasks
    }
    p = plan.perplexity
    passages = tuple(
        perplexity_item(tokenizer, context=p.context, continuation=p.continuation, seed=seed, index=i)
        for i in range(math.ceil(p.items * share))
    )
    return ItemSet(seed, needles, passages)


def check_context(plan: EvaluationPlan, model: ModelSpec) -> None:
    """Raise `VV003` if the plan's longest sequence is more than the model can read."""
    longest = plan.longest_context
    if plan.modelled.model is None:
        longest = max(longest, plan.modelled.length)
    if longest > model.max_context:
        raise context_too_long(longest, model.name, model.max_context)

"""The items of one seed: retrieval questions by task, and passages."""

from __future__ import annotations

import math
from dataclasses import dataclass

from evaluators.errors import context_too_long, other_alphabet
from evaluators.plan import EvaluationPlan, NeedleTask
from evaluators.tasks.needle import NeedleItem, needle_item
from evaluators.tasks.pairs import pair_item, pair_passage, reads_pairs
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
        VortexError: `VV002` where an item cannot be built at its size, `VV007` where the model cannot read them.
    """
    if plan.in_pairs != reads_pairs(tokenizer):
        raise other_alphabet(plan.name, in_pairs=plan.in_pairs)
    share = plan.fresh.share if seed >= FRESH_SEEDS else 1.0
    needles = {
        task.key: tuple(_item(tokenizer, task, seed, i) for i in range(math.ceil(task.items * share)))
        for task in plan.accuracy.tasks
    }
    passages = tuple(
        _passage(plan, tokenizer, seed, i) for i in range(math.ceil(plan.perplexity.items * share))
    )
    return ItemSet(seed, needles, passages)


def timing_item(
    plan: EvaluationPlan, tokenizer: Tokenizer, context: int, seed: int, index: int
) -> NeedleItem:
    """A prompt of an exact length in the plan's language: that of its own retrieval items where lengths agree."""
    if plan.in_pairs:
        return pair_item(context=context, seed=seed, index=index, distractors=0)
    return needle_item(tokenizer, task="needle_single", context=context, seed=seed, index=index)


def _item(tokenizer: Tokenizer, task: NeedleTask, seed: int, index: int) -> NeedleItem:
    if task.task == "pair_recall":
        return pair_item(context=task.context, seed=seed, index=index, distractors=task.distractors)
    return needle_item(
        tokenizer, task=task.task, context=task.context, seed=seed, index=index, distractors=task.distractors
    )


def _passage(plan: EvaluationPlan, tokenizer: Tokenizer, seed: int, index: int) -> PerplexityItem:
    p = plan.perplexity
    if p.text == "pairs":
        return pair_passage(context=p.context, seed=seed, index=index, distractors=p.distractors)
    return perplexity_item(tokenizer, context=p.context, continuation=p.continuation, seed=seed, index=index)


def check_context(plan: EvaluationPlan, model: ModelSpec) -> None:
    """Raise `VV003` if the plan's longest sequence is more than the model can read."""
    longest = plan.longest_context
    if longest > model.max_context:
        raise context_too_long(longest, model.name, model.max_context)

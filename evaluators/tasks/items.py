"""The items of one seed: retrieval questions by task, and passages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from evaluators.errors import context_too_long, other_alphabet
from evaluators.plan import AskedTask, EvaluationPlan
from evaluators.tasks.base import FRESH_SEEDS, AnswerTask, LikelihoodTask, Passage, Question
from evaluators.tasks.tokens import Tokenizer
from vortex_core.specs import ModelSpec

__all__ = ["FRESH_SEEDS", "ItemSet", "build_items", "check_context"]


@dataclass(frozen=True)
class ItemSet:
    """Everything a seed is asked.

    Attributes:
        seed: of the generators.
        needles: items by task key (`needle_single@1024`).
        passages: perplexity items.
    """

    seed: int
    needles: dict[str, tuple[Question, ...]]
    passages: tuple[Passage, ...]

    def in_order(self, gate_items: int) -> list[tuple[str, int]]:
        """`(task key, index)` of all retrieval items: the gate's first, then the rest, tasks in an order drawn with the
        seed (a test that may stop anywhere needs exchangeable items), each task's own items from the first on."""
        order = [(key, i) for key, items in self.needles.items() for i in range(min(gate_items, len(items)))]
        rest = [key for key, items in self.needles.items() for _ in items[gate_items:]]
        Random(self.seed).shuffle(rest)
        next_of = dict.fromkeys(rest, gate_items)
        for key in rest:
            order.append((key, next_of[key]))
            next_of[key] += 1
        return order

    def batches(self, places: list[tuple[str, int]], size: int) -> list[list[tuple[str, int]]]:
        """Consecutive places in batches; inside a batch by context, so that equal lengths lie together.

        The answers of a batch end at the same strings: places that differ in that are apart.
        """
        groups: list[list[tuple[str, int]]] = []
        for i in range(0, len(places), size):
            ends: dict[tuple[str, ...], list[tuple[str, int]]] = {}
            for key, index in places[i : i + size]:
                ends.setdefault(self.needles[key][index].stops, []).append((key, index))
            groups += ends.values()
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
    share = plan.fresh.share if seed >= FRESH_SEEDS else 1.0
    for asked in (*plan.accuracy.tasks, plan.perplexity):
        if not asked.generator.reads(tokenizer):
            raise other_alphabet(asked.task)
    needles = {task.key: _questions(task, tokenizer, seed, share) for task in plan.accuracy.tasks}
    generator = plan.perplexity.generator
    assert isinstance(generator, LikelihoodTask)
    passages = tuple(
        generator.item(tokenizer, plan.perplexity.parameters, seed, i)
        for i in range(math.ceil(plan.perplexity.items * share))
    )
    return ItemSet(seed, needles, passages)


def _questions(asked: AskedTask, tokenizer: Tokenizer, seed: int, share: float) -> tuple[Question, ...]:
    generator = asked.generator
    assert isinstance(generator, AnswerTask)
    return tuple(
        generator.item(tokenizer, asked.parameters, seed, i) for i in range(math.ceil(asked.items * share))
    )


def check_context(plan: EvaluationPlan, model: ModelSpec) -> None:
    """Raise `VV003` if the plan's longest sequence is more than the model can read."""
    if plan.longest_context > model.max_context:
        raise context_too_long(plan.longest_context, model.name, model.max_context)

"""Answers of a flow to retrieval items: in batches that the pool has room for, fed where scripted, or drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from evaluators.stages.base import Deadline
from evaluators.tasks.base import Question
from evaluators.tasks.items import ItemSet
from evaluators.tasks.tokens import answer_text, answer_tokens, stop_tokens
from vortex_core.ir.flow import Flow

if TYPE_CHECKING:  # the engine brings transformers along, which CPU stages do without
    from evaluators.bench import Bench
    from vortex_core.engine import Prompt

Place = tuple[str, int]
Draw = tuple[Place, int]  # an item, and the number of one of its answers
_SHORT = 48  # tokens of an answer that a GPU decodes to the end whatever it says


@dataclass
class PromptSet:
    """The prefilled prompts of one seed."""

    items: ItemSet
    needles: dict[Place, Prompt]
    passages: list[Prompt]
    prefill_seconds: float


@dataclass
class Answers:
    """What one flow has answered so far on one seed's retrieval items.

    Attributes:
        scores: by item, the share of its answers that are right: 0 or 1 where there is one.
        texts: what was said, the first of several.
        passed: 1 where any of the answers is right.
        tokens: mean length of the answers, as the model wrote them.
        density: of each decode.
    """

    key: str
    seed: int
    scores: dict[Place, float] = field(default_factory=dict)
    texts: dict[Place, str] = field(default_factory=dict)
    passed: dict[Place, float] = field(default_factory=dict)
    tokens: dict[Place, float] = field(default_factory=dict)
    density: list[float] = field(default_factory=list)


def answer_items(
    bench: Bench,
    flow: Flow | None,
    places: Sequence[Place],
    prompts: PromptSet,
    answers: Answers,
    deadline: Deadline,
) -> None:
    """Answer items that end at the same strings, and write the answers down."""
    needles = prompts.items.needles
    at_once = bench.plan.accuracy.batch
    greedy = [(place, 0) for place in places if needles[place[0]][place[1]].temperature == 0]
    for batch in _fitting(bench, greedy, prompts):
        deadline.check(f"{len(answers.scores)} items answered")
        for (place, _), tokens in zip(batch, _decode(bench, flow, batch, prompts, answers), strict=True):
            _write_down(bench, answers, place, needles[place[0]][place[1]], [tokens])
    hot = [place for place in places if needles[place[0]][place[1]].temperature > 0]
    draws = [(place, n) for place in hot for n in range(needles[place[0]][place[1]].samples)]
    drawn: dict[Place, list[list[int]]] = {place: [] for place in hot}
    for first in range(0, len(draws), at_once):
        for batch in _fitting(bench, draws[first : first + at_once], prompts):
            deadline.check(f"{len(answers.scores)} items answered")
            for (place, _), tokens in zip(batch, _decode(bench, flow, batch, prompts, answers), strict=True):
                drawn[place].append(tokens)
                item = needles[place[0]][place[1]]
                if len(drawn[place]) == item.samples:
                    _write_down(bench, answers, place, item, drawn[place])


def _decode(
    bench: Bench, flow: Flow | None, batch: Sequence[Draw], prompts: PromptSet, answers: Answers
) -> list[list[int]]:
    """The tokens of some draws; all of them end at the same strings."""
    from vortex_core.engine import Sampling

    items = [prompts.items.needles[key][i] for (key, i), _ in batch]
    new = max(item.max_new_tokens for item in items)
    stops = bench.engine.backend == "torch" or new > _SHORT
    scripted = any(item.script for item in items)
    result = bench.decode(
        flow,
        [prompts.needles[place] for place, _ in batch],
        max_new_tokens=new,
        forced=[item.script or (None,) * item.max_new_tokens for item in items] if scripted else None,
        # Short answers: captured steps cost less than capturing one for every size that a batch shrinks to.
        stop_ids=stop_tokens(bench.engine.tokenizer, items[0].stops) if stops and not scripted else (),
        sampling=[
            Sampling(temperature=item.temperature, top_p=item.top_p, seed=draw_seed(item) + n)
            for item, (_, n) in zip(items, batch, strict=True)
        ],
    )
    answers.density.append(result.density)
    return result.tokens


def draw_seed(item: Question) -> int:
    """The same for dense and every candidate, and for no two items."""
    return int.from_bytes(hashlib.sha256(repr(item.prompt).encode()).digest()[:6])


def _write_down(
    bench: Bench, answers: Answers, place: Place, item: Question, drawn: Sequence[Sequence[int]]
) -> None:
    tokenizer = bench.engine.tokenizer
    texts = [answer_text(tokenizer, tokens, item) for tokens in drawn]
    right = [item.score(text) for text in texts]
    answers.texts[place] = texts[0]
    answers.scores[place] = sum(right) / len(right)
    answers.passed[place] = max(right)
    answers.tokens[place] = sum(len(answer_tokens(tokenizer, t, item)) for t in drawn) / len(drawn)


def _fitting(bench: Bench, group: Sequence[Draw], prompts: PromptSet) -> Iterator[list[Draw]]:
    """A group in batches that the pool has room for: a flow with states of its own copies every prompt."""
    new = max((prompts.items.needles[key][i].max_new_tokens for (key, i), _ in group), default=1)
    cache, batch = bench.engine.cache, list[Draw]()
    for draw in group:
        wanted = [prompts.needles[place] for place, _ in (*batch, draw)]
        fits = cache.fits(wanted, [new] * len(wanted), private=bench.engine.private_pages)
        if batch and not fits:
            yield batch
            batch = []
        batch.append(draw)
    if batch:
        yield batch

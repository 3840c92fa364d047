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
    from vortex_core.engine import DecodeResult, Prompt

Place = tuple[str, int]
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
    greedy = [place for place in places if needles[place[0]][place[1]].temperature == 0]
    for batch in _fitting(bench, greedy, prompts):
        deadline.check(f"{len(answers.scores)} items answered")
        items = [needles[key][i] for key, i in batch]
        result = _decode(bench, flow, [prompts.needles[place] for place in batch], items)
        answers.density.append(result.density)
        for place, item, tokens in zip(batch, items, result.tokens, strict=True):
            _write_down(bench, answers, place, item, [tokens])
    for place in places:
        item = needles[place[0]][place[1]]
        if item.temperature == 0:
            continue
        drawn: list[list[int]] = []
        for first in range(0, item.samples, bench.plan.accuracy.batch):
            deadline.check(f"{len(answers.scores)} items answered")
            copies = min(bench.plan.accuracy.batch, item.samples - first)
            result = _decode(bench, flow, [prompts.needles[place]] * copies, [item] * copies, first)
            answers.density.append(result.density)
            drawn += result.tokens
        _write_down(bench, answers, place, item, drawn)


def _decode(
    bench: Bench, flow: Flow | None, prompts: Sequence[Prompt], items: Sequence[Question], first: int = 0
) -> DecodeResult:
    """Decode some prompts; `first` numbers the draws of one item from there on."""
    from vortex_core.engine import Sampling

    new = max(item.max_new_tokens for item in items)
    stops = bench.engine.backend == "torch" or new > _SHORT
    scripted = any(item.script for item in items)
    one = items[0]
    return bench.decode(
        flow,
        prompts,
        max_new_tokens=new,
        forced=[item.script or (None,) * item.max_new_tokens for item in items] if scripted else None,
        # Short answers: captured steps cost less than capturing one for every size that a batch shrinks to.
        stop_ids=stop_tokens(bench.engine.tokenizer, one.stops) if stops and not scripted else (),
        sampling=Sampling(temperature=one.temperature, top_p=one.top_p, seed=draw_seed(one) + first),
    )


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


def _fitting(bench: Bench, group: Sequence[Place], prompts: PromptSet) -> Iterator[list[Place]]:
    """A group in batches that the pool has room for: a flow with states of its own copies every prompt."""
    new = max((prompts.items.needles[key][i].max_new_tokens for key, i in group), default=1)
    cache, batch = bench.engine.cache, list[Place]()
    for place in group:
        wanted = [prompts.needles[p] for p in (*batch, place)]
        fits = cache.fits(wanted, [new] * len(wanted), private=bench.engine.private_pages)
        if batch and not fits:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch

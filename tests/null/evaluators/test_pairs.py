from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import yaml

from evaluators.plan import EvaluationPlan, load_plan
from evaluators.tasks.items import build_items
from evaluators.tasks.needle import NeedleSingle
from evaluators.tasks.pairs import PairAnswers, PairParameters, PairRecall, pair_item
from vortex_core.engine.retrieval.alphabet import (
    BOS,
    FIRST_KEY,
    FIRST_NOISE,
    FIRST_VALUE,
    SKILLS_VOCAB,
    VOCAB,
    words,
)
from vortex_core.errors import VortexError


class PairTokenizer:
    """The retrieval model's words."""

    chat_template = None
    bos_token_id = 0
    eos_token_id = 1

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        known = {word: i for i, word in enumerate(words())}
        return [known.get(word, 1) for word in text.split()]

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        return " ".join(words()[i] for i in token_ids)

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> str:
        raise AssertionError("a base model has no turns")


class OtherTokenizer(PairTokenizer):
    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        return bytes(token_ids).decode()


def retrieval(**changes: Any) -> EvaluationPlan:
    data = copy.deepcopy(load_plan("retrieval").model_dump())
    return EvaluationPlan.model_validate(data | changes)


def test_the_alphabet_covers_the_vocabulary_once() -> None:
    assert len(words()) == len(set(words())) == SKILLS_VOCAB
    assert len(words(VOCAB)) == VOCAB
    assert (words()[FIRST_KEY], words()[FIRST_VALUE], words()[FIRST_NOISE]) == ("k0", "v0", "n0")


@pytest.mark.parametrize(("context", "distractors"), [(40, 3), (257, 0), (1024, 31)])
def test_a_prompt_holds_every_pair_once_and_ends_with_its_key(context: int, distractors: int) -> None:
    for index in range(12):
        item = pair_item(context=context, seed=1, index=index, distractors=distractors)
        assert item == pair_item(context=context, seed=1, index=index, distractors=distractors)
        assert (len(item.prompt), item.prompt[0]) == (context, BOS)
        told = {
            key: value
            for key, value in zip(item.prompt[:-1], item.prompt[1:], strict=True)
            if FIRST_KEY <= key < FIRST_VALUE and FIRST_VALUE <= value < FIRST_NOISE
        }
        kinds = [token for token in item.prompt[:-1] if FIRST_KEY <= token < FIRST_NOISE]
        assert len(told) == len(set(told.values())) == 1 + distractors == len(kinds) / 2
        assert words()[told[item.prompt[-1]]] == item.answer
        assert words()[item.prompt[-1]] == item.about["key"]
        start, end = item.about["needle_tokens"]
        assert [words()[token] for token in item.prompt[start:end]] == [item.about["key"], item.answer]
        assert item.score(item.answer) == item.score(f" {item.answer} ") == 1
        assert item.score(f"{item.answer} v1") == item.score("") == item.score(item.about["key"]) == 0


def test_depths_cover_the_text() -> None:
    starts = sorted(
        pair_item(context=1000, seed=0, index=i, distractors=7).about["needle_tokens"][0] for i in range(20)
    )
    assert starts[0] < 120
    assert starts[-1] > 880
    assert max(b - a for a, b in pairwise(starts)) < 130


def test_a_context_without_room_is_refused() -> None:
    with pytest.raises(VortexError) as caught:
        pair_item(context=40, seed=0, index=0, distractors=15)
    assert caught.value.code == "VV002"


def test_passages_are_other_questions_with_one_answer() -> None:
    given = PairParameters(context=200, distractors=3)
    passage = PairAnswers().item(PairTokenizer(), given, 0, 2)
    assert len(passage.prompt) == 200
    place = passage.prompt.index(passage.prompt[-1])
    assert passage.continuation == (passage.prompt[place + 1],)
    items = {pair_item(context=200, seed=s, index=i, distractors=3).prompt for s in (0, 1) for i in range(30)}
    assert passage.prompt not in items


def test_items_and_timing_prompts_come_in_the_plans_language() -> None:
    plan = retrieval()
    items = build_items(plan, PairTokenizer(), 0)
    assert [len(found) for found in items.needles.values()] == [task.items for task in plan.accuracy.tasks]
    assert len(items.passages) == plan.perplexity.items


@pytest.mark.parametrize(
    ("plan", "tokenizer", "remedy"),
    [("retrieval", OtherTokenizer, "retrieval-mla"), ("quick", PairTokenizer, "plan retrieval")],
)
def test_a_model_that_cannot_read_the_items_is_refused(
    plan: str, tokenizer: Callable[[], PairTokenizer], remedy: str
) -> None:
    assert PairRecall().reads(PairTokenizer())
    assert not PairRecall().reads(OtherTokenizer())
    assert not NeedleSingle().reads(PairTokenizer())
    assert NeedleSingle().reads(OtherTokenizer())
    with pytest.raises(VortexError) as caught:
        build_items(load_plan(plan), tokenizer(), 0)
    assert caught.value.code == "VV007"
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ("perplexity: {task: pair_recall, context: 512, items: 4, max_ratio: 2}", "asks for answers"),
        (
            "perplexity: {task: pair_answers, context: 512, continuation: 2, items: 4, max_ratio: 2}",
            "continuation",
        ),
        (
            "perplexity: {context: 512, continuation: 1, items: 4, distractors: 2, max_ratio: 2}",
            "distractors",
        ),
    ],
)
def test_contradictions_are_refused(changes: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        retrieval(**yaml.safe_load(changes))

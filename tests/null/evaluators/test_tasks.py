from __future__ import annotations

import math
import re

import pytest

from evaluators.data import documents, sentences, words
from evaluators.tasks.base import Question
from evaluators.tasks.needle import needle_item
from evaluators.tasks.perplexity import HeldText, HeldTextParameters, perplexity
from evaluators.testing.tokenizers import WordTokenizer
from vortex_core.errors import VortexError

TOKENIZER = WordTokenizer()


def make(index: int = 0, *, context: int = 600, seed: int = 0, distractors: int = 0) -> Question:
    task = "needle_multikey" if distractors else "needle_single"
    return needle_item(TOKENIZER, task=task, context=context, seed=seed, index=index, distractors=distractors)


@pytest.mark.parametrize("context", [300, 601, 1024])
@pytest.mark.parametrize("distractors", [0, 4])
def test_prompts_are_exactly_sized_and_hold_the_needle_once(context: int, distractors: int) -> None:
    item = make(3, context=context, distractors=distractors)
    text = TOKENIZER.decode(list(item.prompt))
    key, (start, end) = item.about["key"], item.about["needle_tokens"]
    assert len(item.prompt) == context
    assert text.count(item.answer) == 1
    assert text.count(f"for {key} is: ") == 1
    assert len(re.findall(r"is: \d{7}\.", text)) == 1 + distractors
    assert text.endswith(f"for {key} mentioned in the text is")
    needle = TOKENIZER.decode(list(item.prompt[start:end]))
    assert needle == f" The special magic number for {key} is: {item.answer}."


def test_items_are_functions_of_task_seed_and_index() -> None:
    assert make(2) == make(2)
    assert len({make(i).prompt for i in range(6)}) == 6
    assert make(0, seed=1).answer != make(0, seed=0).answer


def test_an_item_does_not_depend_on_what_was_made_before() -> None:
    fresh = WordTokenizer()
    needle_item(fresh, task="needle_single", context=400, seed=9, index=9)
    item = needle_item(fresh, task="needle_single", context=600, seed=0, index=0)
    assert fresh.decode(list(item.prompt)) == TOKENIZER.decode(list(make(0).prompt))


def test_depths_cover_the_text_evenly() -> None:
    items = [make(i) for i in range(12)]
    assert {int(item.about["depth"] * 4) for item in items} == {0, 1, 2, 3}
    for item in items:
        assert abs(item.about["needle_tokens"][0] / 600 - item.about["depth"]) < 0.25


def test_scores_want_the_exact_number() -> None:
    item = make()
    assert item.score(f" {item.answer}.") == 1
    assert item.score(f"It is {item.answer[0]},{item.answer[1:4]},{item.answer[4:]}.") == 1
    assert item.score(f" {item.answer}0") == 0
    assert item.score(f" {item.answer[:-1]}") == 0
    assert item.score("") == 0
    assert item.max_new_tokens >= 7


def test_base_models_get_no_turns() -> None:
    plain = WordTokenizer(chat=False)
    item = needle_item(plain, task="needle_single", context=400, seed=0, index=0)
    assert item.prompt[0] == 0
    assert "<user>" not in plain.decode(list(item.prompt))


def test_a_context_without_room_is_refused() -> None:
    with pytest.raises(VortexError) as caught:
        make(context=60)
    assert caught.value.code == "VV002"


def test_perplexity_items_are_windows_of_held_text() -> None:
    given = HeldTextParameters(context=500, continuation=32)
    item = HeldText().item(TOKENIZER, given, 0, 1)
    assert (len(item.prompt), len(item.continuation)) == (500, 32)
    assert item == HeldText().item(TOKENIZER, given, 0, 1)
    text = TOKENIZER.decode(list(item.prompt + item.continuation))
    assert any(text in document for document in documents("held"))
    assert not any(text[:200] in document for document in documents("haystack"))


def test_perplexity_of_impossible_length_is_refused() -> None:
    with pytest.raises(VortexError) as caught:
        HeldText().item(TOKENIZER, HeldTextParameters(context=500_000, continuation=32), 0, 1)
    assert caught.value.code == "VV002"


def test_perplexity_is_the_inverse_geometric_mean() -> None:
    assert perplexity([[math.log(0.5)] * 3, [math.log(0.125)]]) == pytest.approx(2 ** (6 / 4))


def test_word_lists_and_text_are_clean() -> None:
    for kind in ("adjectives", "nouns"):
        listed = words(kind)  # type: ignore[arg-type]
        assert len(set(listed)) == len(listed) >= 90
        assert all(re.fullmatch("[a-z]+", word) for word in listed)
    for split in ("haystack", "held"):
        assert all(text.isascii() for text in documents(split))  # type: ignore[arg-type]
        assert not any(re.search(r"\d{7}", text) for text in documents(split))  # type: ignore[arg-type]
    assert len(sentences("haystack")) > 1500

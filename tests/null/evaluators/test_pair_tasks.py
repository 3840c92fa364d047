"""Tasks in the retrieval models' own language pass the public suite, and each asks what its name says."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import pytest

from evaluators.tasks.base import Question
from evaluators.tasks.tokens import Tokenizer, answer_text
from evaluators.testing import TaskConformance, WordTokenizer
from vortex_core.engine.retrieval.alphabet import FIRST_KEY, FIRST_NOISE, FIRST_VALUE, words
from vortex_core.errors import VortexError


class PairTokenizer(WordTokenizer):
    """The retrieval model's words."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        known = {word: i for i, word in enumerate(words())}
        return [known.get(word, 1) for word in text.split()]

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        return " ".join(words()[i] for i in token_ids)


class TestPairRecall(TaskConformance):
    task = "pair_recall"
    given: ClassVar[dict[str, Any]] = {"context": 200, "distractors": 7}

    def tokenizer(self) -> Tokenizer:
        return PairTokenizer()


class TestPairAnswers(TestPairRecall):
    task = "pair_answers"


class TestKeyHop(TestPairRecall):
    task = "key_hop"

    def test_the_answer_is_two_look_ups_away(self) -> None:
        for item in self.build(self.tokenizer(), 0):
            assert isinstance(item, Question)
            told = read_pairs(item)
            middle = told[item.prompt[-1]]
            assert words()[middle] == item.about["through"]
            assert words()[told[middle - FIRST_VALUE + FIRST_KEY]] == item.answer
            for place in ("needle_tokens", "second_tokens"):
                start, end = item.about[place]
                assert told[item.prompt[start]] == item.prompt[end - 1]


class TestKeyCount(TestPairRecall):
    task = "key_count"
    given: ClassVar[dict[str, Any]] = {"context": 300, "distractors": 7}
    items = 8

    def test_the_answer_is_how_often_the_pair_is_written(self) -> None:
        counts = []
        for item in self.build(self.tokenizer(), 0):
            assert isinstance(item, Question)
            times = item.prompt[:-1].count(item.prompt[-1])
            assert item.answer == f"c{times}"
            assert [item.prompt[at] for at in item.about["at"]] == [item.prompt[-1]] * times
            read_pairs(item)
            counts.append(times)
        assert sorted(counts) == list(range(1, 9))


class TestKeyWalk(TestPairRecall):
    task = "key_walk"
    given: ClassVar[dict[str, Any]] = {"context": 200, "distractors": 4, "steps": 12}

    def test_every_step_is_a_pair_of_the_text(self) -> None:
        for item in self.build(self.tokenizer(), 0):
            assert isinstance(item, Question)
            told, said = read_pairs(item), self.tokenizer().encode(item.answer)
            assert len(said) == item.max_new_tokens == 23
            for key, value in zip([item.prompt[-1], *said[1::2]], said[::2], strict=True):
                assert told[key] == value


class TestKeyDialogue(TestPairRecall):
    task = "key_dialogue"
    given: ClassVar[dict[str, Any]] = {"context": 200, "told": 6, "questions": 3, "tokens": 96}

    def right_answer(self, question: Question) -> str:
        return question.answer

    def test_only_the_script_tells_the_answers(self) -> None:
        for item in self.build(self.tokenizer(), 0):
            assert isinstance(item, Question)
            assert len(item.script) == item.max_new_tokens == 96
            questions = [i for i, token in enumerate(item.script) if token is None]
            assert questions == [91, 93, 95]
            said = self.tokenizer().encode(item.answer)
            for place, value in zip(questions, said, strict=True):
                key = item.script[place - 1]
                assert key not in item.prompt and value not in item.prompt
                at = item.script.index(key)
                assert at < 90 and item.script[at + 1] == value

    def test_the_answer_is_what_the_model_chose(self) -> None:
        item = self.build(self.tokenizer(), 0)[0]
        assert isinstance(item, Question)
        said = iter(self.tokenizer().encode(item.answer))
        fed = [next(said) if token is None else token for token in item.script]
        assert item.score(answer_text(self.tokenizer(), fed, item)) == 1
        fed[-1] = FIRST_KEY
        assert item.score(answer_text(self.tokenizer(), fed, item)) == 0

    def test_more_questions_than_pairs_are_refused(self) -> None:
        given = self.generator().parameters.model_validate(self.given | {"questions": 7})
        with pytest.raises(VortexError) as caught:
            self.generator().item(self.tokenizer(), given, 0, 0)
        assert caught.value.code == "VV002"


def read_pairs(item: Question) -> dict[int, int]:
    """What a text says of each key; a value names another key of the text."""
    told: dict[int, int] = {}
    for key, value in pairwise(item.prompt):
        if FIRST_KEY <= key < FIRST_VALUE and FIRST_VALUE <= value < FIRST_NOISE:
            assert told.setdefault(key, value) == value
    assert {value - FIRST_VALUE for value in told.values()} == {key - FIRST_KEY for key in told}
    return told

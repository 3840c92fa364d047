"""Every task that ships passes the public suite, and each asks what its name says: those in words, and JSONL files."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest

from evaluators.tasks.base import FRESH_SEEDS, Question
from evaluators.tasks.registry import TASKS
from evaluators.tasks.tokens import Tokenizer
from evaluators.testing import ByteTokenizer, TaskConformance, WordTokenizer
from tests.null.evaluators import test_pair_tasks
from vortex_core.errors import VortexError


class TestNeedleSingle(TaskConformance):
    task = "needle_single"
    given: ClassVar[dict[str, Any]] = {"context": 500}


class TestNeedleMultikey(TaskConformance):
    task = "needle_multikey"
    given: ClassVar[dict[str, Any]] = {"context": 700, "distractors": 3}


class TestNeedleInNoise(TaskConformance):
    task = "needle_single"
    given: ClassVar[dict[str, Any]] = {"context": 500, "haystack": "noise", "values": "uuids"}

    def test_the_text_says_nothing_else(self) -> None:
        tokenizer = self.tokenizer()
        for item in self.build(tokenizer, 0):
            assert isinstance(item, Question)
            text = tokenizer.decode(list(item.prompt))
            assert re.findall(r"uuid for ([a-z]+-[a-z]+) is: ([0-9a-f-]{36})\.", text) == [
                (item.about["key"], item.answer)
            ]
            assert text.count("The sky is blue.") > 10


class TestNeedleAmongNeedles(TaskConformance):
    task = "needle_multikey"
    given: ClassVar[dict[str, Any]] = {"context": 700, "distractors": "fill"}

    def test_every_sentence_is_a_needle_of_its_own_key(self) -> None:
        tokenizer = self.tokenizer()
        for item in self.build(tokenizer, 0):
            assert isinstance(item, Question)
            text = tokenizer.decode(list(item.prompt))
            body = text.split("afterwards.")[1].split("What is the special")[0]
            told = re.findall(r"The special magic number for ([a-z]+-[a-z]+) is: (\d{7})\.", body)
            assert len(dict(told)) == len(told) > 20
            assert dict(told)[item.about["key"]] == item.answer
            assert (
                len(re.sub(r"The special magic number for [a-z]+-[a-z]+ is: \d{7}\.", "", body).split()) < 9
            )


class TestNeedleOfUuids(TestNeedleAmongNeedles):
    given: ClassVar[dict[str, Any]] = {
        "context": 900,
        "distractors": "fill",
        "keys": "uuids",
        "values": "uuids",
    }

    def test_every_sentence_is_a_needle_of_its_own_key(self) -> None:
        tokenizer = self.tokenizer()
        for item in self.build(tokenizer, 0):
            assert isinstance(item, Question)
            told = re.findall(
                r"uuid for ([0-9a-f-]{36}) is: ([0-9a-f-]{36})\.", tokenizer.decode(list(item.prompt))
            )
            assert len(dict(told)) == len(told) >= 8
            assert dict(told)[item.about["key"]] == item.answer


class TestNeedleMultivalue(TaskConformance):
    task = "needle_multivalue"
    given: ClassVar[dict[str, Any]] = {"context": 800, "answers": 3}

    def test_one_key_has_all_numbers(self) -> None:
        tokenizer = self.tokenizer()
        for item in self.build(tokenizer, 0):
            assert isinstance(item, Question)
            text = tokenizer.decode(list(item.prompt))
            told = re.findall(r"magic number for ([a-z]+-[a-z]+) is: (\d{7})\.", text)
            assert Counter(key for key, _ in told) == {item.about["keys"][0]: 3}
            assert tuple(value for _, value in told) == item.answers
            assert item.score(" " + ", ".join(item.answers[:2])) == 0, "two of three are not all"


class TestNeedleMultiquery(TaskConformance):
    task = "needle_multiquery"
    given: ClassVar[dict[str, Any]] = {"context": 800, "answers": 3}

    def test_every_key_asked_has_its_number(self) -> None:
        tokenizer = self.tokenizer()
        for item in self.build(tokenizer, 0):
            assert isinstance(item, Question)
            text = tokenizer.decode(list(item.prompt))
            told = dict(re.findall(r"magic number for ([a-z]+-[a-z]+) is: (\d{7})\.", text))
            assert tuple(told[key] for key in item.about["keys"]) == item.answers
            assert text.count(item.about["keys"][2]) == 3, (
                "in its needle, the question and the answer's start"
            )


class TestVariableTracking(TaskConformance):
    task = "variable_tracking"
    given: ClassVar[dict[str, Any]] = {"context": 700, "hops": 3, "chains": 2}

    def test_following_the_assignments_finds_the_answer(self) -> None:
        tokenizer = self.tokenizer()
        for item in self.build(tokenizer, 0):
            assert isinstance(item, Question)
            text = tokenizer.decode(list(item.prompt))
            held: dict[str, str] = {}
            for name, value in re.findall(r"VAR ([A-Z]{5}) = (\d+|VAR [A-Z]{5})\.", text):
                held[name] = held[value[4:]] if value.startswith("VAR") else value
            assert len(held) == 8, "two chains of four, every copy behind what it copies"
            assert {n for n, v in held.items() if v == item.about["value"]} == set(item.answers)


class TestCommonWords(TaskConformance):
    task = "common_words"
    given: ClassVar[dict[str, Any]] = {"context": 900, "common": 5, "often": 8}

    def test_counting_finds_the_answer(self) -> None:
        tokenizer = self.tokenizer()
        for item in self.build(tokenizer, 0):
            assert isinstance(item, Question)
            body = tokenizer.decode(list(item.prompt)).split("most often.")[1].split("What are")[0]
            counts = Counter(body.split()).most_common()
            assert {word for word, _ in counts[:5]} == set(item.answers)
            assert counts[4][1] >= 4 * counts[5][1]


class TestFrequentWords(TaskConformance):
    task = "frequent_words"
    given: ClassVar[dict[str, Any]] = {"context": 900, "words": 12}

    def test_counting_finds_the_answer(self) -> None:
        tokenizer = self.tokenizer()
        for item in self.build(tokenizer, 0):
            assert isinstance(item, Question)
            body = tokenizer.decode(list(item.prompt)).split("appears in it.")[1].split("What are")[0]
            counts = Counter(body.split()).most_common()
            assert tuple(word for word, _ in counts[:3]) == item.answers
            assert counts[2][1] > counts[3][1]
            assert len(counts) == 12


def read_documents(task: TaskConformance) -> Iterator[tuple[Question, dict[str, str]]]:
    """Items, each with the texts of its documents by title."""
    tokenizer = task.tokenizer()
    for item in task.build(tokenizer, 0):
        assert isinstance(item, Question)
        text = tokenizer.decode(list(item.prompt)).split("nothing else.")[1].split("Answer the question")[0]
        numbers = [int(n) for n in re.findall(r"Document (\d+):", text)]
        assert numbers == list(range(1, len(numbers) + 1))
        parts = [part.strip() for part in re.split(r"Document \d+:", text)[1:]]
        yield item, {part.split("\n")[0].strip(): part for part in parts}


class TestQaSingle(TaskConformance):
    task = "qa_single"
    given: ClassVar[dict[str, Any]] = {"context": 800}

    def tokenizer(self) -> Tokenizer:
        return ByteTokenizer()

    def test_one_document_answers_and_no_other(self) -> None:
        for item, told in read_documents(self):
            who = re.search(r"[A-Z]\w+ [A-Z]\w+(?=\?| (?:born|work))", str(item.about["question"]))
            assert who is not None
            assert len(told) > 3
            assert [title for title, text in told.items() if item.answer in text] == [who[0]]


class TestQaHop(TestQaSingle):
    task = "qa_hop"

    def test_one_document_answers_and_no_other(self) -> None:
        for item, told in read_documents(self):
            title = re.search(r"The [A-Z]\w+ [A-Z]\w+", str(item.about["question"]))
            assert title is not None
            maker = re.search(r"made by (\w+ \w+) in", told[title[0]])
            assert maker is not None
            assert [name for name, text in told.items() if item.answer in text] == [maker[1]]
            assert item.answer not in told[title[0]]


class TestWordChain(TaskConformance):
    task = "word_chain"
    given: ClassVar[dict[str, Any]] = {"context": 700, "steps": 6}

    def right_answer(self, question: Question) -> str:
        said = question.answer.split()
        return f" {said[0]}." + "".join(f" After the {a} comes the {b}." for a, b in pairwise(said))

    def test_following_the_sentences_finds_the_answer(self) -> None:
        tokenizer = self.tokenizer()
        for item in self.build(tokenizer, 0):
            assert isinstance(item, Question)
            text = tokenizer.decode(list(item.prompt)).split("What comes after")[0]
            told = dict(re.findall(r"After the ([a-z]+) comes the ([a-z]+)\.", text))
            assert len(told) == 6 + 8
            word, said = str(item.about["first"]), []
            for _ in range(6):
                word = told[word]
                said.append(word)
            assert item.answers == (" ".join(said),)

    def test_a_step_that_is_missed_or_left_out_is_wrong(self) -> None:
        item = self.build(self.tokenizer(), 0)[0]
        assert isinstance(item, Question)
        right, last = self.right_answer(item), item.answer.split()[-1]
        assert item.score(right + " After that nothing comes.") == 1
        assert item.score(right.replace(f" {last}.", " moon.")) == 0
        assert item.score(right.rpartition(" After")[0]) == 0
        assert item.score(" moon." + right.partition(".")[2]) == 0


class TestRecital(TaskConformance):
    task = "recital"
    given: ClassVar[dict[str, Any]] = {"context": 700, "tokens": 60}

    def test_the_answer_stands_in_the_text_behind_what_is_begun(self) -> None:
        tokenizer = self.tokenizer()
        for item in self.build(tokenizer, 0):
            assert isinstance(item, Question)
            text, whole = tokenizer.decode(list(item.prompt)), str(item.about["begun"]) + item.answer
            assert "".join(whole.split()) in "".join(text.split())
            assert text.endswith(str(item.about["begun"])), "the answer has begun"
            start, end = item.about["needle_tokens"]
            there = tokenizer.decode(list(item.prompt[start:end]))
            assert "".join(there.split()) == "".join(whole.split())
            assert 60 <= item.about["tokens"] <= item.max_new_tokens + 3

    def test_the_score_is_how_far_it_comes(self) -> None:
        item = self.build(self.tokenizer(), 0)[0]
        assert isinstance(item, Question)
        said = item.answer.split()
        assert item.score(" " + item.answer + " And more.") == 1
        half = len(said) // 2
        assert item.score(" ".join([*said[:half], "moon", *said[half + 1 :]])) == half / len(said)
        assert item.score(" ".join(said[:half])) == half / len(said)
        assert item.score(" ".join(said[1:])) < 0.1


class TestHeldText(TaskConformance):
    task = "held_text"
    given: ClassVar[dict[str, Any]] = {"context": 300, "continuation": 20}


ROWS = [{"q": f"What is {n} plus {n}?", "a": 2 * n} for n in range(1, 31)]


@pytest.fixture(scope="module", autouse=True)
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "sums.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    TestJsonl.given = {
        "context": 64,
        "path": str(path),
        "prompt": "{q}",
        "answer": "{a}",
        "metric": "last_number",
    }
    return path


class TestJsonl(TaskConformance):
    task = "jsonl"

    def test_every_row_serves_one_purpose_and_no_more_than_there_are(self) -> None:
        generator, given = self.generator(), self.parameters()
        asked: list[int] = []
        for seed in (0, FRESH_SEEDS, 2 * FRESH_SEEDS):
            lines = [generator.item(WordTokenizer(), given, seed, i) for i in range(10)]
            asked += [item.about["line"] for item in lines]  # type: ignore[union-attr]
            with pytest.raises(VortexError, match="30 rows, of which a third") as caught:
                generator.item(WordTokenizer(), given, seed, 10)
            assert caught.value.code == "VV002"
        assert sorted(asked) == list(range(1, 31))

    def test_what_no_item_can_be_made_of_is_named(self, sums: Path) -> None:
        generator = self.generator()
        for change, said in (
            ({"prompt": "{question}"}, "line .*: it has no 'question'"),
            ({"context": 3}, "the prompt has .* tokens, the task's context is 3"),
        ):
            given = generator.parameters.model_validate(self.given | change)
            with pytest.raises(VortexError, match=said):
                generator.item(WordTokenizer(), given, 0, 0)
        for text, said in (("{", "no JSON"), ("[1]", "not an object")):
            broken = sums.with_name("broken.jsonl")
            broken.write_text(text)
            given = generator.parameters.model_validate(self.given | {"path": str(broken)})
            with pytest.raises(VortexError, match=f"line 1: {said}"):
                generator.item(WordTokenizer(), given, 0, 0)

    def test_a_plan_holds_for_the_file_it_was_made_with(self, sums: Path) -> None:
        schema = self.generator().parameters
        copy = sums.with_name("copy.jsonl")
        copy.write_bytes(sums.read_bytes())
        given = schema.model_validate(self.given | {"path": str(copy)}).model_dump()
        copy.write_text(json.dumps(ROWS[0]))
        with pytest.raises(ValueError, match="not the one the plan was made with"):
            schema.model_validate(given)
        with pytest.raises(ValueError, match="No such file"):
            schema.model_validate(self.given | {"path": "absent.jsonl"})


def test_no_task_is_left_out() -> None:
    here = {suite.task for suite in _suites(TaskConformance)}
    assert set(TASKS.names()) - here == {"lm_eval"}, "lm_eval has a module of its own, it needs lm-eval"


def _suites(base: type[TaskConformance]) -> set[type[TaskConformance]]:
    found = set()
    for suite in base.__subclasses__():
        found |= {suite} | _suites(suite)
    return {suite for suite in found if suite.__module__ in (__name__, test_pair_tasks.__name__)}


def test_unknown_tasks_get_near_names() -> None:
    with pytest.raises(VortexError) as caught:
        TASKS.get("comon_words")
    assert caught.value.code == "VV013"
    assert "did you mean common_words" in caught.value.remedy

"""Every task that ships passes the public suite, and each asks what its name says."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest

from evaluators.tasks.base import FRESH_SEEDS, Question, draw_row
from evaluators.tasks.metrics import METRICS
from evaluators.tasks.registry import TASKS
from evaluators.tasks.tokens import Tokenizer, answer_text, stop_tokens
from evaluators.testing import ByteTokenizer, TaskConformance, WordTokenizer
from vortex_core.engine.retrieval.alphabet import FIRST_KEY, FIRST_NOISE, FIRST_VALUE, words
from vortex_core.errors import VortexError


class PairTokenizer(WordTokenizer):
    """The retrieval model's words."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        known = {word: i for i, word in enumerate(words())}
        return [known.get(word, 1) for word in text.split()]

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        return " ".join(words()[i] for i in token_ids)


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
    return {suite for suite in found if suite.__module__ == __name__}


def test_unknown_tasks_get_near_names() -> None:
    with pytest.raises(VortexError) as caught:
        TASKS.get("comon_words")
    assert caught.value.code == "VV013"
    assert "did you mean common_words" in caught.value.remedy


@pytest.mark.parametrize(
    ("metric", "text", "answers", "right"),
    [
        ("number", " 1,234,567.", ("1234567",), True),
        ("number", "1234567,7654321", ("1234567", "7654321"), True),
        ("number", "12345678", ("1234567",), False),
        ("exact", " v1\n", ("v1",), True),
        ("exact", "v1 v2", ("v1",), False),
        ("contains", "The words: Amber, anvil.", ("amber", "anvil"), True),
        ("contains", "ambers", ("amber",), False),
        ("any", "in the US, they say", ("U.S.", "the US"), True),
        ("any", "Denverish", ("Denver",), False),
        ("last_number", "3 + 4 = 7, so $1,007.00.", ("1007",), True),
        ("last_number", "7 it is, not 8", ("7",), False),
        ("last_number", "so 1800", ("1,200 / 2 = 600.\n#### 1,800",), True),
        ("last_number", "so 600", ("1,200 / 2 = 600.\n#### 1,800",), False),
        ("last_number", "nothing", ("7",), False),
        ("boxed", "So \\boxed{1} or rather $\\boxed{\\dfrac{1}{2}}$.", ("\\frac{1}{2}",), True),
        ("boxed", "so \\boxed{\\left(3, 4\\right)}", ("We find $\\boxed{(3,4)}$.",), True),
        ("boxed", "so \\boxed{1} is not \\boxed{2}", ("1",), False),
        ("boxed", "the answer is 2", ("2",), False),
        ("boxed", "\\boxed{\\frac{1}{2}", ("\\frac{1}{2}",), False),
        ("letter", "I first thought B, but the answer is (C).", ("C",), True),
        ("letter", "C, no: D", ("C",), False),
        ("letter", "The answer is C. I am sure; I\u2019d bet.", ("C",), True),
        ("letter", "Of the ten it is I.", ("I",), True),
        ("letter", "Certainly not.", ("C",), False),
    ],
)
def test_metrics(metric: Any, text: str, answers: tuple[str, ...], right: bool) -> None:
    assert METRICS[metric](text, answers) is right


def test_answers_end_at_their_own_strings() -> None:
    tokenizer = ByteTokenizer()
    question = Question(0, (1,), ("7",), "contains", 12, stops=("\n", "###"))
    assert stop_tokens(tokenizer, question.stops) == (10, 257)
    said = tokenizer.encode("7 ### more of it", add_special_tokens=False)
    assert answer_text(tokenizer, said, question) == "7 "
    long = tokenizer.encode("seven and so on and on", add_special_tokens=False)
    assert answer_text(tokenizer, long, question) == "seven and so"


def test_rows_are_divided_among_purposes() -> None:
    for rows in (1, 2, 7):
        drawn = [draw_row(rows, seed, i) for seed in (3, FRESH_SEEDS, 2 * FRESH_SEEDS) for i in range(rows)]
        assert sorted(row for row in drawn if row is not None) == list(range(rows))
    assert [draw_row(300, 0, i) for i in range(50)] != [draw_row(300, 1, i) for i in range(50)]

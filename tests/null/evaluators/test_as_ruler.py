"""RULER's own judging: shares of the answers, in its number of tokens, whatever lines they are broken into."""

from __future__ import annotations

from typing import Any

import pytest

from evaluators.plan import load_plan
from evaluators.tasks.as_ruler import any_said, as_ruler, share_said
from evaluators.tasks.base import AnswerTask, Question
from evaluators.tasks.registry import get_task
from evaluators.tasks.tokens import answer_text
from evaluators.testing import ByteTokenizer

MANY: tuple[tuple[str, dict[str, Any], int], ...] = (
    ("needle_multivalue", {"answers": 4}, 128),
    ("needle_multiquery", {"answers": 4}, 128),
    ("variable_tracking", {"hops": 4}, 30),
    ("common_words", {}, 120),
    ("frequent_words", {}, 50),
    ("qa_single", {}, 32),
    ("qa_hop", {}, 32),
)


def question(name: str, **given: Any) -> Question:
    task = get_task(name)
    assert isinstance(task, AnswerTask)
    return task.item(ByteTokenizer(), task.parameters(context=6000, **given), 0, 0)


@pytest.mark.parametrize(("name", "given", "tokens"), MANY)
def test_the_same_question_is_judged_by_shares(name: str, given: dict[str, Any], tokens: int) -> None:
    strict, ruler = question(name, **given), question(name, **given, as_ruler=True)
    assert ruler.prompt == strict.prompt and ruler.answers == strict.answers
    assert ruler.max_new_tokens == max(tokens, strict.max_new_tokens) and ruler.stops == ()
    listed = ":\n\n" + "\n".join(f"{n}. {answer.upper()}" for n, answer in enumerate(ruler.answers, 1))
    assert ruler.score(listed) == 1
    first = f"\n1. {ruler.answers[0]}\n"
    assert ruler.score(first) == (1 if name.startswith("qa") else 1 / len(ruler.answers))
    assert ruler.score("\n1. something else\n") == 0
    assert strict.score(first) == float(len(strict.answers) == 1)


def test_lines_do_not_end_an_answer() -> None:
    tokenizer = ByteTokenizer()
    strict = question("needle_multivalue")
    ruler = as_ruler(strict, 128)
    said = tokenizer.encode("\n\n1. " + "\n2. ".join(strict.answers), add_special_tokens=False)
    assert strict.score(answer_text(tokenizer, said, strict)) == 0
    assert ruler.score(answer_text(tokenizer, said, ruler)) == 1


def test_shares() -> None:
    assert share_said("one, Two", ("one", "two", "three", "four")) == 0.5
    assert (any_said("it was Paris.", ("Lyon", "paris")), any_said("Rome", ("Lyon", "Paris"))) == (1, 0)


def test_the_plan_asks_as_ruler_does() -> None:
    asked = {one.task: one.parameters.model_dump() for one in load_plan("ruler").accuracy.tasks}
    assert all(asked[name]["as_ruler"] for name, _, _ in MANY)

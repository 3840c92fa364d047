"""How an answer is read and judged: metrics, the strings it ends at; and which rows serve which purpose."""

from __future__ import annotations

from typing import Any

import pytest

from evaluators.tasks.base import FRESH_SEEDS, Question, draw_row
from evaluators.tasks.metrics import METRICS
from evaluators.tasks.tokens import answer_text, stop_tokens
from evaluators.testing import ByteTokenizer


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

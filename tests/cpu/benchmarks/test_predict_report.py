"""The study of fidelities says what was planted, and names the pairs that a number ranks wrongly."""

from __future__ import annotations

import random
from typing import Any

import pytest

from benchmarks.predict_report import advantage, correlation, ordered, proven, repeats, report


def row(name: str, right: int, of: int = 20, budget: str = "64", **numbers: float) -> dict[str, Any]:
    scores = [1.0] * right + [0.0] * (of - right)
    return {
        "flow": name, "budget": budget, "scores": scores, "accuracy": right / of, "screen_seconds": 0.1,
        "answer_seconds": 2.0, **numbers,
    }  # fmt: skip


def test_a_number_that_ranks_as_answers_do_has_a_correlation_of_one() -> None:
    rows = [row(str(n), n, beyond=n**3, output_error=-n) for n in range(12)]
    assert correlation(rows, "beyond", "accuracy") == pytest.approx((1, 1, 1))
    assert correlation(rows, "output_error", "accuracy") == pytest.approx((-1, -1, -1))


def test_the_better_of_two_numbers_is_told_whatever_its_sign() -> None:
    rng = random.Random(1)
    rows = [row(str(n), n, 30, beyond=n + rng.gauss(0, 9), output_error=-n) for n in range(30)]
    value, low, high = advantage(rows, "output_error", "beyond", "accuracy")
    assert 0 < low < value < high
    assert advantage(rows, "beyond", "output_error", "accuracy") == pytest.approx((-value, -high, -low))


def test_a_number_drawn_by_chance_has_an_interval_around_nothing() -> None:
    rng = random.Random(3)
    rows = [row(str(n), rng.randrange(20), beyond=rng.random()) for n in range(60)]
    value, low, high = correlation(rows, "beyond", "accuracy")
    assert low < 0 < high and low < value < high < 0.5


def test_answers_repeat_themselves_where_programs_differ_and_not_where_items_do() -> None:
    apart = [row(str(n), 2 * n) for n in range(10)]
    assert repeats(apart, "scores") == pytest.approx(1)
    rng = random.Random(0)
    chance = [row(str(n), 0) | {"scores": [float(rng.random() < 0.5) for _ in range(40)]} for n in range(200)]
    assert abs(repeats(chance, "scores") or 0) < 0.3
    assert repeats([row("a", 20), row("b", 20)], "scores") is None


def test_a_better_program_needs_more_than_chance() -> None:
    assert not proven([1.0] * 4 + [0.0], [0.0] * 4 + [0.0])  # 4 of 4: 0.0625
    assert proven([1.0] * 5, [0.0] * 5)
    assert not proven([1.0] * 5 + [0.0] * 5, [0.0] * 5 + [1.0] * 5)


def test_pairs_that_are_ranked_wrongly_are_named_the_worst_first() -> None:
    rows = [
        row("best", 20, beyond=0.5, output_error=0.1),
        row("middle", 12, beyond=0.9, output_error=0.2),
        row("worst", 1, beyond=0.8, output_error=0.3),
        row("elsewhere", 0, beyond=1.0, output_error=0.0, budget="128"),
    ]
    pairs, right, wrong = ordered(rows, "beyond")
    assert (pairs, right) == (3, 1), "of one budget; only middle over worst is right"
    assert [(a["flow"], b["flow"]) for _, a, b in wrong] == [("best", "middle"), ("best", "worst")]
    assert ordered(rows, "output_error")[:2] == (3, 3), "less is better"


def test_the_report_leaves_out_what_was_not_measured() -> None:
    rows = [
        row(str(n), n, beyond=n / 9, recall=0.5, output_error=1 - n / 9, logit_error=None, density=0.1)  # type: ignore[arg-type]
        for n in range(10)
    ]
    rows[0] |= {"speed": 2.0, "modelled": 1.0}
    text = report(rows, {"model": "m", "asked": "20 x@64", "budgets": [64, 128]})
    assert "| beyond | accuracy | +1.00 [+1.00, +1.00] | +1.00 [+1.00, +1.00] | - |" in text
    assert "logit_error" not in text and "| recall |" not in text, "absent, and the same everywhere"
    assert "speed |" not in text, "one program is no ranking"
    assert "pairs of one budget are proven to answer differently" in text
    assert "| answer | 2.000 | 2.000 | 2.000 |" in text

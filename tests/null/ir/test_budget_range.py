"""Budgets are finite at every length, or refused: poles between sample lengths too."""

from __future__ import annotations

import ast
import random

import pytest

from vortex_core import library
from vortex_core.errors import VortexError
from vortex_core.ir.budget import Budget
from vortex_core.ir.budget_range import doubtful_lengths


@pytest.mark.parametrize(
    "text",
    [
        "512 + 1 / (length - 304)", "512 + 1 / (length - 65536)", "512 + length % (length - 777)",
        "log2(length - 100000) if length > 99999 else 64", "64 + 1 / (length % 7 - 3)", "1 / (length // 1000 - 12)",
        "sqrt(5000 - length)", "64 + 1 / (layer - 13)", "64 / (layers - 32)",
        "64 if length < 9e5 else 1 / (length - 950000)",
    ],
)  # fmt: skip
def test_a_pole_is_found_wherever_it_is(text: str) -> None:
    with pytest.raises(VortexError, match="VF060"):
        Budget(text).check_everywhere()


@pytest.mark.parametrize(
    "text",
    [
        "512", "max(256, length / 16)", "1024 if layer < 4 else 256", "64 * log2(length + 1)", "sqrt(length) * 8",
        "512 if length < 600 else 512 + 1 / (length - 304)", "max(64, 2048 / (layer + 1))", "64 + length % 7",
        "min(length, 4096) // 3", "length / (layers + 1 - layer)", "ceil(length / 3) + floor(length * 0.1)",
    ],
)  # fmt: skip
def test_what_is_finite_everywhere_passes(text: str) -> None:
    Budget(text).check_everywhere()


def test_every_library_budget_passes() -> None:
    for name in library.names():
        Budget(library.load(name).knobs.budget).check_everywhere()


def test_no_undefined_length_is_left_out() -> None:
    """Against plain evaluation at every length up to a few thousand, over random expressions."""
    rng = random.Random(5)

    def expression(depth: int) -> str:
        if depth == 0 or rng.random() < 0.2:
            return rng.choice(["length", str(rng.randint(1, 2000)), "0.5"])
        a, b = expression(depth - 1), expression(depth - 1)
        return rng.choice(
            [f"({a} + {b})", f"({a} - {b})", f"({a} * {b})", f"({a} / {b})", f"({a} // {b})", f"({a} % {b})",
             f"min({a}, {b})", f"max({a}, {b})", f"sqrt({a})", f"log2({a})", f"({a} if {b} < {a} else {b})"]
        )  # fmt: skip

    found = 0
    for _ in range(60):
        text = expression(3)
        try:
            budget = Budget(text)
        except VortexError:
            continue
        doubtful = doubtful_lengths(ast.parse(budget.text, mode="eval").body, 0, 1)
        if doubtful is None:
            continue
        for length in range(1, 2_500, 1):
            try:
                budget.tokens(length)
            except VortexError:
                found += 1
                assert length in doubtful, (text, length)
    assert found

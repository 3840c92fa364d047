"""The crossover as a value: which batch has which, and which flows can have one."""

from __future__ import annotations

import pytest

from vortex_core import library
from vortex_core.ir.crossover import EVERYTHING, NEVER, Crossover, crossover_unfit
from vortex_core.ir.knobs import PAGE_SIZES, Knobs

FOUND = Crossover(((1, 20480), (4, 8192), (16, 4096)))


def test_a_batch_has_the_crossover_of_the_next_smaller_one_measured() -> None:
    assert [FOUND.tokens(n) for n in (1, 2, 3, 4, 5, 15, 16, 64)] == [
        20480, 20480, 20480, 8192, 8192, 8192, 4096, 4096,
    ]  # fmt: skip
    late = Crossover(((8, 4096),))
    assert late.tokens(1) == 4096, "a batch smaller than all measured has that of the smallest"
    assert FOUND.longest == 20480
    assert [FOUND.everywhere().tokens(n) for n in (1, 16, 256)] == [4096] * 3


def test_where_nothing_was_measured_no_sequence_attends_to_more_than_its_budget() -> None:
    assert [NEVER.tokens(n) for n in (1, 64)] == [0, 0]
    assert NEVER.longest == 0 and NEVER.everywhere() is NEVER


def test_it_is_read_as_it_was_written_and_nothing_else_is() -> None:
    assert Crossover.from_json(FOUND.to_json()) == FOUND
    for wrong in (
        [[2, 100], [1, 200]],
        [[1, 100], [1, 90]],
        [[0, 1]],
        [[1]],
        7,
        "ab",
        [[1, EVERYTHING]],
        [[1, -1]],
    ):
        with pytest.raises(ValueError):
            Crossover.from_json(wrong)


def test_commands_write_it_in_a_word() -> None:
    assert FOUND.text == "1x20480,4x8192,16x4096"
    assert Crossover.parse(FOUND.text) == FOUND
    assert NEVER.text == "off" and Crossover.parse("off") == NEVER
    for wrong in ("", "on", "1x", "4x10,1x20", "1x2x3"):
        with pytest.raises(ValueError):
            Crossover.parse(wrong)


def test_no_budget_is_everything_and_everything_in_tokens_is_an_int32() -> None:
    assert Knobs(budget="length").pages(1 << 20) < EVERYTHING
    assert EVERYTHING * max(PAGE_SIZES) < 2**31


def test_flows_whose_steps_leave_something_behind_have_none() -> None:
    assert crossover_unfit(library.load("quest").program, Knobs()) is None
    assert crossover_unfit(library.load("twilight").program, Knobs()) is None
    assert "every length" in str(crossover_unfit(library.load("dense").program, Knobs()))
    assert "states" in str(crossover_unfit(library.load("h2o").program, Knobs()))
    assert "from step to step" in str(crossover_unfit(library.load("quest").program, Knobs(reuse_steps=4)))

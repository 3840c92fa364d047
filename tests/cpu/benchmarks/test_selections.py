"""What `benchmarks.selections` times."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.selections import SHAPES, SWEPT, Shape, plans
from vortex_core.kernels.select.api import MAX_FINAL_BLOCK, select_plan


@pytest.mark.parametrize("text", [*SWEPT.split(","), "256x8192:128", "16x65536"])
def test_plans_begin_with_the_default_and_hold_every_row(text: str) -> None:
    shape = Shape.read(text)
    found = list(plans(shape))
    assert found[0] == select_plan(shape.room, shape.chosen)
    assert replace(found[0], num_warps=4) in found or found[0].block > 4096
    for plan in found:
        assert plan.segments * plan.block >= shape.room
        assert plan.final_block >= min(plan.candidates, MAX_FINAL_BLOCK)
    assert any(plan.sift for plan in found) == (shape.room > 1024)


@pytest.mark.parametrize("text", ["0x10", "4x10/9", "4x10:1", "4", "x"])
def test_what_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Shape.read(text)


def test_the_usual_shapes_choose_128_pages() -> None:
    assert {Shape.read(text).chosen for text in SHAPES.split(",")} == {128}

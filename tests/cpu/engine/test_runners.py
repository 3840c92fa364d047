"""Runners of an engine: what a swap captures for the flow that comes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from vortex_core.engine.decode.graph_runner import Shape
from vortex_core.engine.decode.runners import Runners


def test_a_shape_in_which_the_last_flow_kept_its_lists_is_captured_as_one_that_selects():
    captured: list[Shape] = []
    runner = SimpleNamespace(reserve=lambda rows: None, ensure=lambda shape: captured.append(shape) or 0.5)
    engine: Any = SimpleNamespace(flow=object())
    runners = Runners(engine, graphs=True)
    runners._of[id(engine.flow)] = runner  # type: ignore[assignment]
    assert runners.warm_up(Shape(16, 8, selects=False)) == 0.5
    assert captured == [Shape(16, 8, selects=True)]
    assert runners.warm_up(None) == 0.0

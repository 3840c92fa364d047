"""A kernel that is compiled again says what was asked for that was not before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evaluators.plan import load_plan
from evaluators.stages.machine_code import launched
from vortex_core import library
from vortex_core.compiler.triton.ahead import StepShape, compile_ahead
from vortex_core.geometry import Geometry
from vortex_core.kernels.compile_ahead import kernels_compiled

GEOMETRY = Geometry(layers=2, kv_heads=2, group=4, head_dim=64, rope_dim=64, value_dim=64)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def test_what_differs_is_named() -> None:
    flow = library.load("block_topk")
    shape = StepShape(2, 4096)
    with kernels_compiled() as first:
        compile_ahead(flow.program, flow.knobs, GEOMETRY, [shape])
    assert any(line == "score_kernel: none of its text was compiled before" for line in first)
    with kernels_compiled() as second:
        compile_ahead(flow.program, flow.knobs, GEOMETRY, [shape])
    assert second == []
    with kernels_compiled() as third:
        compile_ahead(flow.program, flow.knobs, GEOMETRY, [shape], dtype=torch.float16)
    assert any(line.startswith("select") or "fp16" in line for line in third)
    # Twice as many blocks of pages a program, where there are many programs.
    with kernels_compiled() as longer:
        compile_ahead(flow.program, flow.knobs, GEOMETRY, [StepShape(64, 131072)])
    told = next(line for line in longer if line.startswith("score_kernel"))
    assert "BLOCKS 2, not 1" in told


def test_every_batch_and_table_of_a_plan_is_foreseen() -> None:
    plan, knobs = load_plan("gpu"), library.load("quest").knobs
    shapes = {(s.rows, s.tokens) for s in launched(plan, knobs)}
    # 72 fresh items go in batches of 48 and 24, tables grow in steps of an eighth of a power of two.
    assert {(24, 32768), (48, 32768), (16, 16384), (8, 8192)} <= shapes

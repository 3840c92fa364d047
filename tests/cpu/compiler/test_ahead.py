"""What is compiled ahead is what launches ask for."""

from __future__ import annotations

import ast
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from triton.compiler import CompilationError

from evaluators.plan import load_plan
from evaluators.stages.machine_code import launched
from vortex_core import library
from vortex_core.compiler.interface import BatchView
from vortex_core.compiler.triton.ahead import GPUS, StepShape, compile_ahead
from vortex_core.compiler.triton.backend import TritonFlow
from vortex_core.geometry import Geometry
from vortex_core.kernels.compile_ahead import compiling_for
from vortex_core.kernels.offline import OfflineCompileError

GEOMETRY = Geometry(layers=4, kv_heads=2, group=4, head_dim=64, rope_dim=64, value_dim=64)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the kernels that are compiled and not found in the cache."""
    found: list[str] = []

    def listen(*, src: Any, cache_hit: bool, **rest: Any) -> None:
        if not cache_hit:
            found.append(src.name)

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.knobs.compilation, "listener", listen)
    return found


@pytest.mark.parametrize(("name", "page"), [("quest", 16), ("block_topk", 64)])
def test_steps_that_run_find_their_kernels(compiled: list[str], name: str, page: int) -> None:
    flow = library.load(name)
    knobs = replace(flow.knobs, page_size=page)
    uses = compile_ahead(flow.program, knobs, GEOMETRY, launched(load_plan("gpu"), knobs))
    assert {"update_kernel", "score_kernel", "select_kernel"} <= set(compiled)
    assert all(0 < use.registers <= 255 and not use.spills for use in uses.values())
    compiled.clear()
    # Batches and lengths between those that were compiled for.
    others = [StepShape(rows, tokens) for rows in (3, 24, 40) for tokens in (5000, 15000, 30300)]
    compile_ahead(flow.program, knobs, GEOMETRY, others)
    assert compiled == []


def test_what_does_not_compile_is_typed(monkeypatch: pytest.MonkeyPatch, compiled: list[str]) -> None:
    flow = library.load("quest")

    def refuse(*args: Any, **options: Any) -> None:
        raise RuntimeError("too wide")

    monkeypatch.setattr("vortex_core.compiler.triton.ahead._launch", refuse)
    with pytest.raises(OfflineCompileError, match="too wide"):
        compile_ahead(flow.program, flow.knobs, GEOMETRY, [StepShape(1, 128)])


@pytest.mark.parametrize(("columns", "width"), [(5, 5), (15, 5), (16, 16), (40, 16)])
def test_no_kernel_is_told_of_columns_that_the_table_lacks(
    monkeypatch: pytest.MonkeyPatch, columns: int, width: int
) -> None:
    flow = TritonFlow(library.load("quest").program.canonical(), library.load("quest").knobs, GEOMETRY)
    told: list[int] = []
    monkeypatch.setattr(flow, "launch_scores", lambda *given: told.append(given[5].width))
    monkeypatch.setattr(flow, "launch_selection", lambda *given: told.append(given[3].width))
    table = torch.zeros(2, columns, dtype=torch.int32)
    lengths = torch.full((2,), 5 * flow.knobs.page_size, dtype=torch.int32)
    view = BatchView(table, lengths, lengths, 5 * flow.knobs.page_size)
    q = torch.zeros(2, GEOMETRY.q_heads, GEOMETRY.head_dim)
    flow.select_in_place(q, flow.new_states(8, torch.device("cpu")), view, 0)
    assert told == [width, width]


@triton.jit
def _wrong(x_ptr):
    tl.store(x_ptr, tl.load(None))


@triton.jit
def _right(x_ptr):
    tl.store(x_ptr, 1.0)


def test_what_does_not_compile_leaves_the_next_alone() -> None:
    x = torch.empty(16, device="meta")
    for kernel, fits in ((_right, True), (_wrong, False), (_right, True)):
        with (
            nullcontext() if fits else pytest.raises(CompilationError),
            compiling_for(GPUS["sm_90a"]) as compiled,
        ):
            kernel[(1,)](x)
        assert not fits or compiled["_right"]


def test_syntax_trees_are_made_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = most = 0

    def parse(source: str) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.002)
        inside -= 1

    monkeypatch.setattr(ast, "parse", parse)
    with compiling_for(GPUS["sm_90a"]), ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda source: ast.parse(source), ["a"] * 8))
        ast.parse("b")
    assert most == 1
    assert ast.parse is parse

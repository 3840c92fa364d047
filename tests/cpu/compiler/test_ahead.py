"""What is compiled ahead is what launches ask for."""

from __future__ import annotations

import ast
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from triton.compiler import CompilationError
from triton.runtime import driver
from triton.runtime.jit import JITCallable, JITFunction

from benchmarks.programs import FOUND
from evaluators.plan import load_plan
from evaluators.stages.machine_code import launched
from vortex_core import library
from vortex_core.compiler.interface import BatchView
from vortex_core.compiler.triton import ahead
from vortex_core.compiler.triton.ahead import GPUS, StepShape, compile_ahead
from vortex_core.compiler.triton.backend import TritonFlow
from vortex_core.engine.decode.graph_runner import width_of
from vortex_core.engine.decode.selection import LoadedFlow
from vortex_core.engine.decode.static_step import StaticBuffers, StaticStep
from vortex_core.engine.kv.blocks import BLOCK_TOKENS
from vortex_core.engine.kv.pool import KVPool
from vortex_core.geometry import Geometry
from vortex_core.kernels import runtime
from vortex_core.kernels.compile_ahead import _AbsentDriver, compiling_for
from vortex_core.kernels.decode.plan import AttentionPlan
from vortex_core.kernels.offline import OfflineCompileError
from vortex_core.runtime.budgets import BudgetTable

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


@contextmanager
def launches() -> Iterator[set[tuple[str, ...]]]:
    """Inside, launches of tensors anywhere run nothing and are noted as Triton tells them apart: types, alignments,
    numbers divisible by 16 or equal to 1, options."""
    found: set[tuple[str, ...]] = set()
    gpu = GPUS["sm_90a"]

    def note(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        *_, binder = self.device_caches[driver.active.get_current_device()]
        bound, special, _ = binder(*args, **options)
        found.add(
            (
                self.__name__,
                *map(str, zip(bound, special, strict=True)),
                str(sorted(options.items(), key=str)),
            )
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "_active", _AbsentDriver(gpu))
        patch.setattr(JITFunction, "run", note)
        patch.setattr(runtime, "absent_gpu", lambda device=None: gpu)
        yield found


def step_of_an_engine(flow: TritonFlow, rows: int, tokens: int, longest: int) -> None:
    """All that the layers of a captured step launch, on an engine's own buffers."""
    g, size, here = flow.geometry, flow.knobs.page_size, torch.device("cpu")
    pool = KVPool(g, 64, torch.bfloat16, here)
    loaded, blocks = LoadedFlow(flow, pool), width_of(-(-longest // BLOCK_TOKENS))
    plan = AttentionPlan.allocate(g, BLOCK_TOKENS, torch.bfloat16, 64, here)
    step = StaticStep(
        StaticBuffers(64, blocks, size, g.kv_heads, 32, here), pool, loaded,
        BudgetTable(loaded.plan, blocks * BLOCK_TOKENS, here), (plan, plan.sharing(size, even=True)), rows,
        width_of(-(-tokens // BLOCK_TOKENS)),
    )  # fmt: skip
    loaded.complete(torch.arange(5))
    for layer in range(g.layers):
        q = torch.empty(rows, 1, g.q_heads, g.head_dim, dtype=torch.bfloat16).transpose(1, 2)
        step.attend_stored(layer, q, g.head_dim**-0.5)


@pytest.mark.parametrize(
    ("name", "page", "heads"),
    [("locks", 16, 2), ("quest", 64, 1), ("h2o", 16, 3), ("near_ceiling", 16, 2), ("slow_channels", 32, 2)],
)
def test_an_engine_launches_what_was_compiled(name: str, page: int, heads: int) -> None:
    """With one or two kv heads token counts of every other layer did not begin at 16 bytes, and programs that score
    tokens were cut for tables narrower than an engine's."""
    flow = library.load(name) if name in library.names() else library.resolve(str(FOUND / f"{name}.py"))
    knobs = replace(flow.knobs, page_size=page, budget="512")
    geometry = Geometry(layers=4, kv_heads=heads, group=6, head_dim=128, rope_dim=128, value_dim=128)
    plan = load_plan("gpu")
    shapes = launched(plan, knobs)
    with launches() as compiled:
        made = TritonFlow(flow.program.canonical(), knobs, geometry)
        for shape in shapes:
            ahead._launch(made, shape, torch.bfloat16)
    longest = max(shape.tokens for shape in shapes)
    contexts = sorted({task.context for task in plan.accuracy.tasks})
    with launches() as met:
        for rows in (1, 2, 4, 16, 24, 48):
            for tokens in (*contexts, *(context + 64 for context in contexts)):
                step_of_an_engine(made, rows, tokens, longest)
    assert {"score_kernel", "select_kernel", "update_kernel", "list_decode_kernel"} <= {k[0] for k in met}
    assert [key for key in met - compiled if key[0] != "begin_kernel"] == []


def kernels_here() -> dict[str, JITCallable]:
    """Every function of ours for a GPU, and of Triton's library, by module and name."""
    return {
        f"{found.__module__}.{found.__name__}": found
        for name, module in list(sys.modules.items())
        if name.startswith(("vortex_core.", "vortex_kernels_", "triton.language."))
        for found in list(vars(module).values())
        if isinstance(found, JITCallable)
    }


def test_keys_do_not_depend_on_which_kernel_came_first() -> None:
    """The first kernel of a process that called a function had another key than in the next process: an engine compiled
    again what a worker had compiled for it."""
    flow = TritonFlow(library.load("quest").program.canonical(), library.load("quest").knobs, GEOMETRY)
    with launches():
        ahead._launch(flow, StepShape(1, 128), torch.bfloat16)
    kernels = kernels_here()
    assert len(kernels) > 80
    keys = []
    for names in (sorted(kernels), sorted(kernels, reverse=True)):
        for kernel in kernels.values():
            kernel.hash, kernel.used_global_vals = None, {}
        keys.append({name: kernels[name].cache_key for name in names if not name.startswith("triton.")})
    assert keys[0] == keys[1]


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

"""Kernels of a step compile side by side, none runs, and launches are launches again afterwards."""

from __future__ import annotations

import ast
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton.compiler
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime._async_compile import FutureKernel
from triton.runtime.jit import JITFunction

from vortex_core import library
from vortex_core.engine.decode.graph_runner import Shape
from vortex_core.engine.engine import Engine
from vortex_core.engine.fused import kernels as fused_kernels
from vortex_core.engine.models.random_weights import random_model
from vortex_core.kernels import runtime
from vortex_core.kernels.compile_ahead import compiling_ahead
from vortex_core.specs import load_model


@pytest.fixture
def hopper() -> Any:
    """A GPU to compile for, which is not there."""
    before = driver._active
    target = GPUTarget("cuda", 90, 32)
    driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: 0,
            get_current_stream=lambda device: 0,
            get_current_target=lambda: target,
        )
    )
    yield
    driver._active = before


def test_launches_compile_in_threads_and_do_not_run(hopper: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: dict[str, int] = {}
    compile_one = triton.compiler.compile

    def watched(src: Any, **options: Any) -> Any:
        compiled[src.fn.__name__] = threading.get_ident()
        return compile_one(src, **options)

    monkeypatch.setattr("triton.compiler.compile", watched)
    for kernel in (fused_kernels.rms_norm_kernel, fused_kernels.silu_mul_kernel):
        kernel.device_caches.clear()  # of what other tests compiled for no GPU
    run, parse = JITFunction.run, JITFunction.parse
    x = torch.ones(3, 96, dtype=torch.bfloat16)
    with compiling_ahead():
        out = fused_kernels.rms_norm(x, x[0], 1e-6)
        fused_kernels.silu_mul(x)
        fused_kernels.rms_norm(x, x[0], 1e-6)
    assert out.shape == x.shape
    assert set(compiled) == {"rms_norm_kernel", "silu_mul_kernel"}
    assert threading.get_ident() not in compiled.values()
    assert len(fused_kernels.rms_norm_kernel.device_caches[0][0]) == 1, "ready to launch"
    fused_kernels.rms_norm_kernel.device_caches.clear()
    fused_kernels.silu_mul_kernel.device_caches.clear()
    assert JITFunction.run is run
    assert JITFunction.parse is parse
    with pytest.raises(ZeroDivisionError), compiling_ahead():
        _ = 1 / 0
    assert JITFunction.run is run


def test_syntax_trees_are_made_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Side by side, CPython may refuse one: it counts their depth in one place for all threads."""
    parse, inside, most = ast.parse, 0, 0

    def watched(text: str, *arguments: Any, **options: Any) -> ast.AST:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.01)
        tree = parse(text, *arguments, **options)
        inside -= 1
        return tree

    monkeypatch.setattr(ast, "parse", watched)
    kernels = 4 * [fused_kernels.rms_norm_kernel, fused_kernels.silu_mul_kernel]
    with compiling_ahead(), ThreadPoolExecutor(len(kernels)) as pool:
        trees = list(pool.map(lambda kernel: kernel.parse(), kernels))
    assert [tree.body[0].name for tree in trees] == 4 * ["rms_norm_kernel", "silu_mul_kernel"]
    assert most == 1


@pytest.mark.parametrize(("name", "flow"), [("qwen3-1.7b", "quest"), ("glm-4.7-flash", "block_topk")])
def test_a_step_of_a_real_shape_compiles(
    hopper: Any, monkeypatch: pytest.MonkeyPatch, name: str, flow: str
) -> None:
    """Every launch of a decode step, with the arguments it gets, becomes machine code for a GPU that is not there."""
    compiled: list[Any] = []
    compile_one = triton.compiler.compile

    def watched(src: Any, **options: Any) -> Any:
        made = compile_one(src, **options)
        compiled.append(src.fn)
        return made

    monkeypatch.setattr("triton.compiler.compile", watched)
    monkeypatch.setattr(Engine, "_check_backend", lambda self: True)  # it captures, as on a GPU
    monkeypatch.setattr(runtime, "INTERPRETER_MULTIPROCESSORS", 132)
    spec = load_model(name).model_copy(update={"layers": 2, "vocab": 4096})
    if spec.moe is not None:
        spec = spec.model_copy(update={"moe": spec.moe.model_copy(update={"experts": 8})})
    model, spec = random_model(spec)
    engine = Engine(model, spec=spec, max_tokens=256 * 128, backend="triton")
    traced = library.load(flow).with_knobs(page_size=64, budget="2048")
    engine.load_flow(traced.program, traced.knobs)
    runner = engine._runners.runner(engine.flow)
    failures: list[BaseException] = []
    monkeypatch.setattr(FutureKernel, "result", _collecting(failures))
    with compiling_ahead():
        runner._step(Shape(16, 256, True), 16)
    for kernel in compiled:
        kernel.device_caches.clear()  # of a GPU that is not there
    assert not failures
    expected = {
        "begin_kernel",
        "update_kernel",
        "score_kernel",
        "select_kernel",
        "paged_decode_kernel" if engine.geometry.is_mla else "list_decode_kernel",
        "choose_kernel",
    }
    if spec.moe is not None:
        expected |= {
            "latent_row_kernel",
            "route_kernel",
            "experts_up_kernel",
            "experts_down_kernel",
            "combine_kernel",
        }
    assert expected <= {kernel.__name__ for kernel in compiled}


def _collecting(failures: list[BaseException]) -> Any:
    """`FutureKernel.result` that keeps what went wrong."""
    result = FutureKernel.result

    def collected(self: Any, ignore_errors: bool = False) -> Any:
        try:
            return result(self)
        except Exception as error:
            failures.append(error)

    return collected

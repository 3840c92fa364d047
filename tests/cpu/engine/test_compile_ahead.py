"""Kernels of a step compile side by side, none runs, and launches are launches again afterwards."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton.compiler
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from vortex_core.engine import fused_kernels
from vortex_core.engine.compile_ahead import compiling_ahead


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
    run = JITFunction.run
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
    with pytest.raises(ZeroDivisionError), compiling_ahead():
        _ = 1 / 0
    assert JITFunction.run is run

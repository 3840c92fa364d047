"""What only a GPU runs compiles for Hopper and Blackwell here."""

from __future__ import annotations

import pytest

from tests.cpu.serving.pools import bundle
from vortex_core.compiler.triton.backend import WARPS
from vortex_core.compiler.triton.cache import load_module
from vortex_core.compiler.triton.generate import generate
from vortex_core.compiler.triton.offline import argument_type
from vortex_core.geometry import Geometry
from vortex_core.kernels.offline import compile_kernel
from vortex_core.serving.step_view import BLOCK, step_view_kernel

QWEN = Geometry(layers=28, kv_heads=8, group=2, head_dim=128, rope_dim=128, value_dim=128)
GLM = Geometry(layers=47, kv_heads=1, group=20, head_dim=576, rope_dim=64, value_dim=512)


@pytest.mark.parametrize("target", ["sm_90a", "sm_100a"])
def test_the_view_of_a_step_compiles(target: str) -> None:
    pointers = {
        "slots_ptr": "*i32", "requests_ptr": "*i64", "lengths_in_ptr": "*i64", "allowance_ptr": "*i32",
        "table_ptr": "*i32", "lengths_ptr": "*i32", "budgets_ptr": "*i32",
    }  # fmt: skip
    constants = {"PAGE": 16, "BUDGETS": 2, "BLOCK": BLOCK}
    numbers = {name: "i32" for name in step_view_kernel.arg_names if name not in {**pointers, **constants}}
    report = compile_kernel(step_view_kernel, {**pointers, **numbers}, constants, target=target)
    assert report.stack_bytes == 0


@pytest.mark.parametrize(("geometry", "page"), [(QWEN, 16), (GLM, 64)], ids=["qwen", "glm"])
@pytest.mark.parametrize("flow", ["quest", "block_topk"])
def test_states_of_an_fp8_pool_compile(geometry: Geometry, page: int, flow: str) -> None:
    """Every flow's kernels are compiled for bf16 KV elsewhere; SGLang's pool may hold fp8."""
    made = bundle(flow, page_size=page)
    kernel = load_module(generate(made.program, geometry, page).text).update_kernel
    dtypes = {s.name: s.dtype for s in made.program.states}
    constants = {"DECODE": True, "PDL": 2}
    signature = {a: argument_type(a, dtypes) for a in kernel.arg_names if a not in constants}
    signature |= dict.fromkeys(("k_ptr", "v_ptr"), "*fp8e4nv")
    report = compile_kernel(kernel, signature, constants, num_warps=WARPS)
    assert report.stack_bytes <= 64

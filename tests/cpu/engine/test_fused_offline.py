"""The engine's own kernels compile for Hopper and Blackwell without a GPU, and keep to registers."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from vortex_core.kernels import offline

fused = importlib.import_module("vortex_core.engine.fused_kernels")
BF16 = "*bf16"
KERNELS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "rms_norm_kernel": (
        {"x_ptr": BF16, "weight_ptr": BF16, "out_ptr": BF16, "rows": "i32", "stride": "i32", "eps": "fp32"},
        {"DIM": 4096, "BLOCK": 4096, "ROWS": 1},
    ),
    "norm_rotate_kernel": (
        {
            **dict.fromkeys(("qkv_ptr", "q_weight_ptr", "k_weight_ptr", "cos_ptr", "sin_ptr"), BF16),
            **dict.fromkeys(("tokens", "stride", "stride_cos"), "i32"),
            "eps": "fp32",
        },
        {"Q_HEADS": 16, "DIM": 128, "HALF_PAD": 64, "NORM": True, "ROWS": 1},
    ),
    "silu_mul_kernel": (
        {"x_ptr": BF16, "out_ptr": BF16, "tokens": "i32", "stride": "i32"},
        {"WIDTH": 6144, "BLOCK": 1024, "ROWS": 1},
    ),
    "keep_lists_kernel": (
        {
            **dict.fromkeys(
                ("kept_ptr", "kept_lens_ptr", "new_ptr", "new_lens_ptr", "table_ptr", "lengths_ptr", "ages_ptr"),
                "*i32",
            ),
            **dict.fromkeys(("stride_kept", "stride_new", "stride_table", "period", "capacity"), "i32"),
        },
        {"HEADS": 8, "PAGE": 16, "BLOCK": 256, "SELECTS": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("target", ["sm_90a", "sm_100a"])
@pytest.mark.parametrize("name", sorted(KERNELS))
def test_kernels_compile_without_spills(name: str, target: str) -> None:
    signature, constants = KERNELS[name]
    kernel = offline.build_kernel(
        getattr(fused, name), signature, constants, target=target, num_warps=1 if "s_k" in name else 4
    )
    usage, _ = offline.read_cubin(kernel.asm["cubin"])
    assert usage["STACK"] == usage.get("LOCAL", 0) == 0
    assert usage["REG"] <= 128

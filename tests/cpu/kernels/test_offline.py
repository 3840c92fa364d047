"""Kernels compile for Hopper and Blackwell without a GPU, without spills, with the instructions they are due."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

# Half a minute of compiling on an idle machine; a busy one must not fail it.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

HOPPER = (
    "decode-d128-g4-bf16-p16-r128",
    "decode-d128-g4-bf16-p64-r8",
    "decode-d128-g7-bf16-p8-r2048-mass",
    "decode-d96-g5-bf16-p32-r128",
    "decode-d192-g16-bf16-p16-r128",
    "decode-d256-g2-bf16-p128-r128",
    "decode-d128-g4-fp8e4nv-p16-r128",
    "latent-g20-p64-r32-even",
    "latent-g20-p16-r32",
    "lists-d128-g4-bf16-p16-r128",
    "lists-d128-g7-bf16-p8-r64-mass",
    "mla-g20-bf16-p64",
    "mla-g64-bf16-p64",
    "mla-g20-fp8e4nv-p64",
    "select-2048-k128-fp32",
    "select-8192-k128-fp32",
    "select-65536-k128-fp32",
    "select-2048-k128-fp32-top-p-list",
    "select-8192-k128-fp32-threshold",
    "select-65536-k128-fp32-top-p",
    "merge",
    "merge-even",
    "write-decode",
    "write-latent",
)
BLACKWELL = ("decode-d128-g4-bf16-p16-r128", "mla-g20-bf16-p64", "select-2048-k128-bf16-stochastic")

# Known spills, in bytes a thread: outside the inner loop, and no more than this.
KNOWN_SPILLS = {
    ("mla-g20-fp8e4nv-p64", "sm_90a"): 16,
    ("mla-g20-bf16-p64", "sm_100a"): 16,
    ("select-8192-k128-fp32", "sm_90a"): 24,
    ("select-8192-k128-fp32-sifted", "sm_90a"): 48,
    ("decode-d128-g4-bf16-p16-r128", "sm_100a"): 16,
}
MAX_SHARED_BYTES = 227 * 1024  # a block's limit on both chips


@cache
def reports(target: str) -> dict[str, dict[str, Any]]:
    """In a process of its own: one that interprets kernels cannot compile them."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    names = HOPPER if target == "sm_90a" else BLACKWELL
    command = [sys.executable, "-m", "vortex_core.kernels.variants", "--target", target, *names]
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=env, timeout=580)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row["variant"]: row for row in rows}


CASES = [(name, "sm_90a") for name in HOPPER] + [(name, "sm_100a") for name in BLACKWELL]


@pytest.mark.parametrize(("name", "target"), CASES)
def test_compiles_without_spills(name: str, target: str) -> None:
    row = reports(target)[name]
    assert row["stack_bytes"] <= KNOWN_SPILLS.get((name, target), 0), row
    assert 0 < row["registers"] <= 255
    assert row["shared_bytes"] <= MAX_SHARED_BYTES
    assert row["memory_before_wait"] == 0, "a kernel that starts early must wait before it touches memory"


@pytest.mark.parametrize(
    ("name", "target"), [c for c in CASES if c[0].startswith(("decode", "latent", "mla"))]
)
def test_streams_through_tensor_cores_and_wide_asynchronous_copies(name: str, target: str) -> None:
    row = reports(target)[name]
    assert row["streams"]
    assert row["tensor_cores"], row["opcodes"]
    assert row["async_copy"], row["opcodes"]
    # The converted fp8 latent feeds both products, which Triton does not pipeline: only the rotary part is.
    assert row["copy_bits"] == (64 if "mla" in name and "fp8" in name else 128)


def test_latent_tiles_feed_warpgroup_products_from_shared_memory() -> None:
    """Nothing reads a tile back into registers: the products find their operands in shared memory."""
    for name in (n for n in HOPPER if n.startswith("latent")):
        opcodes = reports("sm_90a")[name]["opcodes"]
        assert opcodes["HGMMA"] > 0
        assert not opcodes.get("LDSM") and not opcodes.get("HMMA"), opcodes


def test_a_spilling_kernel_is_reported() -> None:
    """The check itself can fail: one warp for a wide head shows its spills."""
    source = (
        "import torch\n"
        "from vortex_core.kernels import variants as v\n"
        "from vortex_core.kernels.decode.paged_kernel import paged_decode_kernel as kernel\n"
        "from vortex_core.kernels.decode.config import DecodeConfig\n"
        "from vortex_core.kernels.decode.paged import decode_constants\n"
        "bf16 = torch.bfloat16\n"
        "c = decode_constants(heads=1, kv_repeat=1, group=4, page_size=64, dim=256, dim_v=256,\n"
        "    kv_dtype=bf16, stride_k_token=256, stride_v_token=256, config=DecodeConfig(16, 1, 3, 1), rows=32,\n"
        "    value_in_key=False, has_lse=False, has_page_lse=False) | {'PDL': 2}\n"
        "p = v.attention_pointers(bf16)\n"
        "r = v.compile_kernel(kernel, v.signature(kernel, c, p), c, num_warps=1)\n"
        "assert r.spills and r.stack_bytes > 100, r\n"
        "print('spills')\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, cwd=root, env=env, timeout=580
    )
    assert done.stdout.strip() == "spills", done.stderr[-2000:]

"""A value that keeps its layout: what Triton must not compute again in the layout of whoever uses it."""

from __future__ import annotations

import triton
import triton.language as tl

from vortex_core.kernels.runtime import INTERPRETED

COMPILED: tl.constexpr = tl.constexpr(not INTERPRETED)


@triton.jit
def anchored(x):
    """`x`, fp32. A statement with effects is not moved and not repeated, so layouts are converted after it."""
    if COMPILED:
        x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=False, pack=1)
    return x

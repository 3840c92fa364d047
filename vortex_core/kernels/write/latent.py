"""What a step of latent attention writes before it attends: the new tokens' rows, and the whole queries.

A model computes a cached row in two parts, the normalised latent and the rotated key, and a query in two parts as
well, the absorbed and the rotated one. Attention reads each as one row of 512 + 64 channels. Put side by side in
one launch they cost one of the short kernels of a decode step instead of two.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vortex_core.kernels.dependent import await_previous
from vortex_core.kernels.pages import require
from vortex_core.kernels.runtime import dependent_launch, next_power_of_2
from vortex_core.kernels.write.paged import scatter_rows

HEADS_A_PROGRAM = 4


@triton.jit
def latent_write_kernel(
    latent_ptr, rope_ptr, cache_ptr, slots_ptr, q_latent_ptr, q_rope_ptr, q_ptr, limit,
    stride_latent, stride_rope, stride_page, stride_token, stride_ql_b, stride_ql_h, stride_qr_b, stride_qr_h,
    PAGE: tl.constexpr, HEADS: tl.constexpr, BLOCK_H: tl.constexpr, LATENT: tl.constexpr,
    LATENT_PAD: tl.constexpr, ROPE: tl.constexpr, ROPE_PAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (1 + head blocks, token): the cached row, then BLOCK_H heads of the query a program."""
    await_previous(PDL)
    part = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    latent = tl.arange(0, LATENT_PAD)
    rope = tl.arange(0, ROPE_PAD)
    if part == 0:
        token = tl.program_id(1) + tl.arange(0, 1)
        slot = tl.load(slots_ptr + token).to(tl.int64)
        ok = slot >= 0
        slot = tl.maximum(slot, 0)
        scatter_rows(
            cache_ptr, latent_ptr, token, slot, ok, 0, 1.0, limit,
            stride_page, stride_token, 0, stride_latent, 0, PAGE, LATENT, LATENT_PAD,
        )  # fmt: skip
        scatter_rows(
            cache_ptr + LATENT, rope_ptr, token, slot, ok, 0, 1.0, limit,
            stride_page, stride_token, 0, stride_rope, 0, PAGE, ROPE, ROPE_PAD,
        )  # fmt: skip
    else:
        head = (part - 1) * BLOCK_H + tl.arange(0, BLOCK_H)
        real = (head < HEADS)[:, None]
        row = (b * HEADS + head)[:, None] * (LATENT + ROPE)
        ok_latent = real & (latent < LATENT)[None, :]
        source = q_latent_ptr + b * stride_ql_b + head[:, None] * stride_ql_h + latent[None, :]
        tl.store(q_ptr + row + latent[None, :], tl.load(source, mask=ok_latent, other=0.0), mask=ok_latent)
        ok_rope = real & (rope < ROPE)[None, :]
        source = q_rope_ptr + b * stride_qr_b + head[:, None] * stride_qr_h + rope[None, :]
        tl.store(q_ptr + row + LATENT + rope[None, :], tl.load(source, mask=ok_rope, other=0.0), mask=ok_rope)


def write_latent(
    latent: Tensor, rope: Tensor, cache: Tensor, slots: Tensor, q_latent: Tensor, q_rope: Tensor
) -> Tensor:
    """Stores latent rows and returns the queries that belong to them, each put together from its two parts.

    Args:
        latent: `[token, 512]` (or another width), rope: `[token, 64]`; any strides with channels contiguous.
        cache: `[page, token, 576]`; fp8 saturates.
        slots: int32 or int64 `[token]`, page * page_size + offset, negative to skip.
        q_latent: `[token, head, 512]`, q_rope: `[token, head, 64]`; any strides with channels contiguous.

    Returns:
        `[token, head, 576]`.

    Raises:
        KernelInputError: if shapes or strides are others.
    """
    tokens, width = latent.shape
    heads, narrow = q_latent.shape[1], rope.shape[1]
    parts = (latent, rope, cache, q_latent, q_rope)
    require(all(x.stride(-1) == 1 for x in parts), "channels must be contiguous")
    require(
        cache.dim() == 3 and cache.shape[2] == width + narrow,
        f"cache must be [page, token, {width} + {narrow}], got {tuple(cache.shape)}",
    )
    require(
        q_latent.shape == (tokens, heads, width) and q_rope.shape == (tokens, heads, narrow),
        f"queries must be [{tokens}, head, {width}] and [{tokens}, head, {narrow}], "
        f"got {tuple(q_latent.shape)} and {tuple(q_rope.shape)}",
    )
    require(
        rope.shape[0] == slots.numel() == tokens and slots.is_contiguous(),
        f"rope and slots must be of {tokens} tokens",
    )
    q = torch.empty(tokens, heads, width + narrow, dtype=q_latent.dtype, device=q_latent.device)
    if tokens == 0:
        return q
    latent_write_kernel[(1 + triton.cdiv(heads, HEADS_A_PROGRAM), tokens)](
        latent, rope, cache, slots, q_latent, q_rope, q, torch.finfo(cache.dtype).max,
        latent.stride(0), rope.stride(0), cache.stride(0), cache.stride(1),
        q_latent.stride(0), q_latent.stride(1), q_rope.stride(0), q_rope.stride(1),
        PAGE=cache.shape[1], HEADS=heads, BLOCK_H=HEADS_A_PROGRAM, LATENT=width,
        LATENT_PAD=next_power_of_2(width), ROPE=narrow, ROPE_PAD=next_power_of_2(narrow),
        num_warps=4, **dependent_launch(latent.device),
    )  # fmt: skip
    return q

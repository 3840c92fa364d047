"""Writes new keys and values into the paged pool, cast and scaled, both in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vortex_core.kernels.dependent import await_previous
from vortex_core.kernels.pages import require
from vortex_core.kernels.runtime import dependent_launch, next_power_of_2


@triton.jit
def scatter_rows(
    cache_ptr, rows_ptr, token, slot, ok, head, inverse_scale, limit,
    stride_page, stride_token, stride_head, stride_row, stride_row_head,
    PAGE: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr,
):  # fmt: skip
    """Rows of new tokens to their slots, cast and scaled; those not `ok` are left out."""
    channel = tl.arange(0, DIM_PAD)
    mask = ok[:, None] & (channel < DIM)[None, :]
    source = token.to(tl.int64) * stride_row + head * stride_row_head
    x = tl.load(rows_ptr + source[:, None] + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    # Saturate as serving engines do: an overflow to NaN or infinity would poison the sequence.
    x = tl.minimum(tl.maximum(x * inverse_scale, -limit), limit)
    at = (slot // PAGE) * stride_page + (slot % PAGE) * stride_token + head * stride_head
    tl.store(cache_ptr + at[:, None] + channel[None, :], x.to(cache_ptr.dtype.element_ty), mask=mask)


@triton.jit
def kv_write_kernel(
    k_ptr, v_ptr, k_cache_ptr, v_cache_ptr, slots_ptr, tokens, k_inverse, v_inverse, k_limit, v_limit,
    stride_k, stride_k_head, stride_v, stride_v_head,
    stride_kc_page, stride_kc_token, stride_kc_head, stride_vc_page, stride_vc_token, stride_vc_head,
    PAGE: tl.constexpr, DK: tl.constexpr, DK_PAD: tl.constexpr, DV: tl.constexpr, DV_PAD: tl.constexpr,
    HAS_V: tl.constexpr, BLOCK_T: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (token block, kv head)."""
    await_previous(PDL)
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    head = tl.program_id(1).to(tl.int64)
    slot = tl.load(slots_ptr + token, mask=token < tokens, other=-1).to(tl.int64)
    ok = slot >= 0
    slot = tl.maximum(slot, 0)
    scatter_rows(
        k_cache_ptr, k_ptr, token, slot, ok, head, k_inverse, k_limit,
        stride_kc_page, stride_kc_token, stride_kc_head, stride_k, stride_k_head, PAGE, DK, DK_PAD,
    )  # fmt: skip
    if HAS_V:
        scatter_rows(
            v_cache_ptr, v_ptr, token, slot, ok, head, v_inverse, v_limit,
            stride_vc_page, stride_vc_token, stride_vc_head, stride_v, stride_v_head, PAGE, DV, DV_PAD,
        )  # fmt: skip


def _block_t(tokens: int) -> int:
    # A decode step has few tokens and wants one program each; a prefill has many and wants fuller programs.
    return 1 if tokens <= 1024 else 16


def _check(name: str, rows: Tensor, cache: Tensor) -> None:
    require(
        rows.dim() == 3 and rows.stride(2) == 1,
        f"{name} must be [token, kv_head, dim], got {tuple(rows.shape)}",
    )
    require(cache.dim() == 4 and cache.stride(3) == 1, f"{name}_cache must be [page, token, kv_head, dim]")
    require(
        rows.shape[1:] == cache.shape[2:],
        f"{name} is {tuple(rows.shape[1:])} a token, the cache {tuple(cache.shape[2:])}",
    )


def write_kv(
    k: Tensor,
    v: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor | None,
    slots: Tensor,
    *,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """Stores the keys and values of new tokens: cache[slot] = value / scale.

    k, v [token, kv_head, dim]; caches [page, token, kv_head, dim], any strides with dim contiguous; slots
    int32 or int64 [token], page * page_size + offset, negative to skip (padding of a captured batch). fp8
    saturates. Without `v` and `v_cache` only keys are written. Raises KernelInputError.
    """
    _check("k", k, k_cache)
    has_v = v is not None and v_cache is not None
    require(has_v == (v is not None or v_cache is not None), "give both v and v_cache, or neither")
    if v is None or v_cache is None:
        v, v_cache = k, k_cache
    _check("v", v, v_cache)
    tokens, heads = k.shape[0], k.shape[1]
    page_size = k_cache.shape[1]
    require(slots.numel() == tokens and slots.is_contiguous(), f"slots must be contiguous [{tokens}]")
    require(v_cache.shape[1] == page_size, "k_cache and v_cache differ in page size")
    if tokens == 0:
        return
    block_t = _block_t(tokens)
    kv_write_kernel[(triton.cdiv(tokens, block_t), heads)](
        k, v, k_cache, v_cache, slots, tokens, 1.0 / k_scale, 1.0 / v_scale,
        torch.finfo(k_cache.dtype).max, torch.finfo(v_cache.dtype).max,
        k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        k_cache.stride(0), k_cache.stride(1), k_cache.stride(2),
        v_cache.stride(0), v_cache.stride(1), v_cache.stride(2),
        PAGE=page_size, DK=k.shape[2], DK_PAD=next_power_of_2(k.shape[2]),
        DV=v.shape[2], DV_PAD=next_power_of_2(v.shape[2]), HAS_V=has_v, BLOCK_T=block_t,
        num_warps=1 if block_t == 1 else 4, **dependent_launch(k.device),
    )  # fmt: skip

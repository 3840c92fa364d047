"""Pointwise Triton kernels of a transformer layer, and the one that keeps page lists across steps.

A decode step of a small batch is bound by the number of its launches wherever it does not stream weights or KV, so
normalisation, rotation and the gated activation are one launch each. Every intermediate is rounded where
transformers rounds it, so that fusing changes no token.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vortex_core.kernels.dependent import await_previous
from vortex_core.kernels.runtime import INTERPRETED, dependent_launch, next_power_of_2
from vortex_core.page_list import PageList

# Tokens of a program: a decode step has few. The interpreter pays for every program, not for what it holds.
ROWS = 64 if INTERPRETED else 1


@triton.jit
def _normed(x, weight, mean_square, eps, dtype: tl.constexpr):
    """RMSNorm (arXiv 1910.07467), rounded to `dtype` before and after the weight."""
    return (weight * (x * tl.rsqrt(mean_square + eps)).to(dtype).to(tl.float32)).to(dtype).to(tl.float32)


@triton.jit
def rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, out_ptr, rows, stride, eps,
    DIM: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr, ROWS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (row blocks,). With `ADD` first residual += x, in place, and that is normalised."""
    await_previous(PDL)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    ok = (row < rows) & (channel < DIM)
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    at = row * DIM + channel
    x = tl.load(x_ptr + row * stride + channel, mask=ok, other=0.0).to(tl.float32)
    if ADD:
        total = (tl.load(residual_ptr + at, mask=ok, other=0.0).to(tl.float32) + x).to(dtype)
        tl.store(residual_ptr + at, total, mask=ok)
        x = total.to(tl.float32)
    weight = tl.load(weight_ptr + channel, mask=channel < DIM, other=0.0).to(tl.float32)
    mean_square = tl.sum(x * x, 1)[:, None] / DIM
    tl.store(out_ptr + at, _normed(x, weight, mean_square, eps, dtype).to(dtype), mask=ok)


@triton.jit
def _narrow(x, limit, dtype: tl.constexpr):
    """To the type of a cache; fp8 saturates, as in `kernels.kv_write`."""
    return tl.minimum(tl.maximum(x.to(tl.float32), -limit), limit).to(dtype)


@triton.jit
def norm_rotate_kernel(
    qkv_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr, k_cache_ptr, v_cache_ptr, slots_ptr, tokens, stride,
    stride_cos, stride_k_head, stride_v_head, eps, limit,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, HALF_PAD: tl.constexpr,
    NORM: tl.constexpr, STORE: tl.constexpr, ROWS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (token blocks, heads): one head's channels, normalised and rotated in place.

    With `STORE` keys go to their slots in the cache instead, and the grid goes on with the heads of the values, which
    go there as they are.
    """
    await_previous(PDL)
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    head = tl.program_id(1)
    half = tl.arange(0, HALF_PAD)[None, :]
    in_head = half < DIM // 2
    ok = (token < tokens) & in_head
    base = qkv_ptr + token * stride + head * DIM
    dtype: tl.constexpr = qkv_ptr.dtype.element_ty
    low = tl.load(base + half, mask=ok, other=0.0).to(tl.float32)
    high = tl.load(base + DIM // 2 + half, mask=ok, other=0.0).to(tl.float32)
    if STORE:
        slot = tl.load(slots_ptr + token, mask=token < tokens, other=-1)
        held = ok & (slot >= 0)
        if head >= Q_HEADS + KV_HEADS:
            at = v_cache_ptr + (head - Q_HEADS - KV_HEADS).to(tl.int64) * stride_v_head + slot * DIM + half
            narrow: tl.constexpr = v_cache_ptr.dtype.element_ty
            tl.store(at, _narrow(low, limit, narrow), mask=held)
            tl.store(at + DIM // 2, _narrow(high, limit, narrow), mask=held)
            return
    if NORM:
        weight = q_weight_ptr
        if head >= Q_HEADS:
            weight = k_weight_ptr
        mean_square = (tl.sum(low * low, 1) + tl.sum(high * high, 1))[:, None] / DIM
        w_low = tl.load(weight + half, mask=in_head, other=0.0).to(tl.float32)
        w_high = tl.load(weight + DIM // 2 + half, mask=in_head, other=0.0).to(tl.float32)
        low = _normed(low, w_low, mean_square, eps, dtype)
        high = _normed(high, w_high, mean_square, eps, dtype)
    cos, sin = cos_ptr + token * stride_cos + half, sin_ptr + token * stride_cos + half
    cos_low = tl.load(cos, mask=ok, other=0.0).to(tl.float32)
    cos_high = tl.load(cos + DIM // 2, mask=ok, other=0.0).to(tl.float32)
    sin_low = tl.load(sin, mask=ok, other=0.0).to(tl.float32)
    sin_high = tl.load(sin + DIM // 2, mask=ok, other=0.0).to(tl.float32)
    new_low = (low * cos_low).to(dtype).to(tl.float32) + (-high * sin_low).to(dtype).to(tl.float32)
    new_high = (high * cos_high).to(dtype).to(tl.float32) + (low * sin_high).to(dtype).to(tl.float32)
    new_low, new_high = new_low.to(dtype), new_high.to(dtype)
    if STORE:  # noqa: SIM102  (one is known when the kernel is compiled)
        if head >= Q_HEADS:
            at = k_cache_ptr + (head - Q_HEADS).to(tl.int64) * stride_k_head + slot * DIM + half
            key: tl.constexpr = k_cache_ptr.dtype.element_ty
            tl.store(at, _narrow(new_low, limit, key), mask=held)
            tl.store(at + DIM // 2, _narrow(new_high, limit, key), mask=held)
            return
    tl.store(base + half, new_low, mask=ok)
    tl.store(base + DIM // 2 + half, new_high, mask=ok)


@triton.jit
def angles_kernel(
    positions_ptr, frequencies_ptr, cos_ptr, sin_ptr, tokens, scale, HALF: tl.constexpr, HALF_PAD: tl.constexpr,
    ROWS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (token blocks,): cosine and sine of each pair's angle, twice side by side."""
    await_previous(PDL)
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    half = tl.arange(0, HALF_PAD)[None, :]
    ok = (token < tokens) & (half < HALF)
    position = tl.load(positions_ptr + token, mask=token < tokens, other=0).to(tl.float32)
    angle = position * tl.load(frequencies_ptr + half, mask=half < HALF, other=0.0).to(tl.float32)
    cos = (tl.cos(angle) * scale).to(cos_ptr.dtype.element_ty)
    sin = (tl.sin(angle) * scale).to(sin_ptr.dtype.element_ty)
    at = token * (2 * HALF) + half
    tl.store(cos_ptr + at, cos, mask=ok)
    tl.store(cos_ptr + at + HALF, cos, mask=ok)
    tl.store(sin_ptr + at, sin, mask=ok)
    tl.store(sin_ptr + at + HALF, sin, mask=ok)


@triton.jit
def silu_mul_kernel(
    x_ptr,
    out_ptr,
    tokens,
    stride,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (token blocks, column blocks): silu(gate) * up, from `[gate, up]` side by side."""
    await_previous(PDL)
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    ok = (token < tokens) & (column < WIDTH)
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    gate = tl.load(x_ptr + token * stride + column, mask=ok, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + token * stride + WIDTH + column, mask=ok, other=0.0).to(tl.float32)
    y = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32) * up
    tl.store(out_ptr + token * WIDTH + column, y.to(dtype), mask=ok)


@triton.jit
def keep_lists_kernel(
    kept_ptr, kept_lens_ptr, new_ptr, new_lens_ptr, table_ptr, lengths_ptr, ages_ptr,
    stride_kept, stride_new, stride_table, period, capacity,
    HEADS: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr, SELECTS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (batch * heads,): a row that is due takes its new list; any other gets the page being written."""
    await_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    b = row // HEADS
    length = tl.load(lengths_ptr + b)
    if length == 0:
        return
    kept = kept_ptr + row * stride_kept
    due = SELECTS & (tl.load(ages_ptr + b) % period == 0)
    if due:
        for start in range(0, capacity, BLOCK):
            at = start + tl.arange(0, BLOCK)
            ids = tl.load(new_ptr + row * stride_new + at, mask=at < capacity, other=0)
            tl.store(kept + at, ids, mask=at < capacity)
        tl.store(kept_lens_ptr + row, tl.load(new_lens_ptr + row))
        return
    count = (tl.load(kept_lens_ptr + row) + PAGE - 1) // PAGE
    newest = tl.load(table_ptr + b * stride_table + (length - 1) // PAGE)
    last = tl.load(kept + tl.maximum(count - 1, 0))
    count = tl.where((count == 0) | (last != newest), count + 1, count)
    tl.store(kept + count - 1, newest)
    tl.store(kept_lens_ptr + row, (count - 1) * PAGE + (length - 1) % PAGE + 1)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalise the last dimension. `x`: any shape; the result is contiguous."""
    return _rms_norm(x.reshape(-1, x.shape[-1]), None, weight, eps).view(x.shape)


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`residual += x`, in place, and the norm of that. `x, residual`: `[..., dim]`, both contiguous."""
    assert x.is_contiguous() and residual.is_contiguous() and x.shape == residual.shape
    return _rms_norm(x.view(-1, x.shape[-1]), residual, weight, eps).view(x.shape)


def _rms_norm(
    rows: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """`rows`: `[row, dim]`, channels contiguous."""
    count, dim = rows.shape
    out = torch.empty(count, dim, dtype=rows.dtype, device=rows.device)
    if count:
        block = next_power_of_2(dim)
        rms_norm_kernel[(triton.cdiv(count, ROWS),)](
            rows, residual, weight, out, count, rows.stride(0), eps, DIM=dim, BLOCK=block,
            ADD=residual is not None, ROWS=ROWS, num_warps=4 if block <= 2048 else 8,
            **dependent_launch(rows.device),
        )  # fmt: skip
    return out


def norm_rotate(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    q_heads: int,
    kv_heads: int,
    dim: int,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
    store: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> None:
    """Normalise (where there are weights) and rotate the query and key heads in place.

    Args:
        qkv: `[token, (q_heads + 2 * kv_heads) * dim]`, queries, keys, values side by side.
        cos, sin: `[token, dim]`, in the dtype of `qkv`.
        store: caches of keys and values, `[kv_head, slot, dim]`, and int64 slots `[token]`, negative to skip: keys
            and values are written there, and `qkv` keeps the keys as they were.
    """
    assert cos.stride() == sin.stride() and cos.stride(-1) == 1
    norm = q_weight is not None
    tokens, heads = qkv.shape[0], q_heads + kv_heads
    k_cache = v_cache = slots = None
    strides, limit = (0, 0), 0.0
    if store is not None:
        k_cache, v_cache, slots = store
        heads += kv_heads
        assert k_cache.stride()[1:] == v_cache.stride()[1:] == (dim, 1) and slots.is_contiguous()
        strides, limit = (k_cache.stride(0), v_cache.stride(0)), torch.finfo(k_cache.dtype).max
    norm_rotate_kernel[(triton.cdiv(tokens, ROWS), heads)](
        qkv, q_weight, k_weight, cos, sin, k_cache, v_cache, slots, tokens, qkv.stride(0), cos.stride(0),
        *strides, eps, limit, Q_HEADS=q_heads, KV_HEADS=kv_heads, DIM=dim, HALF_PAD=next_power_of_2(dim // 2),
        NORM=norm, STORE=store is not None, ROWS=ROWS, num_warps=1, **dependent_launch(qkv.device),
    )  # fmt: skip


def rotary_angles(
    positions: torch.Tensor, frequencies: torch.Tensor, scale: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, `[*positions, 2 * pairs]`. `positions`: any shape; `frequencies`: float32 `[pairs]`."""
    half, count = len(frequencies), positions.numel()
    cos, sin = (
        torch.empty(*positions.shape, 2 * half, dtype=dtype, device=positions.device) for _ in range(2)
    )
    if count:
        angles_kernel[(triton.cdiv(count, ROWS),)](
            positions.contiguous(), frequencies, cos, sin, count, scale, HALF=half,
            HALF_PAD=next_power_of_2(half), ROWS=ROWS, num_warps=1, **dependent_launch(positions.device),
        )  # fmt: skip
    return cos, sin


def silu_mul(x: torch.Tensor) -> torch.Tensor:
    """`[token, 2 * width]` to `[token, width]`."""
    tokens, width = x.shape[0], x.shape[1] // 2
    out = torch.empty(tokens, width, dtype=x.dtype, device=x.device)
    block = min(1024, next_power_of_2(width))
    silu_mul_kernel[(triton.cdiv(tokens, ROWS), triton.cdiv(width, block))](
        x, out, tokens, x.stride(0), WIDTH=width, BLOCK=block, ROWS=ROWS, num_warps=4,
        **dependent_launch(x.device),
    )  # fmt: skip
    return out


def keep_lists(
    kept: PageList,
    new: PageList | None,
    table: torch.Tensor,
    lengths: torch.Tensor,
    ages: torch.Tensor,
    *,
    period: int,
) -> None:
    """Carry page lists over a step (LServe's reusable selection, arXiv 2502.14866).

    Args:
        kept: the lists in use, rewritten in place.
        new: this step's selection; None where no row is due.
        table: int32 `[batch, pages]`, logical to physical.
        lengths, ages: int32 `[batch]`; a row is due when its age is a multiple of `period`.
    """
    given = kept if new is None else new
    ids, lens, given_ids, given_lens = (
        x.flatten(0, 1) for x in (kept.page_ids, kept.lengths, given.page_ids, given.lengths)
    )
    keep_lists_kernel[(len(lens),)](
        ids, lens, given_ids, given_lens, table, lengths, ages, ids.stride(0), given_ids.stride(0), table.stride(0),
        period, given.columns, HEADS=kept.heads, PAGE=kept.page_size, BLOCK=256, SELECTS=new is not None,
        num_warps=1, **dependent_launch(ids.device),
    )  # fmt: skip

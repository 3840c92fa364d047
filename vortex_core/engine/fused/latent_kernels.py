"""What a decode step of latent attention does to single channels: normalise the latent, rotate its other part."""

from __future__ import annotations

import triton
import triton.language as tl

from vortex_core.engine.fused.kernels import _narrow, _normed
from vortex_core.kernels.dependent import await_previous


@triton.jit
def _rotated(base, pair, ok, cos, sin, HALF: tl.constexpr, INTERLEAVED: tl.constexpr, dtype: tl.constexpr):
    """Both halves of a rotated stretch, rounded as transformers rounds."""
    if INTERLEAVED:
        a_at, b_at = base + 2 * pair, base + 2 * pair + 1
    else:
        a_at, b_at = base + pair, base + HALF + pair
    a = tl.load(a_at, mask=ok, other=0.0).to(tl.float32)
    b = tl.load(b_at, mask=ok, other=0.0).to(tl.float32)
    low = (a * cos).to(dtype).to(tl.float32) - (b * sin).to(dtype).to(tl.float32)
    high = (b * cos).to(dtype).to(tl.float32) + (a * sin).to(dtype).to(tl.float32)
    return low.to(dtype), high.to(dtype)


@triton.jit
def latent_row_kernel(
    x_ptr, weight_ptr, cos_ptr, sin_ptr, out_ptr, slots_ptr, q_weight_ptr, q_out_ptr, tokens, stride_x,
    stride_angle, eps, q_eps, limit,
    WIDTH: tl.constexpr, Q_PAD: tl.constexpr, Q_NORM: tl.constexpr, LATENT: tl.constexpr,
    LATENT_PAD: tl.constexpr, HALF: tl.constexpr, HALF_PAD: tl.constexpr, INTERLEAVED: tl.constexpr,
    STORE: tl.constexpr, ROWS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (token blocks,): from `[queries, latent, rotary key]` the cached row, its latent normalised and its key
    rotated, and with `Q_NORM` the normalised queries. With `STORE` rows go to their slots of a cache."""
    await_previous(PDL)
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, LATENT_PAD)[None, :]
    pair = tl.arange(0, HALF_PAD)[None, :]
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    kept: tl.constexpr = out_ptr.dtype.element_ty
    to = token
    if STORE:
        to = tl.load(slots_ptr + token, mask=token < tokens, other=-1)
    if Q_NORM:
        at = tl.arange(0, Q_PAD)[None, :]
        ok = (token < tokens) & (at < WIDTH)
        q = tl.load(x_ptr + token * stride_x + at, mask=ok, other=0.0).to(tl.float32)
        weight = tl.load(q_weight_ptr + at, mask=at < WIDTH, other=0.0).to(tl.float32)
        q = _normed(q, weight, tl.sum(q * q, 1)[:, None] / WIDTH, q_eps, dtype)
        tl.store(q_out_ptr + token * WIDTH + at, q.to(dtype), mask=ok)
    x_ptr += WIDTH
    ok = (token < tokens) & (channel < LATENT)
    c = tl.load(x_ptr + token * stride_x + channel, mask=ok, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + channel, mask=channel < LATENT, other=0.0).to(tl.float32)
    c = _normed(c, weight, tl.sum(c * c, 1)[:, None] / LATENT, eps, dtype)
    row = out_ptr + to * (LATENT + 2 * HALF)
    tl.store(row + channel, _narrow(c, limit, kept), mask=ok & (to >= 0))
    ok = (token < tokens) & (pair < HALF)
    cos = tl.load(cos_ptr + token * stride_angle + pair, mask=ok, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + token * stride_angle + pair, mask=ok, other=0.0).to(tl.float32)
    low, high = _rotated(x_ptr + token * stride_x + LATENT, pair, ok, cos, sin, HALF, INTERLEAVED, dtype)
    tl.store(row + LATENT + pair, _narrow(low, limit, kept), mask=ok & (to >= 0))
    tl.store(row + LATENT + HALF + pair, _narrow(high, limit, kept), mask=ok & (to >= 0))


@triton.jit
def rotate_queries_kernel(
    q_ptr, cos_ptr, sin_ptr, out_ptr, rows, heads, stride_angle,
    NOPE: tl.constexpr, LATENT: tl.constexpr, HALF: tl.constexpr, HALF_PAD: tl.constexpr,
    INTERLEAVED: tl.constexpr, ROWS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of token x head,): the rotary part of each query, behind its absorbed part."""
    await_previous(PDL)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    pair = tl.arange(0, HALF_PAD)[None, :]
    ok = (row < rows) & (pair < HALF)
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    angle = (row // heads) * stride_angle + pair
    cos = tl.load(cos_ptr + angle, mask=ok, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + angle, mask=ok, other=0.0).to(tl.float32)
    base = q_ptr + row * (NOPE + 2 * HALF) + NOPE
    low, high = _rotated(base, pair, ok, cos, sin, HALF, INTERLEAVED, dtype)
    out = out_ptr + row * (LATENT + 2 * HALF) + LATENT
    tl.store(out + pair, low, mask=ok)
    tl.store(out + HALF + pair, high, mask=ok)

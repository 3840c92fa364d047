"""Mixture-of-experts layers of a decode step: routing, the two products of the chosen experts, and their sum.

A step has few tokens, so its time is that of reading the chosen experts' weights once. Every launch has a fixed grid
and decides on the device what it does, so a captured graph fits whatever the router says.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vortex_core.kernels.decode.paged import operand_dtype
from vortex_core.kernels.dependent import await_previous
from vortex_core.kernels.runtime import INTERPRETED, dependent_launch, next_power_of_2


@triton.jit
def router_kernel(
    x_ptr, weight_ptr, logits_ptr, stride_x,
    EXPERTS: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr, BLOCK: tl.constexpr, ROUND: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Grid (tokens, expert blocks): logits of a few experts, summed in float32; no loop, for a step waits for it."""
    await_previous(PDL)
    token = tl.program_id(0).to(tl.int64)
    expert = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, DIM_PAD)
    inside = channel < DIM
    x = tl.load(x_ptr + token * stride_x + channel, mask=inside, other=0.0)
    at = expert[:, None] * DIM + channel[None, :]
    w = tl.load(weight_ptr + at, mask=(expert < EXPERTS)[:, None] & inside[None, :], other=0.0)
    logits = tl.sum(w.to(tl.float32) * x.to(tl.float32)[None, :], 1)
    if ROUND:
        logits = logits.to(x_ptr.dtype.element_ty).to(tl.float32)
    tl.store(logits_ptr + token * EXPERTS + expert, logits, mask=expert < EXPERTS)


@triton.jit
def route_kernel(
    logits_ptr, bias_ptr, ids_ptr, shares_ptr, scale,
    EXPERTS: tl.constexpr, EXPERTS_PAD: tl.constexpr, TOP: tl.constexpr, TOP_PAD: tl.constexpr,
    SIGMOID: tl.constexpr, HAS_BIAS: tl.constexpr, NORMALISE: tl.constexpr, ROUND: tl.constexpr,
    HALF: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (tokens,): a token's experts and their shares of the result, rounded to `HALF` with `ROUND`."""
    await_previous(PDL)
    token = tl.program_id(0).to(tl.int64)
    expert = tl.arange(0, EXPERTS_PAD)
    known = expert < EXPERTS
    logits = tl.load(logits_ptr + token * EXPERTS + expert, mask=known, other=0.0)
    if SIGMOID:
        scores = 1.0 / (1.0 + tl.exp(-logits))
    else:
        top = tl.max(tl.where(known, logits, float("-inf")), 0)
        scores = tl.where(known, tl.exp(logits - top), 0.0)
        scores = scores / tl.sum(scores, 0)
    choice = scores
    if HAS_BIAS:
        choice += tl.load(bias_ptr + expert, mask=known, other=0.0).to(tl.float32)
    choice = tl.where(known, choice, float("-inf"))
    place = tl.arange(0, TOP_PAD)
    ids = tl.zeros((TOP_PAD,), tl.int32)
    shares = tl.zeros((TOP_PAD,), tl.float32)
    for i in tl.static_range(TOP):
        best = tl.min(tl.where(choice == tl.max(choice, 0), expert, EXPERTS - 1), 0)
        share = tl.sum(tl.where(expert == best, scores, 0.0), 0)
        ids = tl.where(place == i, best, ids)
        shares = tl.where(place == i, share, shares)
        choice = tl.where(expert == best, float("-inf"), choice)
    if NORMALISE:
        shares = shares / (tl.sum(shares, 0) + 1e-20)
    shares = shares * scale
    if ROUND:
        shares = shares.to(HALF).to(tl.float32)
    tl.store(ids_ptr + token * TOP + place, ids, mask=place < TOP)
    tl.store(shares_ptr + token * TOP + place, shares, mask=place < TOP)


@triton.jit
def _count(ids_ptr, expert, pairs, PAIRS: tl.constexpr):
    """How many (token, choice) pairs chose an expert."""
    pair = tl.arange(0, PAIRS)
    return tl.sum((tl.load(ids_ptr + pair, mask=pair < pairs, other=-1) == expert).to(tl.int32), 0)


@triton.jit
def _rows(ids_ptr, expert, pairs, start, PAIRS: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr):
    """The pairs at places `start`, `start + 1`, ... among those that chose an expert."""
    wanted = start + tl.arange(0, ROWS)
    rows = tl.zeros((ROWS,), tl.int32)
    before = 0
    for first in range(0, PAIRS, CHUNK):  # in chunks: all at once fills the registers
        pair = first + tl.arange(0, CHUNK)
        mine = (tl.load(ids_ptr + pair, mask=pair < pairs, other=-1) == expert).to(tl.int32)
        place = before + tl.cumsum(mine, 0) - 1
        found = (mine[None, :] != 0) & (place[None, :] == wanted[:, None])
        rows += tl.sum(tl.where(found, pair[None, :], 0), 1)
        before += tl.sum(mine, 0)
    return rows


@triton.jit
def _operand(ptr, rows, channels, OPERAND: tl.constexpr):
    """One operand of a product: a tile, zero outside the rows and channels that are there."""
    return tl.load(ptr, mask=rows[:, None] & channels[None, :], other=0.0).to(OPERAND)


@triton.jit
def experts_up_kernel(
    x_ptr, weight_ptr, ids_ptr, out_ptr, pairs, stride_x,
    DIM: tl.constexpr, WIDTH: tl.constexpr, TOP: tl.constexpr, PAIRS: tl.constexpr, CHUNK: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, OPERAND: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (column blocks, experts): silu(gate) * up of the tokens that chose an expert, one row a pair."""
    await_previous(PDL)
    expert = tl.program_id(1)
    count = _count(ids_ptr, expert, pairs, PAIRS)
    if count == 0:
        return
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    inside = column < WIDTH
    gate_ptr = weight_ptr + expert.to(tl.int64) * (2 * WIDTH * DIM) + column[:, None] * DIM + k[None, :]
    up_ptr = gate_ptr + WIDTH * DIM
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    for start in range(0, count, ROWS):
        row = _rows(ids_ptr, expert, pairs, start, PAIRS, CHUNK, ROWS)
        ok = start + tl.arange(0, ROWS) < count
        from_ptr = x_ptr + (row // TOP).to(tl.int64)[:, None] * stride_x + k[None, :]
        gate = tl.zeros((ROWS, BLOCK_N), tl.float32)
        up = tl.zeros((ROWS, BLOCK_N), tl.float32)
        for at in range(0, DIM, BLOCK_K):
            left = at + k < DIM
            x = _operand(from_ptr + at, ok, left, OPERAND)
            g = _operand(gate_ptr + at, inside, left, OPERAND)
            u = _operand(up_ptr + at, inside, left, OPERAND)
            gate = tl.dot(x, tl.trans(g), gate, input_precision="ieee")
            up = tl.dot(x, tl.trans(u), up, input_precision="ieee")
        gate = gate.to(dtype).to(tl.float32)
        y = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32) * up.to(dtype).to(tl.float32)
        at_out = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
        tl.store(out_ptr + at_out, y.to(dtype), mask=ok[:, None] & inside[None, :])


@triton.jit
def experts_down_kernel(
    h_ptr, weight_ptr, ids_ptr, shares_ptr, out_ptr, pairs,
    DIM: tl.constexpr, WIDTH: tl.constexpr, PAIRS: tl.constexpr, CHUNK: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, OPERAND: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (column blocks, experts): an expert's share of the result, float32, one row a pair."""
    await_previous(PDL)
    expert = tl.program_id(1)
    count = _count(ids_ptr, expert, pairs, PAIRS)
    if count == 0:
        return
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    inside = column < DIM
    down_ptr = weight_ptr + expert.to(tl.int64) * (WIDTH * DIM) + column[:, None] * WIDTH + k[None, :]
    dtype: tl.constexpr = h_ptr.dtype.element_ty
    for start in range(0, count, ROWS):
        row = _rows(ids_ptr, expert, pairs, start, PAIRS, CHUNK, ROWS)
        ok = start + tl.arange(0, ROWS) < count
        from_ptr = h_ptr + row.to(tl.int64)[:, None] * WIDTH + k[None, :]
        total = tl.zeros((ROWS, BLOCK_N), tl.float32)
        for at in range(0, WIDTH, BLOCK_K):
            left = at + k < WIDTH
            h = _operand(from_ptr + at, ok, left, OPERAND)
            w = _operand(down_ptr + at, inside, left, OPERAND)
            total = tl.dot(h, tl.trans(w), total, input_precision="ieee")
        share = tl.load(shares_ptr + row, mask=ok, other=0.0)
        y = total.to(dtype).to(tl.float32) * share[:, None]
        at_out = row.to(tl.int64)[:, None] * DIM + column[None, :]
        tl.store(out_ptr + at_out, y, mask=ok[:, None] & inside[None, :])


@triton.jit
def combine_kernel(
    parts_ptr, shared_ptr, out_ptr, DIM: tl.constexpr, TOP: tl.constexpr, BLOCK: tl.constexpr,
    HAS_SHARED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (tokens, column blocks): the sum of a token's experts, and of the shared one."""
    await_previous(PDL)
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = column < DIM
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    total = tl.zeros((BLOCK,), tl.float32)
    for i in tl.static_range(TOP):
        total += tl.load(parts_ptr + (token * TOP + i) * DIM + column, mask=ok, other=0.0)
    y = total.to(dtype)
    if HAS_SHARED:
        shared = tl.load(shared_ptr + token * DIM + column, mask=ok, other=0.0).to(tl.float32)
        y = (y.to(tl.float32) + shared).to(dtype)
    tl.store(out_ptr + token * DIM + column, y, mask=ok)


def route(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    top: int,
    sigmoid: bool,
    normalise: bool,
    scale: float,
    wide: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token's experts, in two launches.

    Args:
        x: `[token, dim]`, channels contiguous.
        weight: `[expert, dim]`, contiguous.
        bias: `[expert]`, added to the scores for the choice alone.
        sigmoid: scores are sigmoids of the logits, else their softmax, whose shares are rounded to the dtype of `x`.
        normalise: shares sum to `scale`.
        wide: logits are computed in float32, else rounded to the dtype of `x`.

    Returns:
        int32 experts and float32 shares, `[token, top]`.
    """
    tokens, dim = x.shape
    experts = weight.shape[0]
    ids = torch.empty(tokens, top, dtype=torch.int32, device=x.device)
    shares = torch.empty(tokens, top, device=x.device)
    if tokens > 64:  # a prompt
        logits = torch.nn.functional.linear(x.float(), weight.float()) if wide else (x @ weight.T).float()
    else:
        logits = torch.empty(tokens, experts, device=x.device)
        pad = next_power_of_2(dim)
        block = min(next_power_of_2(experts), 64 if INTERPRETED else 4)
        if tokens:
            router_kernel[(tokens, triton.cdiv(experts, block))](
                x, weight, logits, x.stride(0), EXPERTS=experts, DIM=dim, DIM_PAD=pad, BLOCK=block,
                ROUND=not wide, num_warps=4 if pad <= 2048 else 8, **dependent_launch(x.device),
            )  # fmt: skip
    if tokens:
        half = tl.bfloat16 if x.dtype == torch.bfloat16 else tl.float16
        route_kernel[(tokens,)](
            logits, bias, ids, shares, scale, EXPERTS=experts, EXPERTS_PAD=next_power_of_2(experts), TOP=top,
            TOP_PAD=next_power_of_2(top), SIGMOID=sigmoid, HAS_BIAS=bias is not None, NORMALISE=normalise,
            ROUND=x.dtype != torch.float32 and not sigmoid, HALF=half, num_warps=1,
            **dependent_launch(x.device),
        )  # fmt: skip
    return ids, shares


# (token, expert) pairs of a step that these kernels take: a program finds its rows among all of them.
MOST_PAIRS = 512


def run_experts(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    ids: torch.Tensor,
    shares: torch.Tensor,
    shared: torch.Tensor | None,
) -> torch.Tensor:
    """The chosen experts' result for at most `MOST_PAIRS` pairs, in three launches.

    Args:
        x: `[token, dim]`, channels contiguous.
        gate_up: `[expert, 2 * width, dim]`, contiguous. down: `[expert, dim, width]`, contiguous.
        ids, shares: of `route`.
        shared: `[token, dim]`, contiguous, added to the result.

    Returns:
        `[token, dim]`.
    """
    tokens, dim = x.shape
    experts, _, width = down.shape
    top = ids.shape[1]
    pairs = tokens * top
    assert 0 < pairs <= MOST_PAIRS
    assert gate_up.is_contiguous() and down.is_contiguous() and x.stride(1) == 1
    hidden = torch.empty(pairs, width, dtype=x.dtype, device=x.device)
    parts = torch.empty(pairs, dim, device=x.device)
    out = torch.empty(tokens, dim, dtype=x.dtype, device=x.device)
    padded = max(16, next_power_of_2(pairs))
    tile = expert_tile(pairs, x.dtype)
    block_n, block_k = tile["BLOCK_N"], tile["BLOCK_K"]
    common = {
        "DIM": dim, "WIDTH": width, "PAIRS": padded, "CHUNK": min(64, padded), "ROWS": tile["ROWS"],
        "OPERAND": operand_dtype(x.dtype),
    }  # fmt: skip
    experts_up_kernel[(triton.cdiv(width, block_n), experts)](
        x, gate_up, ids, hidden, pairs, x.stride(0), TOP=top, BLOCK_N=block_n, BLOCK_K=block_k, **common,
        num_warps=4, num_stages=tile["STAGES"], **dependent_launch(x.device),
    )  # fmt: skip
    experts_down_kernel[(triton.cdiv(dim, block_n), experts)](
        hidden, down, ids, shares, parts, pairs, BLOCK_N=block_n, BLOCK_K=block_k, **common,
        num_warps=4, num_stages=tile["STAGES"], **dependent_launch(x.device),
    )  # fmt: skip
    block = min(1024, next_power_of_2(dim))
    combine_kernel[(tokens, triton.cdiv(dim, block))](
        parts, shared, out, DIM=dim, TOP=top, BLOCK=block, HAS_SHARED=shared is not None, num_warps=4,
        **dependent_launch(x.device),
    )  # fmt: skip
    return out


def expert_tile(pairs: int, dtype: torch.dtype) -> dict[str, int]:
    """Tile of the expert products. Two blocks of 60 to 100 KiB in flight on each multiprocessor fill HBM's latency."""
    if INTERPRETED:
        return {"ROWS": 16, "BLOCK_N": 64, "BLOCK_K": 64, "STAGES": 1}
    rows = 16 if pairs <= 128 else 32
    return {"ROWS": rows, "BLOCK_N": 64, "BLOCK_K": 128 if dtype.itemsize == 2 else 32, "STAGES": 3}

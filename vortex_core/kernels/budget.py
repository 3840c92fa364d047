"""Budgets that depend on the scores, as page counts: top-p (Twilight, arXiv 2502.02770) and threshold.

Both write the number of pages a row needs; selection then takes that many in its total order, never more than
the static capacity of its page list.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vortex_core.kernels.pages import require
from vortex_core.kernels.runtime import next_power_of_2
from vortex_core.kernels.select import SCORE_DTYPES, SEGMENT, row_strides
from vortex_core.kernels.select_kernel import order_key


@triton.jit
def _weights_and_keys(
    scores_row, base, n_pages, keep_first, keep_last, top, LOGITS: tl.constexpr, BLOCK: tl.constexpr
):
    page = base + tl.arange(0, BLOCK)
    scores = tl.load(scores_row + page, mask=page < n_pages, other=0.0).to(tl.float32)
    key = order_key(scores, page, n_pages, keep_first, keep_last)
    if LOGITS:
        weights = tl.exp2((scores - top) * 1.4426950408889634)
    else:
        weights = tl.maximum(scores, 0.0)
    weights = tl.where((page < n_pages) & (scores == scores), weights, 0.0)
    return weights, key


@triton.jit
def top_p_kernel(
    scores_ptr, n_tokens_ptr, mass_ptr, budget_ptr,
    stride_scores, stride_mass_b, stride_mass_h, keep_first, keep_last,
    HEADS: tl.constexpr, PAGE: tl.constexpr, LOGITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (rows,): length of the shortest prefix of the selection order that holds the wanted weight."""
    row = tl.program_id(0)
    b = row // HEADS
    n_pages = (tl.load(n_tokens_ptr + b) + PAGE - 1) // PAGE
    scores_row = scores_ptr + row.to(tl.int64) * stride_scores
    share = tl.load(mass_ptr + b * stride_mass_b + (row % HEADS) * stride_mass_h)
    top = float("-inf")
    if LOGITS:
        for base in range(0, n_pages, BLOCK):
            page = base + tl.arange(0, BLOCK)
            s = tl.load(scores_row + page, mask=page < n_pages, other=float("-inf")).to(tl.float32)
            top = tl.maximum(top, tl.max(tl.where(s == s, s, float("-inf")), 0))
    total = 0.0
    for base in range(0, n_pages, BLOCK):
        weights, _ = _weights_and_keys(scores_row, base, n_pages, keep_first, keep_last, top, LOGITS, BLOCK)
        total += tl.sum(weights)
    wanted = share * total
    # Largest key whose upper set still holds the wanted weight, bit by bit from the top.
    low = -0x80000000
    bit = -0x80000000
    for _ in range(32):
        threshold = low ^ bit
        mass = 0.0
        for base in range(0, n_pages, BLOCK):
            weights, key = _weights_and_keys(
                scores_row, base, n_pages, keep_first, keep_last, top, LOGITS, BLOCK
            )
            mass += tl.sum(tl.where(key >= threshold, weights, 0.0))
        low = tl.where(mass >= wanted, threshold, low)
        bit = (bit >> 1) & 0x7FFFFFFF
    count_over = 0
    count_at = 0
    mass_over = 0.0
    mass_at = 0.0
    for base in range(0, n_pages, BLOCK):
        weights, key = _weights_and_keys(scores_row, base, n_pages, keep_first, keep_last, top, LOGITS, BLOCK)
        valid = base + tl.arange(0, BLOCK) < n_pages
        count_over += tl.sum((valid & (key > low)).to(tl.int32))
        count_at += tl.sum((valid & (key == low)).to(tl.int32))
        mass_over += tl.sum(tl.where(key > low, weights, 0.0))
        mass_at += tl.sum(tl.where(key == low, weights, 0.0))
    # Pages of one key weigh the same (the always-kept ones aside, which are all taken anyway).
    each = mass_at / tl.maximum(count_at, 1)
    extra = tl.ceil((wanted - mass_over) / tl.where(each > 0.0, each, 1.0)).to(tl.int32)
    extra = tl.minimum(tl.maximum(extra, 1), tl.maximum(count_at, 1))
    tl.store(budget_ptr + row, tl.minimum(count_over + extra, n_pages))


@triton.jit
def threshold_kernel(
    scores_ptr, n_tokens_ptr, threshold_ptr, budget_ptr,
    stride_scores, stride_threshold_b, stride_threshold_h, keep_first, keep_last,
    HEADS: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (rows,): pages that are always kept or score at least the threshold; NaN does not."""
    row = tl.program_id(0)
    b = row // HEADS
    n_pages = (tl.load(n_tokens_ptr + b) + PAGE - 1) // PAGE
    scores_row = scores_ptr + row.to(tl.int64) * stride_scores
    threshold = tl.load(threshold_ptr + b * stride_threshold_b + (row % HEADS) * stride_threshold_h)
    count = 0
    for base in range(0, n_pages, BLOCK):
        page = base + tl.arange(0, BLOCK)
        scores = tl.load(scores_row + page, mask=page < n_pages, other=float("nan")).to(tl.float32)
        kept = (page < keep_first) | (page >= n_pages - keep_last)
        count += tl.sum(((page < n_pages) & (kept | (scores >= threshold))).to(tl.int32))
    tl.store(budget_ptr + row, count)


def _check(scores: Tensor, n_tokens: Tensor, heads: int, budget: Tensor) -> int:
    require(
        scores.dim() == 2 and scores.stride(1) == 1,
        f"scores must be [rows, max_pages], got {tuple(scores.shape)}",
    )
    require(scores.dtype in SCORE_DTYPES, f"scores have dtype {scores.dtype}", "use fp32, bf16 or fp16")
    require(
        scores.shape[0] == n_tokens.numel() * heads,
        f"{scores.shape[0]} rows for {n_tokens.numel()} x {heads}",
    )
    require(budget.numel() == scores.shape[0] and budget.dtype == torch.int32, "budget must be int32 [rows]")
    return min(SEGMENT, max(16, next_power_of_2(scores.shape[1])))


def top_p_budget(
    scores: Tensor,
    n_tokens: Tensor,
    mass: Tensor,
    *,
    heads: int,
    page_size: int,
    budget: Tensor,
    keep_first: int = 0,
    keep_last: int = 1,
    logits: bool = True,
) -> Tensor:
    """Pages each row needs to hold a share `mass` of its weight, written to `budget` int32 [rows].

    scores [rows, max_pages]; the weight of a page is exp(score) if `logits`, else max(score, 0); NaN weighs
    nothing. mass fp32 [rows], [batch] or [1], in (0, 1]. Always-kept pages come first and count. At least
    one page.
    """
    block = _check(scores, n_tokens, heads, budget)
    stride_b, stride_h = row_strides(mass, n_tokens.numel(), heads, "mass")
    if scores.shape[0]:
        top_p_kernel[(scores.shape[0],)](
            scores, n_tokens, mass, budget, scores.stride(0), stride_b, stride_h, keep_first, keep_last,
            HEADS=heads, PAGE=page_size, LOGITS=logits, BLOCK=block, num_warps=8,
        )  # fmt: skip
    return budget


def threshold_budget(
    scores: Tensor,
    n_tokens: Tensor,
    threshold: Tensor,
    *,
    heads: int,
    page_size: int,
    budget: Tensor,
    keep_first: int = 0,
    keep_last: int = 1,
) -> Tensor:
    """Pages of each row that score `threshold` (fp32 [rows], [batch] or [1]) or more, into `budget`."""
    block = _check(scores, n_tokens, heads, budget)
    stride_b, stride_h = row_strides(threshold, n_tokens.numel(), heads, "threshold")
    if scores.shape[0]:
        threshold_kernel[(scores.shape[0],)](
            scores, n_tokens, threshold, budget, scores.stride(0), stride_b, stride_h, keep_first, keep_last,
            HEADS=heads, PAGE=page_size, BLOCK=block, num_warps=8,
        )  # fmt: skip
    return budget

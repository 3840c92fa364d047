"""The first and the last launch of a decode step: where each row's token goes, and which token comes next.

In plain torch these are two dozen launches of a few rows each, which on a GPU take as long as several layers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vortex_core.kernels.dependent import await_previous
from vortex_core.kernels.runtime import dependent_launch, next_power_of_2


@triton.jit
def begin_kernel(
    lengths_ptr, active_ptr, ages_ptr, blocks_ptr, slots_ptr, positions_ptr, selecting_ptr,
    rows, stride_blocks, period, BLOCK_TOKENS: tl.constexpr, ROWS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: every row grows by its token; padding has no slot."""
    await_previous(PDL)
    row = tl.arange(0, ROWS)
    ok = row < rows
    length = tl.load(lengths_ptr + row, mask=ok, other=0) + tl.load(active_ptr + row, mask=ok, other=0)
    last = tl.maximum(length - 1, 0)
    at = row.to(tl.int64) * stride_blocks + last // BLOCK_TOKENS
    block = tl.load(blocks_ptr + at, mask=ok, other=0).to(tl.int64)
    slot = tl.where(length > 0, block * BLOCK_TOKENS + last % BLOCK_TOKENS, -1)
    due = tl.load(ages_ptr + row, mask=ok, other=0) % period == 0
    tl.store(lengths_ptr + row, length, mask=ok)
    tl.store(slots_ptr + row, slot, mask=ok)
    tl.store(positions_ptr + row, last.to(tl.int64), mask=ok)
    tl.store(selecting_ptr + row, tl.where(due, length, 0), mask=ok)


@triton.jit
def scan_logits_kernel(
    logits_ptr, copy_ptr, best_ptr, index_ptr, sum_ptr, vocab, stride_logits, stride_copy, splits,
    BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (rows, splits): a stretch's largest logit, its lowest index, and sum of exponentials; a float32 copy."""
    await_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = token < vocab
    x = tl.load(logits_ptr + row * stride_logits + token, mask=ok, other=float("-inf")).to(tl.float32)
    tl.store(copy_ptr + row * stride_copy + token, x, mask=ok)
    best = tl.max(x, 0)
    index = tl.min(tl.where(x == best, token, vocab - 1), 0)
    total = tl.sum(tl.where(best > float("-inf"), tl.exp(x - best), 0.0), 0)
    at = row * splits + tl.program_id(1)
    tl.store(best_ptr + at, best)
    tl.store(index_ptr + at, index)
    tl.store(sum_ptr + at, total)


@triton.jit
def choose_kernel(
    best_ptr,
    index_ptr,
    sum_ptr,
    tokens_ptr,
    logprobs_ptr,
    ages_ptr,
    active_ptr,
    splits,
    SPLITS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (rows,): the likeliest token of all stretches and its log-probability; the row is a step older."""
    await_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    ok = split < splits
    best = tl.load(best_ptr + row * splits + split, mask=ok, other=float("-inf"))
    index = tl.load(index_ptr + row * splits + split, mask=ok, other=2147483647)
    total = tl.load(sum_ptr + row * splits + split, mask=ok, other=0.0)
    top = tl.max(best, 0)
    chosen = tl.min(tl.where(best == top, index, 2147483647), 0)
    chosen = tl.where(chosen == 2147483647, 0, chosen)  # only where every logit is NaN, and so is the logprob
    tl.store(tokens_ptr + row, chosen.to(tl.int64))
    tl.store(logprobs_ptr + row, -tl.log(tl.sum(total * tl.exp(best - top), 0)))
    tl.store(ages_ptr + row, tl.load(ages_ptr + row) + tl.load(active_ptr + row))


def begin_step(
    lengths: torch.Tensor,
    active: torch.Tensor,
    ages: torch.Tensor,
    blocks: torch.Tensor,
    *,
    period: int,
    block_tokens: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Make room for the tokens being decoded: `lengths` grow by `active`, in place.

    Args:
        lengths, active, ages: int32 `[rows]`.
        blocks: int32 `[rows, width]`, physical blocks of `block_tokens` tokens.
        period: rows select at ages that are multiples of it.

    Returns:
        Slots and positions of the new tokens, int64 `[rows]` (slot -1 for padding), and the lengths of the rows
        that select, int32 `[rows]`, 0 for the others.
    """
    rows = len(lengths)
    slots = torch.empty(rows, dtype=torch.int64, device=lengths.device)
    positions = torch.empty_like(slots)
    selecting = torch.empty_like(lengths)
    begin_kernel[(1,)](
        lengths, active, ages, blocks, slots, positions, selecting, rows, blocks.stride(0), period,
        BLOCK_TOKENS=block_tokens, ROWS=next_power_of_2(rows), PDL=0, num_warps=1,
    )  # fmt: skip
    return slots, positions, selecting


def choose_greedy(
    logits: torch.Tensor,
    copy: torch.Tensor,
    tokens: torch.Tensor,
    logprobs: torch.Tensor,
    ages: torch.Tensor,
    active: torch.Tensor,
) -> None:
    """The likeliest token of every row (the lower one of equals) and its log-probability, in two launches.

    Args:
        logits: `[rows, vocab]`, any dtype, tokens contiguous.
        copy: float32 `[rows, vocab]`, gets the logits.
        tokens: int64 `[rows]`, gets the tokens.
        logprobs: float32 `[rows]`.
        ages, active: int32 `[rows]`; `active` is added to `ages`.
    """
    rows, vocab = logits.shape
    assert logits.stride(1) == copy.stride(1) == 1
    block = min(4096, next_power_of_2(vocab))
    splits = triton.cdiv(vocab, block)
    best, total = (torch.empty(rows, splits, device=logits.device) for _ in range(2))
    index = torch.empty(rows, splits, dtype=torch.int32, device=logits.device)
    scan_logits_kernel[(rows, splits)](
        logits, copy, best, index, total, vocab, logits.stride(0), copy.stride(0), splits,
        BLOCK=block, num_warps=8, **dependent_launch(logits.device),
    )  # fmt: skip
    choose_kernel[(rows,)](
        best, index, total, tokens, logprobs, ages, active, splits, SPLITS=next_power_of_2(splits),
        num_warps=1, **dependent_launch(logits.device),
    )  # fmt: skip

"""Split-KV planned on the device, and the log-sum-exp merge of the parts.

All rows of a step are laid end to end as a sequence of tiles of `BLOCK_N` tokens, and worker `w` of a
fixed grid takes the tiles `[w * share, (w + 1) * share)`. `share` comes out of the lengths in device
memory, so a captured graph replays with any lengths, ragged or empty, at an even load, and no plan kernel
runs. (The idea is Stream-K's, arXiv 2301.03598, applied to the KV axis as FlashDecoding does.)

A worker covers the end of one row, any number of whole rows, and the beginning of another. Whole rows are
written out directly. A piece goes to one of two slots of its worker: slot 0 if it is the worker's first,
slot 1 otherwise; both can be recomputed from the lengths, so merging needs no list of pieces. The worker
that finishes a row last (an atomic count) merges the pieces in row order: the result does not depend
on timing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from vortex_core.kernels.dependent import await_previous

PLAN_BLOCKS = (32, 128, 1024)
# Longest lists that are cut into equal pieces: an uneven batch then costs at most the time of a few tiles.
EVEN_TOKENS = 4096


def plan_block(rows: int) -> int:
    """Rows a worker scans at a time while it plans: few sizes, so few compiled variants."""
    return next((block for block in PLAN_BLOCKS if rows <= block), PLAN_BLOCKS[-1])


@triton.jit
def row_tiles(kv_len, BLOCK_N: tl.constexpr):
    """Tiles of a row; an empty row counts one, so that some worker writes its zeros."""
    return tl.maximum((kv_len + BLOCK_N - 1) // BLOCK_N, 1)


@triton.jit
def _tiles_of(lens_ptr, stride_b, stride_h, rows, index, HEADS: tl.constexpr, BLOCK_N: tl.constexpr):
    lens = tl.load(
        lens_ptr + (index // HEADS) * stride_b + (index % HEADS) * stride_h, mask=index < rows, other=0
    )
    return tl.where(index < rows, row_tiles(lens, BLOCK_N), 0)


@triton.jit
def _find_row(tiles, passed, tile):
    """Rows of a scan that end at or before `tile`: number in the upper half, their tiles in the lower."""
    before = (passed + tl.cumsum(tiles, 0) <= tile) & (tiles > 0)
    return tl.sum(tl.where(before, tiles.to(tl.int64) + (1 << 32), 0))


@triton.jit
def plan_worker(
    worker, workers, lens_ptr, stride_b, stride_h, rows,
    HEADS: tl.constexpr, BLOCK_N: tl.constexpr, PLAN: tl.constexpr, MIN_TILES: tl.constexpr,
):  # fmt: skip
    """A worker's first and end tile, the row that holds the first, that row's first tile, and the share.

    All rows must fit one scan of `PLAN`; the lengths are read once.
    """
    tiles = _tiles_of(lens_ptr, stride_b, stride_h, rows, tl.arange(0, PLAN), HEADS, BLOCK_N)
    total = tl.sum(tiles)
    share = worker_share(total, tl.max(tiles, 0), workers, MIN_TILES)
    tile = worker * share
    packed = _find_row(tiles, 0, tile)
    row = (packed >> 32).to(tl.int32)
    begin = (packed & 0xFFFFFFFF).to(tl.int32)
    return tile, tl.minimum(tile + share, total), row, begin, share


@triton.jit(do_not_specialize=["rows", "workers", "stride_b", "stride_h"])
def plan_kernel(
    lens_ptr, plan_ptr, stride_b, stride_h, rows, workers,
    HEADS: tl.constexpr, BLOCK_N: tl.constexpr, PLAN: tl.constexpr, MIN_TILES: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Grid (workers,): `plan_worker` for more rows than one scan holds, written to plan [worker, 5].

    A launch of its own: scans in a loop before the attention loop keep Triton 3.7 from vectorising its loads.
    """
    await_previous(PDL)
    worker = tl.program_id(0)
    total = 0
    longest = 0
    for base in range(0, rows, PLAN):
        tiles = _tiles_of(lens_ptr, stride_b, stride_h, rows, base + tl.arange(0, PLAN), HEADS, BLOCK_N)
        total += tl.sum(tiles)
        longest = tl.maximum(longest, tl.max(tiles, 0))
    share = worker_share(total, longest, workers, MIN_TILES)
    tile = worker * share
    packed = tl.zeros([], tl.int64)
    passed = 0
    for base in range(0, rows, PLAN):
        tiles = _tiles_of(lens_ptr, stride_b, stride_h, rows, base + tl.arange(0, PLAN), HEADS, BLOCK_N)
        packed += _find_row(tiles, passed, tile)
        passed += tl.sum(tiles)
    at = plan_ptr + worker * 5
    tl.store(at, tile)
    tl.store(at + 1, tl.minimum(tile + share, total))
    tl.store(at + 2, (packed >> 32).to(tl.int32))
    tl.store(at + 3, (packed & 0xFFFFFFFF).to(tl.int32))
    tl.store(at + 4, share)


@triton.jit
def load_plan(plan_ptr, worker):
    """What `plan_kernel` wrote for a worker."""
    at = plan_ptr + worker * 5
    return tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3), tl.load(at + 4)


@triton.jit
def rows_before(
    row, lens_ptr, stride_b, stride_h, rows, HEADS: tl.constexpr, BLOCK_N: tl.constexpr, PLAN: tl.constexpr
):
    """Tiles of all rows before `row`, of all rows, and of the longest."""
    packed = tl.zeros([], tl.int64)
    longest = 0
    for base in range(0, rows, PLAN):
        index = base + tl.arange(0, PLAN)
        tiles = _tiles_of(lens_ptr, stride_b, stride_h, rows, index, HEADS, BLOCK_N)
        longest = tl.maximum(longest, tl.max(tiles, 0))
        tiles = tiles.to(tl.int64)
        packed += tl.sum((tl.where(index < row, tiles, 0) << 32) + tiles)
    return (packed >> 32).to(tl.int32), (packed & 0xFFFFFFFF).to(tl.int32), longest


@triton.jit
def worker_share(total, longest, workers, MIN_TILES: tl.constexpr):
    """Tiles each worker takes; at least `MIN_TILES`, below which merging costs more than it gains.

    A little more where that cuts the longest row into equal pieces: in a batch of such rows nobody then holds the
    end of one and the beginning of another, and fewer pieces are merged (1.5-4% of a dense step on an H100).
    """
    share = tl.maximum((total + workers - 1) // workers, MIN_TILES)
    pieces = tl.maximum(longest // share, 1)
    equal = (longest + pieces - 1) // pieces
    return tl.where((equal > share) & (equal <= share + share // 16), equal, share)


@triton.jit
def piece_slot(worker, first_worker, begin, share):
    """Slot of `worker`'s piece of the row that starts at tile `begin` in `first_worker`."""
    # Only the row's first piece can follow other work of its worker.
    second = (worker == first_worker) & (worker * share < begin)
    return 2 * worker + second.to(tl.int32)


@triton.jit
def merge_pieces(
    part_out_ptr, part_lse_ptr, first_worker, pieces, begin, share, head, head_ok, dim, dim_ok,
    GROUP: tl.constexpr, DIM: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Merges a row's pieces in order. head [H], dim [D] -> out [H, D] fp32, lse [H] in base 2.

    A piece may be empty (lse -inf); where all are, out is 0 and lse -inf.
    """
    top = tl.full([head.shape[0]], -3.0e38, tl.float32)  # finite: empty pieces weigh zero, not NaN
    total = tl.zeros([head.shape[0]], tl.float32)
    out = tl.zeros([head.shape[0], dim.shape[0]], tl.float32)
    for start in range(0, pieces, UNROLL):
        # Unrolled so that the loads of several pieces are in flight together.
        for j in tl.static_range(UNROLL):
            slot = piece_slot(first_worker + start + j, first_worker, begin, share).to(tl.int64)
            ok = head_ok & (start + j < pieces)
            lse = tl.load(part_lse_ptr + slot * GROUP + head, mask=ok, other=float("-inf"))
            part = tl.load(
                part_out_ptr + (slot * GROUP + head)[:, None] * DIM + dim[None, :],
                mask=ok[:, None] & dim_ok[None, :],
                other=0.0,
            )
            new_top = tl.maximum(top, lse)
            decay = tl.exp2(top - new_top)
            weight = tl.exp2(lse - new_top)
            out = out * decay[:, None] + weight[:, None] * part
            total = total * decay + weight
            top = new_top
    seen = total > 0
    return out * tl.where(seen, 1.0 / total, 0.0)[:, None], tl.where(
        seen, top + tl.log2(total), float("-inf")
    )


@triton.jit(do_not_specialize=["rows", "workers", "stride_lens_b", "stride_lens_h"])
def merge_kernel(
    out_ptr, lse_ptr, part_out_ptr, part_lse_ptr, lens_ptr,
    stride_out_b, stride_out_h, stride_lens_b, stride_lens_h, rows, workers,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, DIM_BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr, PLAN: tl.constexpr, MIN_TILES: tl.constexpr, PIECES: tl.constexpr,
    HAS_LSE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (row, query head, channel block): merges the row's pieces, `PIECES` at a time, if it was split."""
    await_previous(PDL)
    row = tl.program_id(0)
    head = tl.program_id(1)
    begin, total, longest = rows_before(
        row, lens_ptr, stride_lens_b, stride_lens_h, rows, HEADS, BLOCK_N, PLAN
    )
    b = row // HEADS
    h = row % HEADS
    tiles = row_tiles(tl.load(lens_ptr + b * stride_lens_b + h * stride_lens_h), BLOCK_N)
    share = worker_share(total, longest, workers, MIN_TILES)
    first = begin // share
    pieces = (begin + tiles - 1) // share - first + 1
    if pieces > 1:
        dim = tl.program_id(2) * DIM_BLOCK + tl.arange(0, DIM_BLOCK)
        top = float("-inf")
        weight_sum = 0.0
        out = tl.zeros([DIM_BLOCK], tl.float32)
        for start in range(0, pieces, PIECES):
            piece = start + tl.arange(0, PIECES)
            slot = piece_slot(first + piece, first, begin, share).to(tl.int64) * GROUP + head
            lse = tl.load(part_lse_ptr + slot, mask=piece < pieces, other=float("-inf"))
            part = tl.load(
                part_out_ptr + slot[:, None] * DIM + dim[None, :],
                mask=(piece < pieces)[:, None] & (dim < DIM)[None, :],
                other=0.0,
            )
            new_top = tl.maximum(top, tl.max(lse, 0))
            decay = tl.exp2(top - new_top)
            weight = tl.exp2(lse - new_top)
            out = out * decay + tl.sum(weight[:, None] * part, 0)
            weight_sum = weight_sum * decay + tl.sum(weight, 0)
            top = new_top
        at = out_ptr + b.to(tl.int64) * stride_out_b + (h * GROUP + head) * stride_out_h
        tl.store(at + dim, (out / weight_sum).to(out_ptr.dtype.element_ty), mask=dim < DIM)
        if HAS_LSE:
            tl.store(lse_ptr + row * GROUP + head, (top + tl.log2(weight_sum)) * 0.6931471805599453)


@triton.jit(do_not_specialize=["splits"])
def merge_even_kernel(
    out_ptr, lse_ptr, part_out_ptr, part_lse_ptr, stride_out_b, stride_out_h, splits,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, DIM_BLOCK: tl.constexpr,
    PIECES: tl.constexpr, HAS_LSE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (row, query head, channel block): merges rows that are all cut into `splits` <= PIECES pieces.

    Piece p of row r is in slot 2 * (r * splits + p); one without tokens has an lse of -inf.
    """
    await_previous(PDL)
    row = tl.program_id(0)
    head = tl.program_id(1)
    dim = tl.program_id(2) * DIM_BLOCK + tl.arange(0, DIM_BLOCK)
    piece = tl.arange(0, PIECES)
    ok = piece < splits
    slot = (2 * (row * splits + piece)).to(tl.int64) * GROUP + head
    lse = tl.load(part_lse_ptr + slot, mask=ok, other=float("-inf"))
    part = tl.load(
        part_out_ptr + slot[:, None] * DIM + dim[None, :], mask=ok[:, None] & (dim < DIM)[None, :], other=0.0
    )
    top = tl.maximum(tl.max(lse, 0), -3.0e38)  # finite: the pieces of an empty row weigh zero, not NaN
    weight = tl.exp2(lse - top)
    total = tl.sum(weight, 0)
    out = tl.sum(weight[:, None] * part, 0) / tl.where(total > 0, total, 1.0)
    at = out_ptr + (row // HEADS).to(tl.int64) * stride_out_b + ((row % HEADS) * GROUP + head) * stride_out_h
    tl.store(at + dim, out.to(out_ptr.dtype.element_ty), mask=dim < DIM)
    if HAS_LSE:
        merged = tl.where(total > 0, (top + tl.log2(total)) * 0.6931471805599453, float("-inf"))
        tl.store(lse_ptr + row * GROUP + head, merged)


@dataclass(frozen=True)
class SplitWorkspace:
    """Scratch of one attention launch; sized by maxima, reused by every layer and every step.

    part_out fp32 [2 * workers, group, dim], part_lse fp32 [2 * workers, group],
    finished int32 [rows]: pieces done, zero between launches; plan int32 [workers, 5].
    """

    part_out: Tensor
    part_lse: Tensor
    finished: Tensor
    plan: Tensor

    @property
    def nbytes(self) -> int:
        return sum(
            t.numel() * t.element_size() for t in (self.part_out, self.part_lse, self.finished, self.plan)
        )

    def fits(self, rows: int, workers: int, group: int, dim: int) -> bool:
        """Whether a launch of these maxima may use this workspace."""
        pieces = 2 * workers * group
        return (
            self.part_out.numel() >= pieces * dim
            and self.part_lse.numel() >= pieces
            and self.finished.numel() >= rows
            and self.plan.shape[0] >= workers
        )


def split_workspace_shapes(
    rows: int, workers: int, group: int, dim: int
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shapes and dtypes of a `SplitWorkspace`, for a caller that plans memory itself."""
    return {
        "part_out": ((2 * workers, group, dim), torch.float32),
        "part_lse": ((2 * workers, group), torch.float32),
        "finished": ((rows,), torch.int32),
        "plan": ((workers, 5), torch.int32),
    }


def split_workspace(rows: int, workers: int, group: int, dim: int, device: torch.device) -> SplitWorkspace:
    """Allocates a `SplitWorkspace` for at most `rows` rows of `group` query heads."""
    shapes = split_workspace_shapes(rows, workers, group, dim)
    # Zeroed: `finished` must start at zero; the rest is cheap to clear once.
    return SplitWorkspace(**{name: torch.zeros(s, dtype=t, device=device) for name, (s, t) in shapes.items()})

"""How a decode launch is cut: tiles, stages, workers; the values measured for each kind of shape."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from vortex_core.kernels.runtime import INTERPRETED, multiprocessors

LISTED = 2048  # tokens of a list where nobody says how many
FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class DecodeConfig:
    """How one launch of decode attention is cut into tiles, warps and workers.

    block_n: tokens a tile (a power of two that divides or is divided by the page size).
    workers_per_sm: workers of the fixed grid for each multiprocessor.
    min_tiles: fewest tiles a worker takes. fused_merge: merge in the same launch (few pieces a row) or in a
    second. group_pad: rows of the products, 0 for the least that holds the group.
    latent_kernel: latent attention of 512 + 64 channels runs in `latent_kernel.py` (Hopper only), except where
    page masses are asked for.
    even: rows are of about one length (a selection's lists, the heads of one request), each cut into the same
    number of pieces; otherwise tiles are shared out over the workers row by row.
    late_sums: weights are summed over a tile's tokens once, at a piece's end, instead of for each tile: warps wait
    three times less for a tile, and hold a number more for each of its weights.
    """

    block_n: int
    num_warps: int
    num_stages: int
    workers_per_sm: int
    min_tiles: int = 1
    fused_merge: bool = True
    group_pad: int = 0
    latent_kernel: bool = False
    even: bool = False
    late_sums: bool = False


def decode_config(
    head_dim: int,
    group: int,
    kv_dtype: torch.dtype,
    page_size: int,
    rows: int,
    *,
    even: bool = False,
    alone: bool = False,
    tokens: int = LISTED,
) -> DecodeConfig:
    """The tuned configuration for a shape. `rows` is the largest number of (request, kv head) rows.

    even: the lists are a selection's, of about one length each, of at most `tokens`. alone: they are all pages of a
    single request.
    """
    if INTERPRETED:
        return DecodeConfig(16, 4, 1, 1, 1, rows >= 4, even=even or alone)
    element = 1 if kv_dtype in FP8_DTYPES else 2 if kv_dtype != torch.float32 else 4
    measured = element == 2 and 64 < head_dim <= 128 and group <= 16
    if even and measured:
        return even_config(rows, tokens)
    if alone and measured:
        # Measured on an H100 from 4k to 128k tokens: faster than FlashInfer and FA3 at every length.
        return DecodeConfig(64, 4, 2, 3, 1, fused_merge=False, even=True)
    # Measured on an H100: two blocks an SM with two 32 KiB tiles of K and V in flight each reach the
    # bandwidth of HBM. Wider heads take shorter tiles, for registers as much as for shared memory.
    block_n = 64 if head_dim * element <= 256 and head_dim <= 192 and group <= 16 else 32
    if head_dim <= 64 and element == 2 and group <= 16:
        block_n = 128
    # A row cut over many workers merges faster with a block a head than in its last worker.
    # fp8 tiles are half as large: three blocks keep as many bytes in flight.
    return DecodeConfig(block_n, 4, 3, 3 if element == 1 else 2, 1, fused_merge=rows >= 32, even=even)


# Cuts of lists of 96 or 128 channels: (most rows, most tokens of a list, how). The first that holds a launch is taken.
# Measured on an H100 at 2,048 tokens (`python -m benchmarks.tuning --sweep` tries others).
EVEN_CUTS: tuple[tuple[float, float, DecodeConfig], ...] = (
    # Latency alone: short tiles, many pieces.
    (16, math.inf, DecodeConfig(32, 4, 4, 2, 1, fused_merge=False, even=True)),
    # Tiles so large that a multiprocessor holds one block: all have the same work.
    (132, math.inf, DecodeConfig(128, 4, 3, 1, 1, fused_merge=True, even=True)),
    (math.inf, math.inf, DecodeConfig(64, 4, 3, 2, 1, fused_merge=True, even=True)),
)


def even_config(rows: int, tokens: int = LISTED) -> DecodeConfig:
    """The configuration for lists of at most `tokens`, of 96 or 128 channels."""
    return next(cut for most, longest, cut in EVEN_CUTS if rows <= most and tokens <= longest)


def decode_workers(device: torch.device, config: DecodeConfig) -> int:
    """Size of the fixed grid: a function of the device alone, so that a captured graph fits every step."""
    return multiprocessors(device) * config.workers_per_sm

"""Latent attention with tokens as rows, on Hopper: plans, launches `latent_decode_kernel` and merges."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vortex_core.kernels.latent_kernel import TILE, WARPS, latent_decode_kernel
from vortex_core.kernels.pages import PageList
from vortex_core.kernels.runtime import INTERPRETED, dependent_launch, next_power_of_2
from vortex_core.kernels.split import (
    EVEN_TOKENS,
    SplitWorkspace,
    merge_even_kernel,
    merge_kernel,
    plan_block,
    plan_kernel,
)

CHANNELS = (576, 512)  # of a cached token, and of its latent
MAX_GROUP = 32  # query heads a list: more do not fit shared memory beside two tiles


@lru_cache(maxsize=1)
def on_hopper() -> bool:
    """Whether kernels run on an H100, H200 or another GPU with warpgroup products."""
    if INTERPRETED or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability() == (9, 0)


def latent_kernel_fits(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, pages: PageList, value_in_key: bool
) -> bool:
    """Whether this kernel computes what `paged_decode` is asked for. Any page size is fine."""
    return (
        value_in_key
        and (k_cache.shape[3], v_cache.shape[3]) == CHANNELS
        and k_cache.shape[2] == 1
        and q.shape[1] // pages.kv_heads <= MAX_GROUP
        and k_cache.dtype == q.dtype
        and k_cache.dtype in (torch.bfloat16, torch.float16)
        and k_cache.stride(0) % 8
        == k_cache.stride(1) % 8
        == k_cache.data_ptr() % 16
        == 0  # copies of 16 bytes
    )


def latent_constants(
    *, heads: int, group: int, page_size: int, stride_token: int, rows: int, even: bool, has_lse: bool
) -> dict[str, Any]:
    """Compile-time constants of `latent_decode_kernel` for a launch."""
    plan = plan_block(rows)
    return {
        "STRIDE_TOKEN": stride_token,
        "HEADS": heads,
        "GROUP": group,
        "GROUP_PAD": 16 if group <= 16 else 32,
        "PAGE": page_size,
        "TILE": TILE,
        "WARPS": WARPS,
        "PLAN": plan,
        "ONE_BLOCK": rows <= plan,
        "EVEN": even,
        "HAS_LSE": has_lse,
    }


def even_splits(rows: int, workers: int, max_tokens: int) -> int:
    """Pieces to cut each row into where all rows are cut alike; 0 where tiles are shared out by a plan.

    A function of maxima alone. Short lists, as a selection leaves them, are cut alike: that saves a step of
    dependent reads, and however uneven the rows are, it costs no more than the time of a few tiles.
    """
    if max_tokens > EVEN_TOKENS or rows > workers:
        return 0
    return min(workers // rows, -(-max_tokens // TILE))


def launch_latent(
    q: Tensor,
    cache: Tensor,
    pages: PageList,
    out: Tensor,
    lse: Tensor | None,
    workspace: SplitWorkspace,
    workers: int,
    score_scale: float,
    v_scale: float,
) -> None:
    """Attention and merge, as `paged_decode` describes them."""
    ids, lens = pages.page_ids, pages.kv_lens
    heads, group = pages.kv_heads, q.shape[1] // pages.kv_heads
    rows, page_size = pages.batch * heads, cache.shape[1]
    max_tokens = pages.max_pages * page_size
    splits = even_splits(rows, workers, max_tokens)
    constants = latent_constants(
        heads=heads,
        group=group,
        page_size=page_size,
        stride_token=cache.stride(1),
        rows=rows,
        even=splits > 0,
        has_lse=lse is not None,
    )
    plan = {"HEADS": heads, "BLOCK_N": TILE, "PLAN": constants["PLAN"], "MIN_TILES": 1}
    # A block fills its multiprocessor: the merge's may wait beside it without crowding anybody.
    early, late = dependent_launch(q.device, early=True), dependent_launch(q.device)
    if splits == 0 and not constants["ONE_BLOCK"]:
        plan_kernel[(workers,)](
            lens, workspace.plan, lens.stride(0), lens.stride(1), rows, workers, **plan, num_warps=4, **late
        )
    latent_decode_kernel[(rows * splits or workers,)](
        q, cache, out, lse, ids, lens, workspace.part_out, workspace.part_lse, workspace.plan,
        q.stride(0), q.stride(1), cache.stride(0), out.stride(0), out.stride(1),
        ids.stride(0), ids.stride(1), lens.stride(0), lens.stride(1), score_scale, v_scale, rows, workers,
        splits, max_tokens,
        **constants, num_warps=WARPS, **early,
    )  # fmt: skip
    if splits > 1:
        pieces = next_power_of_2(splits)
        block = min(512, max(64, 4096 // pieces))
        merge_even_kernel[(rows, group, 512 // block)](
            out, lse, workspace.part_out, workspace.part_lse, out.stride(0), out.stride(1), splits,
            HEADS=heads, GROUP=group, DIM=512, DIM_BLOCK=block, PIECES=pieces, HAS_LSE=lse is not None,
            num_warps=4, **late,
        )  # fmt: skip
    elif splits == 0:
        block = 512 if rows * group >= 512 else 128
        pieces = min(4096 // block, max(4, next_power_of_2(workers // rows + 1)))
        merge_kernel[(rows, group, 512 // block)](
            out, lse, workspace.part_out, workspace.part_lse, lens,
            out.stride(0), out.stride(1), lens.stride(0), lens.stride(1), rows, workers,
            GROUP=group, DIM=512, DIM_BLOCK=block, PIECES=pieces, HAS_LSE=lse is not None, **plan, num_warps=4,
            **late,
        )  # fmt: skip

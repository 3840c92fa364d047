"""Latent attention with tokens as rows, on Hopper: plans, launches `latent_decode_kernel` and merges."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vortex_core.kernels.decode.latent_kernel import TILE, WARPS, latent_decode_kernel
from vortex_core.kernels.decode.split import SplitWorkspace, plan_block
from vortex_core.kernels.decode.split_launch import (
    Rows,
    even_splits,
    launch_even_merge,
    launch_plan,
    launch_planned_merge,
)
from vortex_core.kernels.runtime import INTERPRETED, absent_gpu, dependent_launch, next_power_of_2
from vortex_core.page_list import PageList

CHANNELS = (576, 512)  # of a cached token, and of its latent
MAX_GROUP = 32  # query heads a list: more do not fit shared memory beside two tiles


def on_hopper() -> bool:
    """Whether kernels run on, or compile for, an H100, H200 or another GPU with warpgroup products."""
    absent = absent_gpu()
    return _hopper_is_here() if absent is None else absent.capability == (9, 0)


@lru_cache(maxsize=1)
def _hopper_is_here() -> bool:
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
        and q.shape[1] // pages.heads <= MAX_GROUP
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
    even_tokens: int,
) -> None:
    """Attention and merge, as `paged_decode` describes them."""
    ids, lens = pages.page_ids, pages.lengths
    heads, group = pages.heads, q.shape[1] // pages.heads
    rows, page_size = pages.batch * heads, cache.shape[1]
    max_tokens = pages.columns * page_size
    splits = even_splits(pages, max_tokens, workers, TILE, even_tokens)
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
        launch_plan(lens, workspace, rows, workers, plan)
    latent_decode_kernel[(rows * splits or workers,)](
        q, cache, out, lse, ids, lens, workspace.part_out, workspace.part_lse, workspace.plan,
        q.stride(0), q.stride(1), cache.stride(0), out.stride(0), out.stride(1),
        ids.stride(0), ids.stride(1), lens.stride(0), lens.stride(1), score_scale, v_scale, rows, workers,
        splits, max_tokens,
        **constants, num_warps=WARPS, **early,
    )  # fmt: skip
    if splits > 1:
        block = min(512, max(64, 4096 // next_power_of_2(splits)))
        launch_even_merge(out, lse, workspace, Rows(rows, heads, group, 512), splits, block, late)
    elif splits == 0:
        launch_planned_merge(out, lse, lens, workspace, Rows(rows, heads, group, 512), workers, plan)

"""Launches `latent_decode_kernel`: latent attention with tokens as rows, on Hopper."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vortex_core.kernels.latent_kernel import TILE, WARPS, latent_decode_kernel
from vortex_core.kernels.pages import PageList
from vortex_core.kernels.runtime import INTERPRETED
from vortex_core.kernels.split import SplitWorkspace, plan_block

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
    )


def latent_constants(
    *, heads: int, group: int, page_size: int, stride_token: int, rows: int, has_lse: bool
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
) -> None:
    """One launch of `workers` programs; pieces of rows go to the workspace for the merge. See `paged_decode`."""
    rows = pages.batch * pages.kv_heads
    constants = latent_constants(
        heads=pages.kv_heads,
        group=q.shape[1] // pages.kv_heads,
        page_size=cache.shape[1],
        stride_token=cache.stride(1),
        rows=rows,
        has_lse=lse is not None,
    )
    ids, lens = pages.page_ids, pages.kv_lens
    latent_decode_kernel[(workers,)](
        q, cache, out, lse, ids, lens, workspace.part_out, workspace.part_lse, workspace.plan,
        q.stride(0), q.stride(1), cache.stride(0), out.stride(0), out.stride(1),
        ids.stride(0), ids.stride(1), lens.stride(0), lens.stride(1), score_scale, v_scale, rows, workers,
        **constants, PDL=False, num_warps=WARPS,
    )  # fmt: skip

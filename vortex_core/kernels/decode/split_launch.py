"""What is launched around an attention kernel that cuts rows into pieces (`split.py`): the plan, the merge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
from torch import Tensor

from vortex_core.kernels.decode.split import (
    EVEN_TOKENS,
    SplitWorkspace,
    merge_even_kernel,
    merge_kernel,
    plan_kernel,
)
from vortex_core.kernels.runtime import dependent_launch, next_power_of_2
from vortex_core.page_list import PageList


def even_splits(
    pages: PageList, max_tokens: int, workers: int, least: int, even_tokens: int = EVEN_TOKENS
) -> int:
    """Pieces to cut each row into where all rows are cut alike; 0 where tiles are shared out by a plan.

    A function of maxima alone. Rows are cut alike where that costs nothing, and so saves a step of dependent
    reads: one request's, which are of about one length, and short ones, as a selection leaves them: however
    uneven those are, it costs no more than the time of a few tiles.

    Args:
        least: fewest tokens of a piece, if a row has them.
        even_tokens: the longest lists of several requests that count as short.
    """
    rows = pages.batch * pages.heads
    if rows > workers or (max_tokens > even_tokens and pages.batch > 1):
        return 0
    return max(1, min(workers // rows, -(-max_tokens // least)))


def launch_plan(
    lens: Tensor, workspace: SplitWorkspace, rows: int, workers: int, plan: dict[str, Any]
) -> None:
    """Shares tiles out for more rows than one scan holds. plan: HEADS, BLOCK_N, PLAN and MIN_TILES."""
    plan_kernel[(workers,)](
        lens, workspace.plan, lens.stride(0), lens.stride(1), rows, workers, **plan, num_warps=4,
        **dependent_launch(lens.device),
    )  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """`count` lists, `heads` of them a request, of `group` query heads with `dim` output channels each."""

    count: int
    heads: int
    group: int
    dim: int


def launch_even_merge(
    out: Tensor,
    lse: Tensor | None,
    workspace: SplitWorkspace,
    rows: Rows,
    splits: int,
    dim_block: int,
    launch: dict[str, Any],
) -> None:
    """Merges rows that are all cut into `splits` pieces. launch: of `dependent_launch`."""
    merge_even_kernel[(rows.count, rows.group, triton.cdiv(rows.dim, dim_block))](
        out, lse, workspace.part_out, workspace.part_lse, out.stride(0), out.stride(1), splits,
        HEADS=rows.heads, GROUP=rows.group, DIM=rows.dim, DIM_BLOCK=dim_block, PIECES=next_power_of_2(splits),
        HAS_LSE=lse is not None, num_warps=4, **launch,
    )  # fmt: skip


def launch_planned_merge(
    out: Tensor,
    lse: Tensor | None,
    lens: Tensor,
    workspace: SplitWorkspace,
    rows: Rows,
    workers: int,
    plan: dict[str, Any],
) -> None:
    """Merges rows whose tiles were shared out by `plan`: HEADS, BLOCK_N, PLAN and MIN_TILES."""
    # Few rows: spread their channels over more programs. Many: fewer programs, and as many pieces at once as a
    # row is cut into when all rows are alike.
    dim_block = next_power_of_2(rows.dim)
    if rows.count * rows.group < 512:
        dim_block = min(128, dim_block)
    pieces = min(4096 // dim_block, max(4, next_power_of_2(workers // rows.count + 1)))
    merge_kernel[(rows.count, rows.group, triton.cdiv(rows.dim, dim_block))](
        out, lse, workspace.part_out, workspace.part_lse, lens,
        out.stride(0), out.stride(1), lens.stride(0), lens.stride(1), rows.count, workers,
        GROUP=rows.group, DIM=rows.dim, DIM_BLOCK=dim_block, PIECES=pieces, HAS_LSE=lse is not None,
        **plan, num_warps=4, **dependent_launch(out.device),
    )  # fmt: skip

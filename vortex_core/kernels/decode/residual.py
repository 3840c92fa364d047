"""What a selection leaves out, merged into its attention: each other complete page is one entry of weight and value.

One program a list walks the row's pages in blocks. A list is in logical order, so the pages of a block that it
holds are the next ones of the list, and a block is compared with as many of them as it has pages.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vortex_core.kernels.dependent import await_previous
from vortex_core.kernels.pages import require
from vortex_core.kernels.runtime import INTERPRETED, dependent_launch, next_power_of_2
from vortex_core.page_list import PageList

BLOCK = 64
LARGEST = 1.0e30  # of a log weight; infinities count as it, NaN as no weight


@triton.jit(
    do_not_specialize=[
        "stride_out_b", "stride_out_h", "stride_ids_b", "stride_ids_h", "stride_lens_b", "stride_lens_h",
        "stride_table", "mass_pages", "pool_pages",
    ]
)  # fmt: skip
def residual_kernel(
    out_ptr, lse_ptr, mass_ptr, value_ptr, ids_ptr, lens_ptr, table_ptr, lengths_ptr,
    stride_out_b, stride_out_h, stride_ids_b, stride_ids_h, stride_lens_b, stride_lens_h, stride_table,
    mass_pages, pool_pages,
    LISTS: tl.constexpr, KV_REPEAT: tl.constexpr, GROUP: tl.constexpr, GROUP_PAD: tl.constexpr,
    PAGE: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr, BLOCK: tl.constexpr, TOP: tl.constexpr,
    OPERAND: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (batch * LISTS,): out [batch, q_head, dim] in place, from its lse [batch, q_head] (natural log)."""
    await_previous(PDL)
    row = tl.program_id(0)
    b = row // LISTS
    one = row % LISTS
    complete = tl.load(lengths_ptr + b) // PAGE
    listed = (tl.load(lens_ptr + b * stride_lens_b + one * stride_lens_h) + PAGE - 1) // PAGE
    group = tl.arange(0, GROUP_PAD)
    group_ok = group < GROUP
    head = row.to(tl.int64) * GROUP + group
    dim = tl.arange(0, DIM_PAD)
    at = (
        out_ptr + b.to(tl.int64) * stride_out_b + (one * GROUP + group)[:, None] * stride_out_h + dim[None, :]
    )
    out_ok = group_ok[:, None] & (dim < DIM)[None, :]
    ids_row = ids_ptr + b.to(tl.int64) * stride_ids_b + one * stride_ids_h
    table_row = table_ptr + b.to(tl.int64) * stride_table
    if complete > 0:
        top = tl.maximum(tl.load(lse_ptr + head, mask=group_ok, other=0.0) * 1.4426950408889634, -3.0e38)
        total = tl.full([GROUP_PAD], 1.0, tl.float32)
        acc = tl.load(at, mask=out_ok, other=0.0).to(tl.float32)
        cursor = 0
        for start in range(0, complete, BLOCK):
            page = start + tl.arange(0, BLOCK)
            ok = page < complete
            physical = tl.load(table_row + page, mask=ok, other=-1)
            slot = cursor + tl.arange(0, BLOCK)
            chosen = tl.load(ids_row + slot, mask=slot < listed, other=-2)
            taken = tl.max((physical[:, None] == chosen[None, :]).to(tl.int32), 1)
            cursor += tl.sum(taken)
            left = ok & (taken == 0)
            mass = tl.load(
                mass_ptr + head[:, None] * mass_pages + page[None, :],
                mask=group_ok[:, None] & left[None, :], other=float("-inf"),
            )  # fmt: skip
            mass = tl.where(mass == mass, tl.minimum(mass, TOP), float("-inf")) * 1.4426950408889634
            new_top = tl.maximum(top, tl.max(mass, 1))
            decay = tl.exp2(top - new_top)
            weight = tl.exp2(mass - new_top[:, None])
            value = tl.load(
                value_ptr + ((one // KV_REPEAT) * pool_pages + physical.to(tl.int64))[:, None] * DIM + dim[None, :],
                mask=left[:, None] & (dim < DIM)[None, :], other=0.0,
            )  # fmt: skip
            acc = tl.dot(weight.to(OPERAND), value.to(OPERAND), acc * decay[:, None], input_precision="ieee")
            total = total * decay + tl.sum(weight, 1)
            top = new_top
        tl.store(at, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=out_ok)


def merge_residual(
    out: Tensor, lse: Tensor, mass: Tensor, value: Tensor, pages: PageList, table: Tensor, lengths: Tensor
) -> Tensor:
    """Attention over page lists with one entry for each complete page that is not listed, in place.

    Args:
        out: `[batch, q_head, dim]`, attention over the lists.
        lse: fp32 `[batch, q_head]`, natural log-sum-exp of its scores.
        mass: fp32 `[batch, q_head, page]`, contiguous, natural log weights of logical pages; those of listed pages
            are not looked at.
        value: `[kv_head, physical page, dim]`, contiguous, in bf16, fp16 or fp32.
        pages: the lists, one a kv head or one a query head.
        table: int32 `[batch, page]`. lengths: int32 `[batch]`, tokens; a row of length 0 stays as it is.
    """
    batch, q_heads, dim = out.shape
    kv_heads, pool = value.shape[:2]
    lists = pages.heads
    require(
        q_heads % lists == 0 and lists % kv_heads == 0,
        f"{lists} lists of {q_heads} heads, {kv_heads} kv heads",
    )
    require(
        mass.is_contiguous() and value.is_contiguous() and lse.is_contiguous() and out.stride(2) == 1,
        "masses, values and lse must be contiguous, out along dim",
    )
    group = q_heads // lists
    exact = INTERPRETED or out.dtype != torch.bfloat16
    ids, lens = pages.page_ids, pages.lengths
    residual_kernel[(batch * lists,)](
        out, lse, mass, value, ids, lens, table, lengths,
        out.stride(0), out.stride(1), ids.stride(0), ids.stride(1), lens.stride(0), lens.stride(1), table.stride(0),
        mass.shape[2], pool,
        LISTS=lists, KV_REPEAT=lists // kv_heads, GROUP=group, GROUP_PAD=max(16, next_power_of_2(group)),
        PAGE=pages.page_size, DIM=dim, DIM_PAD=max(16, next_power_of_2(dim)), BLOCK=BLOCK, TOP=LARGEST,
        OPERAND=tl.float32 if exact else tl.bfloat16, num_warps=4, **dependent_launch(out.device),
    )  # fmt: skip
    return out

"""Decode attention over lists of bounded length: every row is cut into the same number of pieces.

A selection leaves lists of at most its budget, nearly all of that length. Then no plan is needed: program
`row * splits + piece` takes every `splits`-th tile of its row, and its first page ids, the row's length and the
query are read at once instead of one after the other. Longer or very uneven rows take `paged_decode_kernel`,
which balances tiles over rows (`split.py`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from vortex_core.kernels.decode.paged_kernel import attend_tiles, merge_if_last, store_channels, store_row
from vortex_core.kernels.dependent import await_previous, release_next


@triton.jit(
    do_not_specialize=[
        "splits", "stride_ids_b", "stride_ids_h", "stride_lens_b", "stride_lens_h", "max_pages",
    ]
)  # fmt: skip
def list_decode_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, page_lse_ptr, ids_ptr, lens_ptr,
    part_out_ptr, part_lse_ptr, finished_ptr,
    stride_q_b, stride_q_h, stride_k_page, stride_k_head,
    stride_v_page, stride_v_head, stride_out_b, stride_out_h,
    stride_ids_b, stride_ids_h, stride_lens_b, stride_lens_h, max_pages,
    score_scale, v_scale, splits,
    STRIDE_K_TOKEN: tl.constexpr, STRIDE_V_TOKEN: tl.constexpr,
    HEADS: tl.constexpr, KV_REPEAT: tl.constexpr, GROUP: tl.constexpr, GROUP_PAD: tl.constexpr,
    PAGE: tl.constexpr, DK: tl.constexpr, DK0: tl.constexpr, DK1: tl.constexpr,
    DV: tl.constexpr, DV0: tl.constexpr, DV1: tl.constexpr,
    BLOCK_N: tl.constexpr, SCALAR_PAGE: tl.constexpr, OPERAND: tl.constexpr, VALUE_IN_KEY: tl.constexpr,
    SPLIT: tl.constexpr, FUSED_MERGE: tl.constexpr, HAS_LSE: tl.constexpr, HAS_PAGE_LSE: tl.constexpr,
    PDL: tl.constexpr, LATE_SUMS: tl.constexpr = False,
):  # fmt: skip
    """Grid (rows * splits,). `SPLIT`: whether `splits` > 1. Arguments as in `paged_decode_kernel`.

    A piece is written to slot 2 * program of the split workspace; one without tiles weighs nothing.
    """
    await_previous(PDL)
    program = tl.program_id(0)
    row = program
    piece = 0
    if SPLIT:
        row = program // splits
        piece = program % splits
    b = (row // HEADS).to(tl.int64)
    h = row % HEADS
    kv_head = (h // KV_REPEAT).to(tl.int64)
    group = tl.arange(0, GROUP_PAD)
    group_ok = group < GROUP
    kv_len = tl.load(lens_ptr + b * stride_lens_b + h * stride_lens_h)
    q_base = q_ptr + b * stride_q_b + (h * GROUP + group)[:, None] * stride_q_h
    page_lse_base = page_lse_ptr
    if HAS_PAGE_LSE:
        page_lse_base = page_lse_ptr + (row.to(tl.int64) * GROUP + group) * max_pages
    top, weight_sum, acc0, acc1 = attend_tiles(
        q_base, k_ptr + kv_head * stride_k_head, v_ptr + kv_head * stride_v_head,
        ids_ptr + b * stride_ids_b + h * stride_ids_h, page_lse_base,
        piece, (kv_len + BLOCK_N - 1) // BLOCK_N, splits, kv_len, max_pages * PAGE,
        stride_k_page, stride_v_page, score_scale,
        STRIDE_K_TOKEN, STRIDE_V_TOKEN, GROUP, GROUP_PAD, PAGE, DK, DK0, DK1, DV, DV0, DV1,
        BLOCK_N, SCALAR_PAGE, OPERAND, VALUE_IN_KEY, HAS_PAGE_LSE, LATE_SUMS,
    )  # fmt: skip

    release_next(PDL)
    seen = weight_sum > 0
    norm = tl.where(seen, v_scale / weight_sum, 0.0)
    lse = tl.where(seen, top + tl.log2(weight_sum), float("-inf"))
    dv0 = tl.arange(0, DV0)
    mask0 = group_ok[:, None] & (dv0 < DV)[None, :]
    out_rows = out_ptr + b * stride_out_b + (h * GROUP + group)[:, None] * stride_out_h
    dv1 = dv0
    x0, x1 = acc0 * norm[:, None], acc1
    if DV1 > 0:
        dv1 = DV0 + tl.arange(0, DV1)
        x1 = acc1 * norm[:, None]
    if not SPLIT:
        store_row(out_rows, lse_ptr, row, x0, x1, lse, group, group_ok, dv0, dv1, mask0, GROUP, DV1, HAS_LSE)
    else:
        part = (2 * program).to(tl.int64) * GROUP + group
        part_rows = part_out_ptr + part[:, None] * DV
        store_channels(part_rows, x0, x1, dv0, dv1, mask0, group_ok[:, None], DV1)
        tl.store(part_lse_ptr + part, lse, mask=group_ok)
        if FUSED_MERGE:
            merge_if_last(
                part_out_ptr, part_lse_ptr, finished_ptr, out_rows, lse_ptr, row, row * splits, splits, 0, 1,
                group, group_ok, dv0, dv1, mask0, GROUP, DV, DV1, HAS_LSE,
            )  # fmt: skip

"""The decode attention kernel shared by grouped-query and latent attention, and the page-mass kernel.

One launch reads each listed byte of the KV cache once: a worker streams tiles of `BLOCK_N` tokens through
shared memory and keeps the online softmax of FlashAttention (arXiv 2205.14135) for the whole query group,
padded to the rows of a matrix product. `split.py` says how work is divided and merged.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vortex_core.kernels.decode.split import load_plan, merge_pieces, piece_slot, plan_worker, row_tiles
from vortex_core.kernels.dependent import await_previous


@triton.jit
def load_rows(
    base, slot, ok, STRIDE_TOKEN: tl.constexpr, OFFSET: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr
):
    """Channels [OFFSET, OFFSET + BLOCK) of a tile [N, BLOCK].

    base: pointer, scalar or [N]; slot [N]: tokens past the base; ok [N]. The stride is a constant so that the
    offsets of a tile are, too: they cost neither registers nor instructions.
    Rows that are not `ok` come back as zeros, not as what the pool holds: 0 * NaN would poison the sum.
    """
    channel = OFFSET + tl.arange(0, BLOCK)
    rows = base + slot * STRIDE_TOKEN
    mask = ok[:, None]
    if OFFSET + BLOCK > DIM:
        mask = mask & (channel < DIM)[None, :]
    return tl.load(rows[:, None] + channel[None, :], mask=mask, other=0.0)


@triton.jit
def load_page_ids(ids, tile, token, listed, PAGE: tl.constexpr, BLOCK_N: tl.constexpr):
    """The physical page of every token of a tile; 0 from token `listed` of the list on."""
    position = tile * BLOCK_N + token
    if PAGE <= BLOCK_N:
        index = tile * (BLOCK_N // PAGE) + token // PAGE
    else:
        index = position // PAGE
    return tl.load(ids + index, mask=position < listed, other=0)


@triton.jit
def attend_tiles(
    q_base, k_base, v_base, ids_base, page_lse_base, first, last, step, kv_len, listed,
    stride_k_page, stride_v_page, score_scale,
    STRIDE_K_TOKEN: tl.constexpr, STRIDE_V_TOKEN: tl.constexpr, GROUP: tl.constexpr, GROUP_PAD: tl.constexpr,
    PAGE: tl.constexpr, DK: tl.constexpr, DK0: tl.constexpr, DK1: tl.constexpr,
    DV: tl.constexpr, DV0: tl.constexpr, DV1: tl.constexpr,
    BLOCK_N: tl.constexpr, SCALAR_PAGE: tl.constexpr, OPERAND: tl.constexpr,
    VALUE_IN_KEY: tl.constexpr, HAS_PAGE_LSE: tl.constexpr, LATE_SUMS: tl.constexpr = False,
):  # fmt: skip
    """Online softmax of one row over its tiles first, first + step, ... below last.

    LATE_SUMS: each token of a tile keeps a sum of its own until the end, so that warps meet less often for a tile.

    listed: tokens up to which page ids may be read; those past kv_len have no meaning and are not followed.

    q_base [GROUP_PAD, 1], page_lse_base [GROUP_PAD], the others scalar pointers of the row. Returns the maxima
    (base 2), the sums of weights and the two blocks of the unnormalised output (the second only if DV1 > 0).
    """
    group_ok = tl.arange(0, GROUP_PAD) < GROUP
    token = tl.arange(0, BLOCK_N)
    dk0 = tl.arange(0, DK0)
    if DK0 > DK:
        q0 = tl.load(q_base + dk0[None, :], mask=group_ok[:, None] & (dk0 < DK)[None, :], other=0.0).to(
            OPERAND
        )
    else:
        q0 = tl.load(q_base + dk0[None, :], mask=group_ok[:, None], other=0.0).to(OPERAND)
    if DK1 > 0:
        dk1 = DK0 + tl.arange(0, DK1)
        q1 = tl.load(q_base + dk1[None, :], mask=group_ok[:, None], other=0.0).to(OPERAND)

    # Finite, so that a fully masked tile (an empty row) yields weights of zero and not NaN.
    top = tl.full([GROUP_PAD], -3.0e38, tl.float32)
    weight_sum = tl.zeros([GROUP_PAD], tl.float32)
    if LATE_SUMS:
        token_sums = tl.zeros([GROUP_PAD, BLOCK_N], tl.float32)
    acc0 = tl.zeros([GROUP_PAD, DV0], tl.float32)
    acc1 = weight_sum
    if DV1 > 0:
        acc1 = tl.zeros([GROUP_PAD, DV1], tl.float32)

    # The page ids of a tile are read one tile ahead: the pipeline of K and V never waits for them.
    if SCALAR_PAGE:
        page = tl.load(ids_base + (first * BLOCK_N) // PAGE, mask=first * BLOCK_N < listed, other=0)
    else:
        page = load_page_ids(ids_base, first, token, listed, PAGE, BLOCK_N)
    for t in range(first, last, step):
        position = t * BLOCK_N + token
        ok = position < kv_len
        if SCALAR_PAGE:
            skip = (t * BLOCK_N) % PAGE
            slot = token
        else:
            skip = 0
            slot = position % PAGE
        k_page = k_base + page.to(tl.int64) * stride_k_page + skip * STRIDE_K_TOKEN
        k0 = load_rows(k_page, slot, ok, STRIDE_K_TOKEN, 0, DK0, DK)
        scores = tl.dot(q0, tl.trans(k0.to(OPERAND)), input_precision="ieee")
        if DK1 > 0:
            k1 = load_rows(k_page, slot, ok, STRIDE_K_TOKEN, DK0, DK1, DK)
            scores = tl.dot(q1, tl.trans(k1.to(OPERAND)), scores, input_precision="ieee")
        scores = tl.where(ok[None, :], scores * score_scale, float("-inf"))

        new_top = tl.maximum(top, tl.max(scores, 1))
        decay = tl.exp2(top - new_top)
        weights = tl.exp2(scores - new_top[:, None])
        if LATE_SUMS:
            token_sums = token_sums * decay[:, None] + weights
        else:
            weight_sum = weight_sum * decay + tl.sum(weights, 1)
        top = new_top

        if VALUE_IN_KEY:
            v0 = k0  # latent attention: the tile in shared memory serves both products
        else:
            v_page = v_base + page.to(tl.int64) * stride_v_page + skip * STRIDE_V_TOKEN
            v0 = load_rows(v_page, slot, ok, STRIDE_V_TOKEN, 0, DV0, DV)
        acc0 = tl.dot(weights.to(OPERAND), v0.to(OPERAND), acc0 * decay[:, None], input_precision="ieee")
        if DV1 > 0:
            v1 = load_rows(v_page, slot, ok, STRIDE_V_TOKEN, DV0, DV1, DV)
            acc1 = tl.dot(weights.to(OPERAND), v1.to(OPERAND), acc1 * decay[:, None], input_precision="ieee")

        if HAS_PAGE_LSE:
            tl.static_assert(BLOCK_N >= PAGE, "page sums need whole pages in a tile")
            by_page = tl.reshape(scores, [GROUP_PAD, BLOCK_N // PAGE, PAGE])
            page_top = tl.maximum(tl.max(by_page, 2), -3.0e38)
            page_lse = page_top + tl.log2(tl.sum(tl.exp2(by_page - page_top[:, :, None]), 2))
            index = t * (BLOCK_N // PAGE) + tl.arange(0, BLOCK_N // PAGE)
            tl.store(
                page_lse_base[:, None] + index[None, :],
                page_lse,
                mask=group_ok[:, None] & (index * PAGE < kv_len)[None, :],
            )

        if SCALAR_PAGE:
            at = (t + step) * BLOCK_N
            page = tl.load(ids_base + at // PAGE, mask=at < listed, other=0)
        else:
            page = load_page_ids(ids_base, t + step, token, listed, PAGE, BLOCK_N)
    if LATE_SUMS:
        weight_sum = tl.sum(token_sums, 1)
    return top, weight_sum, acc0, acc1


@triton.jit
def store_channels(rows, x0, x1, dv0, dv1, mask0, mask1, DV1: tl.constexpr):
    """Two blocks of channels [GROUP_PAD, DV0] and, if DV1 > 0, [GROUP_PAD, DV1] to rows [GROUP_PAD, 1]."""
    tl.store(rows + dv0[None, :], x0.to(rows.dtype.element_ty), mask=mask0)
    if DV1 > 0:
        tl.store(rows + dv1[None, :], x1.to(rows.dtype.element_ty), mask=mask1)


@triton.jit
def store_row(
    out_rows, lse_ptr, row, x0, x1, lse, group, group_ok, dv0, dv1, mask0,
    GROUP: tl.constexpr, DV1: tl.constexpr, HAS_LSE: tl.constexpr,
):  # fmt: skip
    """The finished output of a row; lse [GROUP_PAD] in base 2."""
    store_channels(out_rows, x0, x1, dv0, dv1, mask0, group_ok[:, None], DV1)
    if HAS_LSE:
        tl.store(lse_ptr + row * GROUP + group, lse * 0.6931471805599453, mask=group_ok)


@triton.jit
def merge_if_last(
    part_out_ptr, part_lse_ptr, finished_ptr, out_rows, lse_ptr, row, first_worker, pieces, begin, share,
    group, group_ok, dv0, dv1, mask0,
    GROUP: tl.constexpr, DV: tl.constexpr, DV1: tl.constexpr, HAS_LSE: tl.constexpr,
):  # fmt: skip
    """Whoever finishes the last of a row's pieces merges them (`merge_pieces`)."""
    # All threads' stores come before the count, and the count before the merger's loads.
    tl.debug_barrier()
    if tl.atomic_add(finished_ptr + row, 1, sem="acq_rel") == pieces - 1:
        tl.store(finished_ptr + row, 0)
        merged0, lse = merge_pieces(
            part_out_ptr, part_lse_ptr, first_worker, pieces, begin, share,
            group, group_ok, dv0, dv0 < DV, GROUP, DV, 4,
        )  # fmt: skip
        merged1 = merged0
        if DV1 > 0:
            merged1, _ = merge_pieces(
                part_out_ptr, part_lse_ptr, first_worker, pieces, begin, share,
                group, group_ok, dv1, dv1 < DV, GROUP, DV, 4,
            )  # fmt: skip
        store_row(
            out_rows, lse_ptr, row, merged0, merged1, lse, group, group_ok, dv0, dv1, mask0, GROUP, DV1, HAS_LSE
        )  # fmt: skip


# Not specialised on: batch sizes and list strides vary between captured graphs, one binary serves them all.
@triton.jit(
    do_not_specialize=[
        "rows", "workers", "stride_ids_b", "stride_ids_h", "stride_lens_b", "stride_lens_h",
        "stride_page_lse",
    ]
)  # fmt: skip
def paged_decode_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, page_lse_ptr, ids_ptr, lens_ptr,
    part_out_ptr, part_lse_ptr, finished_ptr, plan_ptr,
    stride_q_b, stride_q_h, stride_k_page, stride_k_head,
    stride_v_page, stride_v_head, stride_out_b, stride_out_h,
    stride_ids_b, stride_ids_h, stride_lens_b, stride_lens_h, stride_page_lse,
    score_scale, v_scale, rows, workers,
    STRIDE_K_TOKEN: tl.constexpr, STRIDE_V_TOKEN: tl.constexpr,
    HEADS: tl.constexpr, KV_REPEAT: tl.constexpr, GROUP: tl.constexpr, GROUP_PAD: tl.constexpr,
    PAGE: tl.constexpr, DK: tl.constexpr, DK0: tl.constexpr, DK1: tl.constexpr,
    DV: tl.constexpr, DV0: tl.constexpr, DV1: tl.constexpr,
    BLOCK_N: tl.constexpr, PLAN: tl.constexpr, ONE_BLOCK: tl.constexpr, SCALAR_PAGE: tl.constexpr,
    MIN_TILES: tl.constexpr, OPERAND: tl.constexpr,
    VALUE_IN_KEY: tl.constexpr, FUSED_MERGE: tl.constexpr, HAS_LSE: tl.constexpr, HAS_PAGE_LSE: tl.constexpr,
    PDL: tl.constexpr, LATE_SUMS: tl.constexpr = False,
):  # fmt: skip
    """Grid (workers,). `score_scale` = softmax scale * k_scale * log2(e); `OPERAND` is the type of the dots.

    HEADS lists a request, GROUP query heads a list, KV_REPEAT lists a kv head.
    """
    await_previous(PDL)
    worker = tl.program_id(0)
    if ONE_BLOCK:
        tile, tile_end, row, begin, share = plan_worker(
            worker, workers, lens_ptr, stride_lens_b, stride_lens_h, rows, HEADS, BLOCK_N, PLAN, MIN_TILES
        )
    else:
        tile, tile_end, row, begin, share = load_plan(plan_ptr, worker)

    group = tl.arange(0, GROUP_PAD)
    group_ok = group < GROUP
    dv0 = tl.arange(0, DV0)
    dv1 = dv0
    if DV1 > 0:
        dv1 = DV0 + tl.arange(0, DV1)

    while tile < tile_end:
        b = (row // HEADS).to(tl.int64)
        h = row % HEADS
        kv_head = (h // KV_REPEAT).to(tl.int64)
        kv_len = tl.load(lens_ptr + b * stride_lens_b + h * stride_lens_h)
        tiles = row_tiles(kv_len, BLOCK_N)
        first = tile - begin
        last = tl.minimum(tiles, tile_end - begin)

        q_base = q_ptr + b * stride_q_b + (h * GROUP + group)[:, None] * stride_q_h
        page_lse_base = page_lse_ptr
        if HAS_PAGE_LSE:
            page_lse_base = page_lse_ptr + (row.to(tl.int64) * GROUP + group) * stride_page_lse
        top, weight_sum, acc0, acc1 = attend_tiles(
            q_base, k_ptr + kv_head * stride_k_head, v_ptr + kv_head * stride_v_head,
            ids_ptr + b * stride_ids_b + h * stride_ids_h, page_lse_base,
            first, last, 1, kv_len, kv_len, stride_k_page, stride_v_page, score_scale,
            STRIDE_K_TOKEN, STRIDE_V_TOKEN, GROUP, GROUP_PAD, PAGE, DK, DK0, DK1, DV, DV0, DV1,
            BLOCK_N, SCALAR_PAGE, OPERAND, VALUE_IN_KEY, HAS_PAGE_LSE, LATE_SUMS,
        )  # fmt: skip

        seen = weight_sum > 0
        norm = tl.where(seen, v_scale / weight_sum, 0.0)
        lse = tl.where(seen, top + tl.log2(weight_sum), float("-inf"))
        out_rows = out_ptr + b * stride_out_b + (h * GROUP + group)[:, None] * stride_out_h
        mask0 = group_ok[:, None] & (dv0 < DV)[None, :]
        x0, x1 = acc0 * norm[:, None], acc1
        if DV1 > 0:
            x1 = acc1 * norm[:, None]
        if last - first == tiles:
            store_row(
                out_rows, lse_ptr, row, x0, x1, lse, group, group_ok, dv0, dv1, mask0, GROUP, DV1, HAS_LSE
            )
        else:
            first_worker = begin // share
            part = piece_slot(worker, first_worker, begin, share).to(tl.int64) * GROUP + group
            part_rows = part_out_ptr + part[:, None] * DV
            store_channels(part_rows, x0, x1, dv0, dv1, mask0, group_ok[:, None], DV1)
            tl.store(part_lse_ptr + part, lse, mask=group_ok)
            if FUSED_MERGE:
                pieces = (begin + tiles - 1) // share - first_worker + 1
                merge_if_last(
                    part_out_ptr, part_lse_ptr, finished_ptr, out_rows, lse_ptr, row,
                    first_worker, pieces, begin, share, group, group_ok, dv0, dv1, mask0,
                    GROUP, DV, DV1, HAS_LSE,
                )  # fmt: skip

        tile = begin + last
        begin += tiles
        row += 1


@triton.jit
def page_mass_kernel(
    page_lse_ptr, lse_ptr, lens_ptr, mass_ptr,
    stride_page_lse, stride_lens_b, stride_lens_h, stride_mass, max_pages,
    HEADS: tl.constexpr, GROUP: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (row, page block): attention mass of each listed page, summed over the query heads of the row."""
    await_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    kv_len = tl.load(lens_ptr + (row // HEADS) * stride_lens_b + (row % HEADS) * stride_lens_h)
    ok = index * PAGE < kv_len
    mass = tl.zeros([BLOCK], tl.float32)
    for g in range(GROUP):
        lse = tl.load(lse_ptr + row * GROUP + g) * 1.4426950408889634
        page_lse = tl.load(
            page_lse_ptr + (row * GROUP + g) * stride_page_lse + index, mask=ok, other=float("-inf")
        )
        mass += tl.where(ok, tl.exp2(page_lse - lse), 0.0)
    tl.store(mass_ptr + row * stride_mass + index, mass, mask=index < max_pages)

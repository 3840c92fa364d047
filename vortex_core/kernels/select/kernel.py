"""Triton code of page selection: how many pages a row takes, in one program or in one for each of its segments."""

from __future__ import annotations

import triton
import triton.language as tl

from vortex_core.kernels.dependent import await_previous
from vortex_core.kernels.select.choose import (
    BEGIN_MARKS,
    BY_COUNT,
    BY_MASS,
    LIST_MARKS,
    NO_MARKS,
    choose,
    choose_in_memory,
    choose_sifted,
    choose_whole,
    list_marked,
)
from vortex_core.kernels.select.search import (
    KEY_NONE,
    LOG2_E,
    in_rows,
    load_keys,
    order_key,
    top_score,
    weigh,
)

EVERYTHING = tl.constexpr(1 << 23)  # `ir.crossover.EVERYTHING`


@triton.jit(
    do_not_specialize=[
        "stride_budget_b", "stride_budget_h", "stride_table_b", "stride_out", "stride_marks", "capacity",
        "list_capacity", "keep_first", "keep_last", "parts", "at_key", "seed",
    ]
)  # fmt: skip
def select_kernel(
    scores_ptr, n_tokens_ptr, budget_ptr, table_ptr, out_ptr, lens_ptr,
    candidate_keys_ptr, candidate_pages_ptr, masses_ptr, finished_ptr, marks_ptr, sifted_keys_ptr, sifted_pages_ptr,
    stride_scores, stride_budget_b, stride_budget_h, stride_table_b, stride_out, stride_candidates, stride_marks,
    max_pages, capacity, list_capacity, keep_first, keep_last, parts, at_key, share, keep_share, seed,
    HEADS: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr, SEGMENTS: tl.constexpr,
    FINAL_BLOCK: tl.constexpr, TIERS: tl.constexpr, LAST_SHIFT: tl.constexpr,
    STOCHASTIC: tl.constexpr, LIMIT: tl.constexpr, MARKS: tl.constexpr, SIFT: tl.constexpr, PDL: tl.constexpr,
    TIMES: tl.constexpr = 1,
):  # fmt: skip
    """Grid (rows, SEGMENTS): one row's pages, straight to physical ids in ascending logical order.

    A row longer than BLOCK is cut into segments. Each keeps its own best k, and the one that finishes last
    chooses among those: the best k of a row are among the best k of its segments, and in the same order.
    parts: ten-thousandths of the budget, beyond the kept pages, that may be used; TIMES: so many times as many pages
    are chosen. at_key: key of the threshold. share: of the row's softmax weight. capacity: most pages chosen here;
    list_capacity: of a list.
    """
    await_previous(PDL)
    row = tl.program_id(0)
    segment = tl.program_id(1)
    b = row // HEADS
    scores_row = scores_ptr + row.to(tl.int64) * stride_scores
    first = segment * BLOCK
    page = first + in_rows(BLOCK)
    scores = tl.load(scores_row + page, mask=page < max_pages, other=0.0)  # before the row's length is known
    n_tokens = tl.load(n_tokens_ptr + b)
    n_pages = (n_tokens + PAGE - 1) // PAGE
    k = tl.load(budget_ptr + b * stride_budget_b + (row % HEADS) * stride_budget_h)
    whole = (k >= EVERYTHING) & (n_pages <= list_capacity)
    kept = tl.minimum(keep_first + keep_last, n_pages)
    room = tl.minimum(tl.maximum(k, kept), n_pages) - kept
    k = tl.minimum(kept + (room * parts + 9999) // 10000 * TIMES, capacity)
    k = tl.where(whole, EVERYTHING, k)
    table_row = table_ptr + b.to(tl.int64) * stride_table_b
    out_row = out_ptr + row.to(tl.int64) * stride_out
    marks_row = out_row  # of no use without marks, for which there is no pointer then
    if MARKS != NO_MARKS:
        marks_row = marks_ptr + row.to(tl.int64) * stride_marks
    end = tl.minimum(first + BLOCK, n_pages)
    enough = k
    if STOCHASTIC:
        enough = tl.ceil(k.to(tl.float32) * keep_share).to(tl.int32)
    missing = n_pages * PAGE - n_tokens
    top = 0.0
    wanted = 0.0
    sifted_keys = sifted_keys_ptr
    sifted_pages = sifted_pages_ptr
    if SIFT > 0:
        sifted_keys += (row.to(tl.int64) * SEGMENTS + segment) * SIFT
        sifted_pages += (row.to(tl.int64) * SEGMENTS + segment) * SIFT
    WHOLE_SIFT: tl.constexpr = 0 if STOCHASTIC else SIFT
    LISTED: tl.constexpr = MARKS < BEGIN_MARKS
    if (n_pages <= 0) | ((k <= 0) & (MARKS == NO_MARKS)):
        if LISTED and segment == 0:
            tl.store(lens_ptr + row, 0)
    elif k >= (n_pages if LIMIT == BY_COUNT else EVERYTHING):
        # Inside its budget, or to be attended whatever its scores: everything, without looking at one.
        item = first + tl.arange(0, BLOCK)
        if LISTED:
            tl.store(out_row + item, tl.load(table_row + item, mask=item < end, other=0), mask=item < end)
            if segment == 0:
                tl.store(lens_ptr + row, n_tokens)
        else:
            tl.store(marks_row + item, tl.full([BLOCK], 1, tl.uint8), mask=item < end)
    elif (SEGMENTS == 1) or (n_pages <= BLOCK):
        if segment == 0:
            # A search takes as long as its block does, however few keys are in it: short rows get shorter ones.
            for tier in tl.static_range(TIERS):
                size = BLOCK >> (TIERS - 1 - tier)
                if (n_pages <= size) & ((tier == 0) | (n_pages > size // 2)):
                    count, last = choose_whole(
                        scores, scores_row, kept, k, enough, at_key, share, n_pages, keep_first, keep_last, seed, row,
                        table_row, out_row, marks_row, sifted_keys, sifted_pages, list_capacity,
                        BLOCK >> (TIERS - 1 - tier), tier == TIERS - 1, LAST_SHIFT, STOCHASTIC,
                        LIMIT, MARKS, WHOLE_SIFT,
                    )  # fmt: skip
                    if LISTED:
                        tl.store(lens_ptr + row, count * PAGE - last * missing)
    elif first < n_pages:
        keys_row = candidate_keys_ptr + row.to(tl.int64) * stride_candidates
        pages_row = candidate_pages_ptr + row.to(tl.int64) * stride_candidates
        masses_row = masses_ptr + row.to(tl.int64) * (2 * SEGMENTS)
        each = tl.minimum(k, BLOCK)  # candidates of a full segment
        here = tl.minimum(k, end - first)
        at = segment * each
        keys = order_key(scores, page, n_pages, keep_first, keep_last)
        if LIMIT == BY_MASS:
            top = top_score(keys)
            tl.store(masses_row + 2 * segment, top)
            tl.store(masses_row + 2 * segment + 1, tl.sum(tl.sum(weigh(keys, top), 1), 0))
        if MARKS == BEGIN_MARKS:
            item = first + tl.arange(0, BLOCK)
            tl.store(marks_row + item, tl.zeros([BLOCK], tl.uint8), mask=item < end)
        done = False
        if SIFT > 0 and BLOCK >= 2048:
            done, _, _ = choose_sifted(
                keys, scores_row, table_row, first, end, 0, here, at_key, top, wanted, n_pages, keep_first, keep_last,
                row, table_row, pages_row + at, keys_row + at, marks_row, sifted_keys, sifted_pages, list_capacity,
                False, True, BLOCK, LAST_SHIFT, BY_COUNT, NO_MARKS, SIFT,
            )  # fmt: skip
        if not done:
            again = load_keys(scores_row, page, end, n_pages, keep_first, keep_last, False)
            choose(
                again, scores_row, table_row,
                first, end, 0, here, here, at_key, top, wanted, n_pages, keep_first, keep_last, seed, row,
                table_row, pages_row + at, keys_row + at, marks_row, list_capacity,
                False, True, BLOCK, LAST_SHIFT, False, BY_COUNT, NO_MARKS,
            )  # fmt: skip
        segments = (n_pages + BLOCK - 1) // BLOCK
        # All threads' candidates come before the count, and the count before the last one's loads.
        tl.debug_barrier()
        if tl.atomic_add(finished_ptr + row, 1, sem="acq_rel") == segments - 1:
            tl.store(finished_ptr + row, 0)
            count = (segments - 1) * each + tl.minimum(k, n_pages - (segments - 1) * BLOCK)
            taken = 0
            last = 0
            if LIMIT == BY_MASS:
                top = tl.load(masses_row)
                for n in range(1, segments):
                    top = tl.maximum(top, tl.load(masses_row + 2 * n))
                for n in range(segments):
                    weight = tl.exp2((tl.load(masses_row + 2 * n) - top) * LOG2_E)
                    wanted += tl.load(masses_row + 2 * n + 1) * weight
                wanted = share * wanted
            if count <= FINAL_BLOCK:
                found = in_rows(FINAL_BLOCK)
                best = tl.load(keys_row + found, mask=found < count, other=KEY_NONE)
                done = False
                if WHOLE_SIFT > 0 and FINAL_BLOCK >= 2048:
                    done, taken, last = choose_sifted(
                        best, keys_row, pages_row, 0, count, kept, k, at_key, top, wanted, n_pages, keep_first,
                        keep_last, row, table_row, out_row, out_row, marks_row, sifted_keys, sifted_pages,
                        list_capacity, True, False, FINAL_BLOCK, LAST_SHIFT, LIMIT, MARKS, WHOLE_SIFT,
                    )  # fmt: skip
                if not done:
                    best = tl.load(keys_row + found, mask=found < count, other=KEY_NONE)
                    taken, last = choose(
                        best, keys_row, pages_row,
                        0, count, kept, k, enough, at_key, top, wanted, n_pages, keep_first, keep_last, seed, row,
                        table_row, out_row, out_row, marks_row, list_capacity,
                        True, False, FINAL_BLOCK, LAST_SHIFT, STOCHASTIC, LIMIT, MARKS,
                    )  # fmt: skip
            else:
                taken, last = choose_in_memory(
                    keys_row, pages_row, count, kept, k, enough, at_key, top, wanted, n_pages, seed, row,
                    table_row, out_row, marks_row, FINAL_BLOCK, LAST_SHIFT, STOCHASTIC, LIMIT, MARKS,
                )  # fmt: skip
            if MARKS == LIST_MARKS:
                tl.debug_barrier()  # all threads' marks come before their being read
                taken, last = list_marked(marks_row, n_pages, list_capacity, table_row, out_row, BLOCK)
            if LISTED:
                tl.store(lens_ptr + row, taken * PAGE - last * missing)

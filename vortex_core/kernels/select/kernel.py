"""Triton code of page selection: how many pages a row takes, which, and their compaction into a list.

`LIMIT` says what ends a choice besides its budget, `MARKS` what becomes of it: a list, or marks on the row's logical
pages, which a later selection of the same row adds to and the last one turns into a list (a union).
"""

from __future__ import annotations

import triton
import triton.language as tl

from vortex_core.kernels.dependent import await_previous
from vortex_core.kernels.select.search import (
    KEY_NONE,
    LOG2_E,
    count_from,
    in_rows,
    load_keys,
    narrow_by_mass,
    narrow_by_mass_in_memory,
    narrow_in_memory,
    narrow_in_registers,
    order_key,
    top_score,
    weigh,
)

EVERYTHING = tl.constexpr(1 << 23)  # `ir.crossover.EVERYTHING`

BY_COUNT = tl.constexpr(0)
BY_THRESHOLD = tl.constexpr(1)
BY_MASS = tl.constexpr(2)

NO_MARKS = tl.constexpr(0)  # straight to a list
LIST_MARKS = tl.constexpr(1)  # what is marked and what is chosen here, as a list
BEGIN_MARKS = tl.constexpr(2)  # from here on no list is written
ADD_MARKS = tl.constexpr(3)


@triton.jit
def first_rank(seed, row, n_pages, inside, resolved):
    """Where in an unresolved bin the stochastic choice begins; a bin of equal scores keeps page order."""
    draw = tl.randint(seed, row * 65536 + n_pages).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.where(resolved, 0, draw % inside)


@triton.jit
def place(key, valid, low, high, above_base, inside_base, need, inside_count, start):
    """Which items of a block are chosen, and their positions in the output, in item order.

    Chosen are all keys above the bin and `need` of those inside it: in item order, the `need` that begin at
    rank `start` and wrap around. Returns take, position and the running counts above and inside.
    """
    over = valid & (key > high)
    inside = valid & (key >= low) & (key <= high)
    votes = over.to(tl.int32) + (inside.to(tl.int32) << 16)
    ranks = tl.cumsum(votes, 0)
    over_before = above_base + (ranks & 0xFFFF) - over.to(tl.int32)
    rank = inside_base + (ranks >> 16) - inside.to(tl.int32)
    turned = rank - start
    turned = tl.where(turned < 0, turned + inside_count, turned)
    take = over | (inside & (turned < need))
    # Ranks taken before `rank`: a piece wrapped to the front, and the piece from `start`.
    front = tl.maximum(start + need - inside_count, 0)
    inside_before = tl.minimum(rank, front) + tl.minimum(tl.maximum(rank - start, 0), need - front)
    total = tl.sum(votes)
    return take, over_before + inside_before, above_base + (total & 0xFFFF), inside_base + (total >> 16)


@triton.jit
def list_marked(marks_row, n_pages, capacity, table_row, out_row, BLOCK: tl.constexpr):
    """The marked pages of a row as a list of at most `capacity`. Returns their number and whether the last is there."""
    count = 0
    last = 0
    for base in range(0, n_pages, BLOCK):
        page = base + tl.arange(0, BLOCK)
        take = tl.load(marks_row + page, mask=page < n_pages, other=0) != 0
        position = count + tl.cumsum(take.to(tl.int32), 0) - 1
        take = take & (position < capacity)
        tl.store(out_row + position, tl.load(table_row + page, mask=take, other=0), mask=take)
        count += tl.sum(take.to(tl.int32))
        last += tl.sum((take & (page == n_pages - 1)).to(tl.int32))
    return count, last


@triton.jit
def choose(
    keys, source, pages_ptr, first, end, kept, k, enough, at_key, top, wanted, n_pages, keep_first, keep_last,
    seed, row, table_row, out_row, out_keys_row, marks_row, capacity,
    ARE_KEYS: tl.constexpr, TO_CANDIDATES: tl.constexpr, BLOCK: tl.constexpr, LAST_SHIFT: tl.constexpr,
    STOCHASTIC: tl.constexpr, LIMIT: tl.constexpr, MARKS: tl.constexpr,
):  # fmt: skip
    """Chooses at most k of the at most BLOCK items [first, end) of `source`, whose keys `keys` holds in any order.

    Items are pages with their scores, or candidates (ARE_KEYS) whose pages `pages_ptr` gives. Chosen items go
    to `out_row`: as logical pages beside their keys (TO_CANDIDATES), or as physical pages; or to `marks_row`.
    Returns the length of the list, and whether the row's last page is in it (of candidates only marked: neither).
    """
    item = first + tl.arange(0, BLOCK)
    LISTED: tl.constexpr = MARKS == NO_MARKS or (MARKS == LIST_MARKS and not ARE_KEYS)
    EARLY: tl.constexpr = LISTED and not (ARE_KEYS or TO_CANDIDATES) and BLOCK <= 4096  # while registers last
    if EARLY:
        physical = tl.load(table_row + item, mask=item < end, other=0)  # on its way during the search
    start = 0
    if LIMIT == BY_MASS:
        low, high, above, inside, k = narrow_by_mass(keys, end - first, kept, k, top, wanted, LAST_SHIFT)
    else:
        if LIMIT == BY_THRESHOLD:
            reached, _, _ = count_from(keys, at_key, at_key, at_key)
            k = tl.minimum(k, reached)  # always-kept pages reach any threshold
            enough = k
        low, high, above, inside, resolved = narrow_in_registers(keys, end - first, k, enough, LAST_SHIFT)
        if STOCHASTIC:
            start = first_rank(seed, row, n_pages, inside, resolved)
    # Read again, one item a lane: the order of the search's registers does not suit a running count.
    key = load_keys(source, item, end, n_pages, keep_first, keep_last, ARE_KEYS)
    take, position, _, _ = place(key, item < end, low, high, 0, 0, k - above, inside, start)
    if ARE_KEYS:
        page = tl.load(pages_ptr + item, mask=take, other=0)
    else:
        page = item
    if not LISTED:
        if ARE_KEYS:
            tl.store(marks_row + page, tl.full([BLOCK], 1, tl.uint8), mask=take)
        else:
            if MARKS == ADD_MARKS:
                take = take | (tl.load(marks_row + item, mask=item < end, other=0) != 0)
            tl.store(marks_row + item, take.to(tl.uint8), mask=item < end)
    else:
        if MARKS == LIST_MARKS:
            take = take | (tl.load(marks_row + item, mask=item < end, other=0) != 0)
            position = tl.cumsum(take.to(tl.int32), 0) - 1
            take = take & (position < capacity)
            k = tl.sum(take.to(tl.int32))
        if TO_CANDIDATES:
            tl.store(out_row + position, page, mask=take)
            tl.store(out_keys_row + position, key, mask=take)
        else:
            if not EARLY:
                physical = tl.load(table_row + page, mask=take, other=0)
            tl.store(out_row + position, physical, mask=take)
    return k, tl.sum((take & (page == n_pages - 1)).to(tl.int32))


@triton.jit
def choose_whole(
    scores, scores_row, kept, k, enough, at_key, share, n_pages, keep_first, keep_last, seed, row,
    table_row, out_row, marks_row, capacity,
    BLOCK: tl.constexpr, LOADED: tl.constexpr, LAST_SHIFT: tl.constexpr, STOCHASTIC: tl.constexpr,
    LIMIT: tl.constexpr, MARKS: tl.constexpr,
):  # fmt: skip
    """`choose` of all pages of a row of at most BLOCK. `scores`: theirs, where they are LOADED already."""
    page = in_rows(BLOCK)
    if LOADED:
        keys = order_key(scores, page, n_pages, keep_first, keep_last)
    else:
        keys = load_keys(scores_row, page, n_pages, n_pages, keep_first, keep_last, False)
    top = 0.0
    wanted = 0.0
    if LIMIT == BY_MASS:
        top = top_score(keys)
        wanted = share * tl.sum(tl.sum(weigh(keys, top), 1), 0)
    count, last = choose(
        keys, scores_row, table_row,
        0, n_pages, kept, k, enough, at_key, top, wanted, n_pages, keep_first, keep_last, seed, row,
        table_row, out_row, out_row, marks_row, capacity,
        False, False, BLOCK, LAST_SHIFT, STOCHASTIC, LIMIT, MARKS,
    )  # fmt: skip
    return count, last


@triton.jit
def choose_in_memory(
    keys_ptr, pages_ptr, count, kept, k, enough, at_key, top, wanted, n_pages, seed, row, table_row, out_row, marks_row,
    BLOCK: tl.constexpr, LAST_SHIFT: tl.constexpr, STOCHASTIC: tl.constexpr, LIMIT: tl.constexpr,
    MARKS: tl.constexpr,
):  # fmt: skip
    """As `choose`, over any number of candidates."""
    start = 0
    if LIMIT == BY_MASS:
        low, high, above, inside, k = narrow_by_mass_in_memory(
            keys_ptr, count, kept, k, top, wanted, BLOCK, LAST_SHIFT
        )
    else:
        if LIMIT == BY_THRESHOLD:
            reached = 0
            for base in range(0, count, BLOCK):
                item = base + tl.arange(0, BLOCK)
                key = tl.load(keys_ptr + item, mask=item < count, other=KEY_NONE)
                reached += tl.sum((key >= at_key).to(tl.int32))
            k = tl.minimum(k, reached)
            enough = k
        low, high, above, inside, resolved = narrow_in_memory(keys_ptr, count, k, enough, BLOCK, LAST_SHIFT)
        if STOCHASTIC:
            start = first_rank(seed, row, n_pages, inside, resolved)
    above_base = 0
    inside_base = 0
    last_taken = 0
    for base in range(0, count, BLOCK):
        item = base + tl.arange(0, BLOCK)
        key = tl.load(keys_ptr + item, mask=item < count, other=KEY_NONE)
        take, position, above_base, inside_base = place(
            key, item < count, low, high, above_base, inside_base, k - above, inside, start
        )
        page = tl.load(pages_ptr + item, mask=take, other=0)
        if MARKS == NO_MARKS:
            tl.store(out_row + position, tl.load(table_row + page, mask=take, other=0), mask=take)
        else:
            tl.store(marks_row + page, tl.full([BLOCK], 1, tl.uint8), mask=take)
        last_taken += tl.sum((take & (page == n_pages - 1)).to(tl.int32))
    return k, last_taken


@triton.jit(
    do_not_specialize=[
        "stride_budget_b", "stride_budget_h", "stride_table_b", "stride_out", "stride_marks", "capacity",
        "list_capacity", "keep_first", "keep_last", "parts", "at_key", "seed",
    ]
)  # fmt: skip
def select_kernel(
    scores_ptr, n_tokens_ptr, budget_ptr, table_ptr, out_ptr, lens_ptr,
    candidate_keys_ptr, candidate_pages_ptr, masses_ptr, finished_ptr, marks_ptr,
    stride_scores, stride_budget_b, stride_budget_h, stride_table_b, stride_out, stride_candidates, stride_marks,
    max_pages, capacity, list_capacity, keep_first, keep_last, parts, at_key, share, keep_share, seed,
    HEADS: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr, SEGMENTS: tl.constexpr,
    FINAL_BLOCK: tl.constexpr, TIERS: tl.constexpr, LAST_SHIFT: tl.constexpr,
    STOCHASTIC: tl.constexpr, LIMIT: tl.constexpr, MARKS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (rows, SEGMENTS): one row's pages, straight to physical ids in ascending logical order.

    A row longer than BLOCK is cut into segments. Each keeps its own best k, and the one that finishes last
    chooses among those: the best k of a row are among the best k of its segments, and in the same order.
    parts: ten-thousandths of the budget, beyond the kept pages, that may be used. at_key: key of the threshold.
    share: of the row's softmax weight. capacity: most pages chosen here; list_capacity: of a list.
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
    k = tl.minimum(kept + (room * parts + 9999) // 10000, capacity)
    k = tl.where(whole, EVERYTHING, k)
    table_row = table_ptr + b.to(tl.int64) * stride_table_b
    out_row = out_ptr + row.to(tl.int64) * stride_out
    marks_row = marks_ptr
    if MARKS != NO_MARKS:
        marks_row = marks_ptr + row.to(tl.int64) * stride_marks
    end = tl.minimum(first + BLOCK, n_pages)
    enough = k
    if STOCHASTIC:
        enough = tl.ceil(k.to(tl.float32) * keep_share).to(tl.int32)
    missing = n_pages * PAGE - n_tokens
    top = 0.0
    wanted = 0.0
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
                        table_row, out_row, marks_row, list_capacity,
                        BLOCK >> (TIERS - 1 - tier), tier == TIERS - 1, LAST_SHIFT, STOCHASTIC,
                        LIMIT, MARKS,
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
        choose(
            keys, scores_row, table_row,
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

"""Triton code of page selection: which pages of a row are chosen, and their compaction into a list or into marks.

`LIMIT` says what ends a choice besides its budget, `MARKS` what becomes of it: a list, or marks on the row's logical
pages, which a later selection of the same row adds to and the last one turns into a list (a union).
"""

from __future__ import annotations

import triton
import triton.language as tl

from vortex_core.kernels.select.search import (
    KEY_LOWEST,
    KEY_NONE,
    count_from,
    in_rows,
    load_keys,
    narrow_by_mass,
    narrow_by_mass_in_memory,
    narrow_in_memory,
    narrow_in_registers,
    order_key,
    sift,
    top_score,
    weigh,
)

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
def choose_sifted(
    keys, source, pages_ptr, first, end, kept, k, at_key, top, wanted, n_pages, keep_first, keep_last, row, table_row,
    out_row, out_keys_row, marks_row, sifted_keys, sifted_pages, capacity,
    ARE_KEYS: tl.constexpr, TO_CANDIDATES: tl.constexpr, BLOCK: tl.constexpr, LAST_SHIFT: tl.constexpr,
    LIMIT: tl.constexpr, MARKS: tl.constexpr, SIFT: tl.constexpr,
):  # fmt: skip
    """`choose` of the few items that a bound leaves, if it leaves few enough.

    A limit ends a choice among the best k, and those are left. A search of few keys takes a fraction of the time of one
    that holds all. Items that reach the bound keep their order in scratch [SIFT]; k of them at most are chosen, or
    marked, and marks that begin with pages are cleared. Returns whether that was done, and what `choose` does (of items
    only marked: neither).
    """
    done = False
    count = k
    last = 0
    if k * 2 <= SIFT:
        low = tl.maximum(sift(keys, k, BLOCK, LAST_SHIFT), KEY_LOWEST)
        left = tl.sum(tl.sum((keys >= low).to(tl.int32), 1), 0)
        if (left <= SIFT) & (left >= k):
            passed = 0
            CHUNK: tl.constexpr = min(BLOCK, 4096)  # as many as leave registers for addresses
            for base in range(0, BLOCK, CHUNK):
                item = first + base + tl.arange(0, CHUNK)
                key = load_keys(source, item, end, n_pages, keep_first, keep_last, ARE_KEYS)
                reached = (key >= low) & (item < end)
                at = passed + tl.cumsum(reached.to(tl.int32), 0) - 1
                if ARE_KEYS:
                    page = tl.load(pages_ptr + item, mask=reached, other=0)
                else:
                    page = item
                tl.store(sifted_keys + at, key, mask=reached)
                tl.store(sifted_pages + at, page, mask=reached)
                if MARKS == BEGIN_MARKS and not ARE_KEYS:
                    tl.store(marks_row + item, tl.zeros([CHUNK], tl.uint8), mask=item < end)
                passed += tl.sum(reached.to(tl.int32))
            tl.debug_barrier()  # all threads' items come before their being read
            found = in_rows(SIFT)
            best = tl.load(sifted_keys + found, mask=found < left, other=KEY_NONE)
            count, last = choose(
                best, sifted_keys, sifted_pages,
                0, left, kept, k, k, at_key, top, wanted, n_pages, keep_first, keep_last, 0, row,
                table_row, out_row, out_keys_row, marks_row, capacity,
                True, TO_CANDIDATES, SIFT, LAST_SHIFT, False, LIMIT, MARKS,
            )  # fmt: skip
            done = True
    return done, count, last


@triton.jit
def choose_whole(
    scores, scores_row, kept, k, enough, at_key, share, n_pages, keep_first, keep_last, seed, row,
    table_row, out_row, marks_row, sifted_keys, sifted_pages, capacity,
    BLOCK: tl.constexpr, LOADED: tl.constexpr, LAST_SHIFT: tl.constexpr, STOCHASTIC: tl.constexpr,
    LIMIT: tl.constexpr, MARKS: tl.constexpr, SIFT: tl.constexpr,
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
    if SIFT > 0 and BLOCK >= 2048:
        done, count, last = choose_sifted(
            keys, scores_row, table_row, 0, n_pages, kept, k, at_key, top, wanted, n_pages, keep_first, keep_last, row,
            table_row, out_row, out_row, marks_row, sifted_keys, sifted_pages, capacity,
            False, False, BLOCK, LAST_SHIFT, LIMIT, MARKS, SIFT,
        )  # fmt: skip
        if MARKS == LIST_MARKS:  # noqa: SIM102  a test of its own: without marks there is nothing to compile
            if done:
                tl.debug_barrier()  # all threads' marks come before their being read
                count, last = list_marked(marks_row, n_pages, capacity, table_row, out_row, 2048)
        if not done:  # read again: registers for both searches are not there
            keys = load_keys(scores_row, page, n_pages, n_pages, keep_first, keep_last, False)
            count, last = choose(
                keys, scores_row, table_row,
                0, n_pages, kept, k, enough, at_key, top, wanted, n_pages, keep_first, keep_last, seed, row,
                table_row, out_row, out_row, marks_row, capacity,
                False, False, BLOCK, LAST_SHIFT, STOCHASTIC, LIMIT, MARKS,
            )  # fmt: skip
    else:
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

"""Triton code of page selection: order keys, the threshold search, and the compaction of the chosen pages."""

from __future__ import annotations

import triton
import triton.language as tl

from vortex_core.kernels.dependent import await_previous

KEY_ALWAYS = tl.constexpr(0x7FFFFFFF)  # above +inf: pages that are always kept
KEY_NAN = tl.constexpr(-0x7FFFFFFF)  # below -inf
KEY_NONE = tl.constexpr(-0x80000000)  # beyond the row: never chosen


@triton.jit
def order_key(scores, page, n_pages, keep_first, keep_last):
    """int32 keys whose signed order is the selection order of the scores."""
    scores = scores.to(tl.float32)
    bits = tl.where(scores == 0.0, 0.0, scores).to(tl.int32, bitcast=True)  # -0 and +0 are equal
    key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    key = tl.where(scores != scores, KEY_NAN, key)
    key = tl.where((page < keep_first) | (page >= n_pages - keep_last), KEY_ALWAYS, key)
    return tl.where(page < n_pages, key, KEY_NONE)


@triton.jit
def load_keys(source, item, end, n_pages, keep_first, keep_last, ARE_KEYS: tl.constexpr):
    """Keys of items of any shape: as stored, or made from the scores of pages. KEY_NONE from `end` on."""
    if ARE_KEYS:
        key = tl.load(source + item, mask=item < end, other=KEY_NONE)
    else:
        scores = tl.load(source + item, mask=item < end, other=0.0)
        key = tl.where(item < end, order_key(scores, item, n_pages, keep_first, keep_last), KEY_NONE)
    return key


@triton.jit
def narrow_in_registers(key, count, k, enough, LAST_SHIFT: tl.constexpr):
    """Finds the bin of keys that holds the k-th largest, two bits a step. key [N, <= 512], all in registers.

    Stops when the bin is one value, when it can be taken whole, or when at least `enough` keys lie above it.
    Returns the bin's edges (inclusive), the number of keys above it, the number in it, and whether the
    bin is a single value. The votes on three thresholds travel in one 64-bit sum, so a step costs one
    reduction over the block.
    """
    shift = 30
    low = -0x80000000
    high = 0x7FFFFFFF
    above = 0
    upto = count  # keys in or above the bin
    while (shift >= LAST_SHIFT) & (upto != k) & (above < enough):
        step = 1 << shift
        t1 = low + step
        t2 = t1 + step
        t3 = t2 + step
        # The keys of a row vote into ten-bit fields of one word: a warp adds up such words in one instruction.
        votes = (key >= t1).to(tl.int32) + ((key >= t2).to(tl.int32) << 10) + ((key >= t3).to(tl.int32) << 20)
        votes = tl.sum(votes, 1)
        wide = (votes & 0x3FF).to(tl.int64) + ((votes & 0xFFC00).to(tl.int64) << 11)
        packed = tl.sum(wide + ((votes >> 20).to(tl.int64) << 42))
        c1 = (packed & 0x1FFFFF).to(tl.int32)
        c2 = ((packed >> 21) & 0x1FFFFF).to(tl.int32)
        c3 = (packed >> 42).to(tl.int32)
        # The highest of the four sub-bins that still has k keys in or above it.
        in3 = c3 >= k
        in2 = c2 >= k
        in1 = c1 >= k
        low = tl.where(in3, t3, tl.where(in2, t2, tl.where(in1, t1, low)))
        above = tl.where(in3, above, tl.where(in2, c3, tl.where(in1, c2, c1)))
        upto = tl.where(in3, c3, tl.where(in2, c2, tl.where(in1, c1, upto)))
        high = low + (step - 1)
        shift -= 2
    return low, high, above, upto - above, shift < LAST_SHIFT


@triton.jit
def narrow_in_memory(keys_ptr, count, k, enough, BLOCK: tl.constexpr, LAST_SHIFT: tl.constexpr):
    """The same bin by eight-bit radix histograms over keys in memory, for lists longer than a block."""
    shift = 24
    low = -0x80000000
    high = 0x7FFFFFFF
    above = 0
    upto = count
    digit_index = tl.arange(0, 256)
    while (shift >= LAST_SHIFT) & (upto != k) & (above < enough):
        counts = tl.zeros([256], tl.int32)
        for base in range(0, count, BLOCK):
            item = base + tl.arange(0, BLOCK)
            key = tl.load(keys_ptr + item, mask=item < count, other=KEY_NONE)
            digit = ((key ^ -0x80000000) >> shift) & 255
            counts += tl.histogram(digit, 256, mask=(key >= low) & (key <= high) & (item < count))
        # reached[d]: keys above the bin or in its sub-bins d and up; falls with d.
        reached = upto - tl.cumsum(counts, 0) + counts
        digit = tl.sum((reached >= k).to(tl.int32)) - 1
        upto = tl.sum(tl.where(digit_index == digit, reached, 0))
        above = upto - tl.sum(tl.where(digit_index == digit, counts, 0))
        low = low + (digit << shift)
        high = low + ((1 << shift) - 1)
        shift -= 8
    return low, high, above, upto - above, shift < LAST_SHIFT


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
def in_rows(BLOCK: tl.constexpr):
    """Indices 0 .. BLOCK - 1 in rows that one warp holds each, for `narrow_in_registers`."""
    WIDTH: tl.constexpr = 128 if BLOCK >= 128 else BLOCK
    return tl.arange(0, BLOCK // WIDTH)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]


@triton.jit
def choose(
    keys, source, pages_ptr, first, end, k, enough, n_pages, keep_first, keep_last, seed, row,
    table_row, out_row, out_keys_row,
    ARE_KEYS: tl.constexpr, TO_CANDIDATES: tl.constexpr, BLOCK: tl.constexpr, LAST_SHIFT: tl.constexpr,
    STOCHASTIC: tl.constexpr,
):  # fmt: skip
    """Chooses k of the at most BLOCK items [first, end) of `source`, whose keys `keys` holds in any order.

    Items are pages with their scores, or candidates (ARE_KEYS) whose pages `pages_ptr` gives. Chosen items go
    to `out_row`: as logical pages beside their keys (TO_CANDIDATES), or as physical pages. Returns whether
    the row's last page was chosen.
    """
    item = first + tl.arange(0, BLOCK)
    EARLY: tl.constexpr = not (ARE_KEYS or TO_CANDIDATES) and BLOCK <= 4096  # while registers last
    if EARLY:
        physical = tl.load(table_row + item, mask=item < end, other=0)  # on its way during the search
    low, high, above, inside, resolved = narrow_in_registers(keys, end - first, k, enough, LAST_SHIFT)
    start = 0
    if STOCHASTIC:
        start = first_rank(seed, row, n_pages, inside, resolved)
    # Read again, one item a lane: the order of the search's registers does not suit a running count.
    key = load_keys(source, item, end, n_pages, keep_first, keep_last, ARE_KEYS)
    take, position, _, _ = place(key, item < end, low, high, 0, 0, k - above, inside, start)
    if ARE_KEYS:
        page = tl.load(pages_ptr + item, mask=take, other=0)
    else:
        page = item
    if TO_CANDIDATES:
        tl.store(out_row + position, page, mask=take)
        tl.store(out_keys_row + position, key, mask=take)
    else:
        if not EARLY:
            physical = tl.load(table_row + page, mask=take, other=0)
        tl.store(out_row + position, physical, mask=take)
    return tl.sum((take & (page == n_pages - 1)).to(tl.int32))


@triton.jit
def choose_in_memory(
    keys_ptr, pages_ptr, count, k, enough, n_pages, seed, row, table_row, out_row,
    BLOCK: tl.constexpr, LAST_SHIFT: tl.constexpr, STOCHASTIC: tl.constexpr,
):  # fmt: skip
    """As `choose`, over any number of candidates."""
    low, high, above, inside, resolved = narrow_in_memory(keys_ptr, count, k, enough, BLOCK, LAST_SHIFT)
    start = 0
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
        tl.store(out_row + position, tl.load(table_row + page, mask=take, other=0), mask=take)
        last_taken += tl.sum((take & (page == n_pages - 1)).to(tl.int32))
    return last_taken


@triton.jit(
    do_not_specialize=[
        "stride_budget_b", "stride_budget_h", "stride_table_b", "stride_out", "capacity", "keep_first",
        "keep_last", "seed",
    ]
)  # fmt: skip
def select_kernel(
    scores_ptr, n_tokens_ptr, budget_ptr, table_ptr, out_ptr, lens_ptr,
    candidate_keys_ptr, candidate_pages_ptr, finished_ptr,
    stride_scores, stride_budget_b, stride_budget_h, stride_table_b, stride_out, stride_candidates,
    max_pages, capacity, keep_first, keep_last, keep_share, seed,
    HEADS: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr, SEGMENTS: tl.constexpr,
    FINAL_BLOCK: tl.constexpr, LAST_SHIFT: tl.constexpr, STOCHASTIC: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (rows, SEGMENTS): one row's pages, straight to physical ids in ascending logical order.

    A row longer than BLOCK is cut into segments. Each keeps its own best k, and the one that finishes last
    chooses among those: the best k of a row are among the best k of its segments, and in the same order.
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
    k = tl.minimum(tl.maximum(k, keep_first + keep_last), tl.minimum(capacity, n_pages))
    table_row = table_ptr + b.to(tl.int64) * stride_table_b
    out_row = out_ptr + row.to(tl.int64) * stride_out
    end = tl.minimum(first + BLOCK, n_pages)
    enough = k
    if STOCHASTIC:
        enough = tl.ceil(k.to(tl.float32) * keep_share).to(tl.int32)
    missing = n_pages * PAGE - n_tokens
    if k <= 0:
        if segment == 0:
            tl.store(lens_ptr + row, 0)
    elif k >= n_pages:
        # Inside its budget: everything, without looking at a score.
        item = first + tl.arange(0, BLOCK)
        tl.store(out_row + item, tl.load(table_row + item, mask=item < end, other=0), mask=item < end)
        if segment == 0:
            tl.store(lens_ptr + row, n_tokens)
    elif (SEGMENTS == 1) or (n_pages <= BLOCK):
        if segment == 0:
            last = choose(
                order_key(scores, page, n_pages, keep_first, keep_last), scores_row, table_row,
                0, n_pages, k, enough, n_pages, keep_first, keep_last, seed, row,
                table_row, out_row, out_row, False, False, BLOCK, LAST_SHIFT, STOCHASTIC,
            )  # fmt: skip
            tl.store(lens_ptr + row, k * PAGE - last * missing)
    elif first < n_pages:
        keys_row = candidate_keys_ptr + row.to(tl.int64) * stride_candidates
        pages_row = candidate_pages_ptr + row.to(tl.int64) * stride_candidates
        each = tl.minimum(k, BLOCK)  # candidates of a full segment
        here = tl.minimum(k, end - first)
        at = segment * each
        keys = order_key(scores, page, n_pages, keep_first, keep_last)
        choose(
            keys, scores_row, table_row, first, end, here, here, n_pages, keep_first, keep_last, seed, row,
            table_row, pages_row + at, keys_row + at, False, True, BLOCK, LAST_SHIFT, False,
        )  # fmt: skip
        segments = (n_pages + BLOCK - 1) // BLOCK
        # All threads' candidates come before the count, and the count before the last one's loads.
        tl.debug_barrier()
        if tl.atomic_add(finished_ptr + row, 1, sem="acq_rel") == segments - 1:
            tl.store(finished_ptr + row, 0)
            count = (segments - 1) * each + tl.minimum(k, n_pages - (segments - 1) * BLOCK)
            if count <= FINAL_BLOCK:
                found = in_rows(FINAL_BLOCK)
                best = tl.load(keys_row + found, mask=found < count, other=KEY_NONE)
                last = choose(
                    best, keys_row, pages_row,
                    0, count, k, enough, n_pages, keep_first, keep_last, seed, row,
                    table_row, out_row, out_row, True, False, FINAL_BLOCK, LAST_SHIFT, STOCHASTIC,
                )  # fmt: skip
            else:
                last = choose_in_memory(
                    keys_row, pages_row, count, k, enough, n_pages, seed, row, table_row, out_row,
                    FINAL_BLOCK, LAST_SHIFT, STOCHASTIC,
                )  # fmt: skip
            tl.store(lens_ptr + row, k * PAGE - last * missing)

"""Triton code of page selection: order keys, the threshold search, and the compaction of the chosen pages."""

from __future__ import annotations

import triton
import triton.language as tl

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
def load_keys(scores_row, base, n_pages, keep_first, keep_last, BLOCK: tl.constexpr):
    """Keys of pages [base, base + BLOCK) of a row."""
    page = base + tl.arange(0, BLOCK)
    scores = tl.load(scores_row + page, mask=page < n_pages, other=0.0)
    return order_key(scores, page, n_pages, keep_first, keep_last)


@triton.jit
def narrow_in_registers(key, n_pages, k, enough, LAST_SHIFT: tl.constexpr):
    """Finds the bin of keys that holds the k-th largest, two bits a step, with all keys in registers.

    Stops when the bin is one value, when it can be taken whole, or when at least `enough` keys lie above it.
    Returns the bin's edges (inclusive), the number of keys above it, the number in it, and whether the
    bin is a single value. The votes on three
    thresholds travel in one 64-bit sum, so a step costs one reduction over the block.
    """
    shift = 30
    low = -0x80000000
    high = 0x7FFFFFFF
    above = 0
    upto = n_pages  # keys in or above the bin
    while (shift >= LAST_SHIFT) & (upto != k) & (above < enough):
        step = 1 << shift
        t1 = low + step
        t2 = t1 + step
        t3 = t2 + step
        # Eight keys vote into ten-bit fields of one word before the wide sum.
        votes = (key >= t1).to(tl.int32) + ((key >= t2).to(tl.int32) << 10) + ((key >= t3).to(tl.int32) << 20)
        votes = tl.sum(tl.reshape(votes, [key.shape[0] // 8, 8]), 1)
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
def narrow_in_memory(
    scores_row, n_pages, keep_first, keep_last, k, enough, BLOCK: tl.constexpr, LAST_SHIFT: tl.constexpr
):
    """The same bin by eight-bit radix histograms, for rows longer than a block; one reading a digit."""
    shift = 24
    low = -0x80000000
    high = 0x7FFFFFFF
    above = 0
    upto = n_pages
    digit_index = tl.arange(0, 256)
    while (shift >= LAST_SHIFT) & (upto != k) & (above < enough):
        counts = tl.zeros([256], tl.int32)
        for base in range(0, n_pages, BLOCK):
            key = load_keys(scores_row, base, n_pages, keep_first, keep_last, BLOCK)
            inside = (key >= low) & (key <= high) & (base + tl.arange(0, BLOCK) < n_pages)
            digit = ((key ^ -0x80000000) >> shift) & 255
            counts += tl.histogram(digit, 256, mask=inside)
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
def emit_block(
    key, base, n_pages, low, high, above_base, inside_base, need, inside_count, start, table_row, out_row,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes a block's chosen pages in ascending order: all above the bin, and `need` of those inside.

    Inside the bin, in page order, the `need` taken begin at rank `start` and wrap around. Returns the running
    counts above and inside, and whether the row's last page was taken.
    """
    page = base + tl.arange(0, BLOCK)
    valid = page < n_pages
    over = valid & (key > high)
    inside = valid & (key >= low) & (key <= high)
    ranks = tl.cumsum(over.to(tl.int32) + (inside.to(tl.int32) << 16), 0)
    over_before = above_base + (ranks & 0xFFFF) - over.to(tl.int32)
    rank = inside_base + (ranks >> 16) - inside.to(tl.int32)
    turned = rank - start
    turned = tl.where(turned < 0, turned + inside_count, turned)
    take = over | (inside & (turned < need))
    # Ranks taken before `rank`: a piece wrapped to the front, and the piece from `start`.
    front = tl.maximum(start + need - inside_count, 0)
    inside_before = tl.minimum(rank, front) + tl.minimum(tl.maximum(rank - start, 0), need - front)
    physical = tl.load(table_row + page, mask=take, other=0)
    tl.store(out_row + over_before + inside_before, physical, mask=take)
    total_over = tl.sum(over.to(tl.int32) + (inside.to(tl.int32) << 16))
    last_taken = tl.sum((take & (page == n_pages - 1)).to(tl.int32))
    return above_base + (total_over & 0xFFFF), inside_base + (total_over >> 16), last_taken


@triton.jit(
    do_not_specialize=[
        "stride_budget_b", "stride_budget_h", "stride_table_b", "stride_out", "capacity", "keep_first",
        "keep_last", "seed",
    ]
)  # fmt: skip
def select_kernel(
    scores_ptr, n_tokens_ptr, budget_ptr, table_ptr, out_ptr, lens_ptr,
    stride_scores, stride_budget_b, stride_budget_h, stride_table_b, stride_out,
    capacity, keep_first, keep_last, keep_share, seed,
    HEADS: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr, LONG_ROWS: tl.constexpr,
    LAST_SHIFT: tl.constexpr, STOCHASTIC: tl.constexpr,
):  # fmt: skip
    """Grid (rows,): one row's pages, straight to physical ids in ascending logical order."""
    row = tl.program_id(0)
    b = row // HEADS
    n_tokens = tl.load(n_tokens_ptr + b)
    n_pages = (n_tokens + PAGE - 1) // PAGE
    k = tl.load(budget_ptr + b * stride_budget_b + (row % HEADS) * stride_budget_h)
    k = tl.minimum(tl.maximum(k, keep_first + keep_last), tl.minimum(capacity, n_pages))
    scores_row = scores_ptr + row.to(tl.int64) * stride_scores
    table_row = table_ptr + b.to(tl.int64) * stride_table_b
    out_row = out_ptr + row.to(tl.int64) * stride_out
    if k <= 0:
        tl.store(lens_ptr + row, 0)
    elif k >= n_pages:
        # Inside its budget: everything, without looking at a score.
        for base in range(0, n_pages, BLOCK):
            page = base + tl.arange(0, BLOCK)
            physical = tl.load(table_row + page, mask=page < n_pages, other=0)
            tl.store(out_row + page, physical, mask=page < n_pages)
        tl.store(lens_ptr + row, n_tokens)
    else:
        if STOCHASTIC:
            enough = tl.ceil(k.to(tl.float32) * keep_share).to(tl.int32)
        else:
            enough = k
        last_taken = 0
        if (not LONG_ROWS) or (n_pages <= BLOCK):
            key = load_keys(scores_row, 0, n_pages, keep_first, keep_last, BLOCK)
            low, high, above, inside, resolved = narrow_in_registers(key, n_pages, k, enough, LAST_SHIFT)
            start = 0
            if STOCHASTIC:
                start = first_rank(seed, row, n_pages, inside, resolved)
            _, _, last_taken = emit_block(
                key, 0, n_pages, low, high, 0, 0, k - above, inside, start, table_row, out_row, BLOCK
            )
        else:
            low, high, above, inside, resolved = narrow_in_memory(
                scores_row, n_pages, keep_first, keep_last, k, enough, BLOCK, LAST_SHIFT
            )
            start = 0
            if STOCHASTIC:
                start = first_rank(seed, row, n_pages, inside, resolved)
            above_base = 0
            inside_base = 0
            for base in range(0, n_pages, BLOCK):
                key = load_keys(scores_row, base, n_pages, keep_first, keep_last, BLOCK)
                above_base, inside_base, taken = emit_block(
                    key, base, n_pages, low, high, above_base, inside_base, k - above, inside, start,
                    table_row, out_row, BLOCK,
                )  # fmt: skip
                last_taken += taken
        tl.store(lens_ptr + row, k * PAGE - last_taken * (n_pages * PAGE - n_tokens))

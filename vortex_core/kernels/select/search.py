"""Triton code of the search in page selection: order keys, and the bin of keys in which the choice ends.

A key is an int32 whose signed order is the selection order, and holds all of its score. A search narrows a bin of
keys until it holds the last page to take: the k-th largest (`narrow`), or the one with which a share of the row's
softmax weight is reached, but the k-th at most (`narrow_by_mass`).
"""

from __future__ import annotations

import triton
import triton.language as tl

KEY_ALWAYS = tl.constexpr(0x7FFFFFFF)  # above +inf: pages that are always kept
KEY_LOWEST = tl.constexpr(-0x7F800001)  # of -inf, and of NaN, which ranks with it
KEY_NONE = tl.constexpr(-0x80000000)  # beyond the row: never chosen
LARGEST = tl.constexpr(3.4028234663852886e38)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def order_key(scores, page, n_pages, keep_first, keep_last):
    """int32 keys whose signed order is the selection order of the scores."""
    scores = scores.to(tl.float32)
    bits = tl.where(scores == 0.0, 0.0, scores).to(tl.int32, bitcast=True)  # -0 and +0 are equal
    key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    key = tl.where(scores != scores, KEY_LOWEST, key)
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
def in_rows(BLOCK: tl.constexpr):
    """Indices 0 .. BLOCK - 1 in rows that one warp holds each, for searches in registers."""
    WIDTH: tl.constexpr = 128 if BLOCK >= 128 else BLOCK
    return tl.arange(0, BLOCK // WIDTH)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]


@triton.jit
def count_from(key, t1, t2, t3):
    """How many of the keys [N, <= 512] reach each of three thresholds, in one reduction over the block."""
    # The keys of a row vote into ten-bit fields of one word: a warp adds up such words in one instruction.
    votes = (key >= t1).to(tl.int32) + ((key >= t2).to(tl.int32) << 10) + ((key >= t3).to(tl.int32) << 20)
    votes = tl.sum(votes, 1)
    wide = (votes & 0x3FF).to(tl.int64) + ((votes & 0xFFC00).to(tl.int64) << 11)
    packed = tl.sum(wide + ((votes >> 20).to(tl.int64) << 42))
    return (
        (packed & 0x1FFFFF).to(tl.int32),
        ((packed >> 21) & 0x1FFFFF).to(tl.int32),
        (packed >> 42).to(tl.int32),
    )


@triton.jit
def narrow_in_registers(key, count, k, enough, LAST_SHIFT: tl.constexpr):
    """Finds the bin of keys that holds the k-th largest, two bits a step. key [N, <= 512], all in registers.

    Stops when the bin is one value, when it can be taken whole, or when at least `enough` keys lie above it.
    Returns the bin's edges (inclusive), the number of keys above it, the number in it, and whether the
    bin is a single value.
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
        c1, c2, c3 = count_from(key, t1, t2, t3)
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
def sift(key, k, BLOCK: tl.constexpr, LAST_SHIFT: tl.constexpr):
    """A key that at least k of the keys [BLOCK / 128, 128] reach, and few more do. k: of 512 groups, at most.

    The keys are cut into 512 groups that a thread holds each, and the bound is the k-th largest of the groups' largest,
    or a little less: at least k groups have a key that reaches it. Of random keys about k / (1 - k / 1024) do.
    """
    FOLD: tl.constexpr = BLOCK // 2048
    tops = tl.max(tl.max(tl.reshape(key, [FOLD, 16, 32, 4]), 3), 0)
    shift = 30
    low = -0x80000000
    upto = 512
    most = k + k // 8
    while (shift >= LAST_SHIFT) & (upto > most):
        step = 1 << shift
        t1 = low + step
        t2 = t1 + step
        t3 = t2 + step
        c1, c2, c3 = count_from(tops, t1, t2, t3)
        in3 = c3 >= k
        in2 = c2 >= k
        in1 = c1 >= k
        low = tl.where(in3, t3, tl.where(in2, t2, tl.where(in1, t1, low)))
        upto = tl.where(in3, c3, tl.where(in2, c2, tl.where(in1, c1, upto)))
        shift -= 2
    return low


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
def weigh(key, top):
    """exp(score - top) of candidates; always-kept pages and those beyond the row weigh nothing.

    Infinite scores count as the largest finite ones, NaN as the lowest.
    """
    bits = tl.where(key < 0, key ^ 0x7FFFFFFF, key)
    score = tl.minimum(tl.maximum(bits.to(tl.float32, bitcast=True), -LARGEST), LARGEST)
    weight = tl.exp2((score - top) * LOG2_E)
    return tl.where((key > KEY_NONE) & (key < KEY_ALWAYS), weight, 0.0)


@triton.jit
def top_score(key):
    """The highest score among candidates, finite; the lowest number if there is none. key [N, M]."""
    best = tl.max(tl.max(tl.where(key == KEY_ALWAYS, KEY_LOWEST, key), 1), 0)
    best = tl.maximum(best, KEY_LOWEST)
    bits = tl.where(best < 0, best ^ 0x7FFFFFFF, best)
    return tl.minimum(tl.maximum(bits.to(tl.float32, bitcast=True), -LARGEST), LARGEST)


@triton.jit
def mass_sums(key, weights, t1, t2, t3):
    """Weight of the keys [N, M] from each of three thresholds up."""
    # Sums of more numbers that are not negative, in one order, are never less: so the three fall as they should.
    m1 = tl.sum(tl.sum(tl.where(key >= t1, weights, 0.0), 1), 0)
    m2 = tl.sum(tl.sum(tl.where(key >= t2, weights, 0.0), 1), 0)
    m3 = tl.sum(tl.sum(tl.where(key >= t3, weights, 0.0), 1), 0)
    return m1, m2, m3


@triton.jit
def descend_by_mass(low, above, upto, mass_above, t1, t2, t3, c1, c2, c3, m1, m2, m3, k, wanted):
    """The highest of four sub-bins with which k keys, or the wanted weight, are reached."""
    in3 = (c3 >= k) | (m3 >= wanted)
    in2 = (c2 >= k) | (m2 >= wanted)
    in1 = (c1 >= k) | (m1 >= wanted)
    low = tl.where(in3, t3, tl.where(in2, t2, tl.where(in1, t1, low)))
    above = tl.where(in3, above, tl.where(in2, c3, tl.where(in1, c2, c1)))
    upto = tl.where(in3, c3, tl.where(in2, c2, tl.where(in1, c1, upto)))
    mass_above = tl.where(in3, mass_above, tl.where(in2, m3, tl.where(in1, m2, m1)))
    return low, above, upto, mass_above


@triton.jit
def needed(above, inside, mass_above, each, kept, k, wanted):
    """Pages to take when the bin's `inside` keys weigh `each`: at least the kept ones, at most k."""
    extra = tl.ceil((wanted - mass_above) / tl.where(each > 0.0, each, 1.0))
    most = inside.to(tl.float32)
    extra = tl.where(each > 0.0, tl.minimum(tl.maximum(extra, 1.0), most), most)
    extra = tl.where(wanted > mass_above, extra, 0.0).to(tl.int32)
    return tl.maximum(kept, tl.minimum(k, above + extra))


@triton.jit
def narrow_by_mass(key, count, kept, k, top, wanted, LAST_SHIFT: tl.constexpr):
    """Finds the bin with which the weight of the keys [N, <= 512] from it up reaches `wanted`, or their number k.

    Of equal keys as many are taken as the weight needs. Returns the bin's edges (inclusive), the keys above it,
    those in it, and how many to take in all.
    """
    weights = weigh(key, top)
    shift = 30
    low = -0x80000000
    high = 0x7FFFFFFF
    above = 0
    upto = count
    mass_above = 0.0
    while (shift >= LAST_SHIFT) & (upto - above > 1):
        step = 1 << shift
        t1 = low + step
        t2 = t1 + step
        t3 = t2 + step
        c1, c2, c3 = count_from(key, t1, t2, t3)
        m1, m2, m3 = mass_sums(key, weights, t1, t2, t3)
        low, above, upto, mass_above = descend_by_mass(
            low, above, upto, mass_above, t1, t2, t3, c1, c2, c3, m1, m2, m3, k, wanted
        )
        high = low + (step - 1)
        shift -= 2
    inside = upto - above
    each = tl.max(tl.max(tl.where((key >= low) & (key <= high), weights, 0.0), 1), 0)
    return low, high, above, inside, needed(above, inside, mass_above, each, kept, k, wanted)


@triton.jit
def narrow_by_mass_in_memory(
    keys_ptr, count, kept, k, top, wanted, BLOCK: tl.constexpr, LAST_SHIFT: tl.constexpr
):
    """The same bin over keys in memory, for lists longer than a block."""
    shift = 30
    low = -0x80000000
    high = 0x7FFFFFFF
    above = 0
    upto = count
    mass_above = 0.0
    while (shift >= LAST_SHIFT) & (upto - above > 1):
        step = 1 << shift
        t1 = low + step
        t2 = t1 + step
        t3 = t2 + step
        c1 = 0
        c2 = 0
        c3 = 0
        m1 = 0.0
        m2 = 0.0
        m3 = 0.0
        for base in range(0, count, BLOCK):
            item = base + in_rows(BLOCK)
            key = tl.load(keys_ptr + item, mask=item < count, other=KEY_NONE)
            n1, n2, n3 = count_from(key, t1, t2, t3)
            w1, w2, w3 = mass_sums(key, weigh(key, top), t1, t2, t3)
            c1 += n1
            c2 += n2
            c3 += n3
            m1 += w1
            m2 += w2
            m3 += w3
        low, above, upto, mass_above = descend_by_mass(
            low, above, upto, mass_above, t1, t2, t3, c1, c2, c3, m1, m2, m3, k, wanted
        )
        high = low + (step - 1)
        shift -= 2
    each = 0.0
    for base in range(0, count, BLOCK):
        item = base + in_rows(BLOCK)
        key = tl.load(keys_ptr + item, mask=item < count, other=KEY_NONE)
        within = (key >= low) & (key <= high)
        each = tl.maximum(each, tl.max(tl.max(tl.where(within, weigh(key, top), 0.0), 1), 0))
    inside = upto - above
    return low, high, above, inside, needed(above, inside, mass_above, each, kept, k, wanted)

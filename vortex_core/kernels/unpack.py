"""Packed integers to operands of matrix products, in registers.

A *unit* is 8, 16 or 32 bits of one row. Two numbers of it at a time are moved into the two halves of a 32-bit word and
given the exponent of a bf16 number by one logical operation: 128 + n has the bits 0x4300 + n, and a sign is the top bit
of 1.0. That is about two instructions for two numbers, where extracting, converting and packing each takes ten. Numbers
come out in the order (unit, half, pair bits from the lowest), which `compiler.triton.packing` turns into channels.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def halves(w, UNIT: tl.constexpr):
    """The lower half of a unit's numbers in the lower 16 bits of a word, the upper half in the upper."""
    w = w.to(tl.int32)
    if UNIT == 16:
        w = w & 0xFFFF
        w = (w | (w << 8)) & 0x00FF00FF
    if UNIT == 8:
        w = w & 0xFF
        w = (w | (w << 12)) & 0x000F000F
    return w


@triton.jit
def nibbles(x):
    """128 and the lowest four bits of both halves, as the bits of two bf16 numbers. Compilers take two instructions."""
    return tl.inline_asm_elementwise(
        "lop3.b32 $0, $1, 0x000F000F, 0x43004300, 0xEA;", "=r,r", [x], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def signed(x, word):
    """The bf16 numbers in both halves of `word`, the sign turned where the top bit of that half of `x` is set."""
    return tl.inline_asm_elementwise(
        "lop3.b32 $0, $1, 0x80008000, $2, 0x6A;", "=r,r,r", [x, word], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def picked(x, mask):
    """1 and the bits of `x` under `mask`, as the bits of two bf16 numbers."""
    return tl.inline_asm_elementwise(
        "lop3.b32 $0, $1, $2, 0x3F803F80, 0xEA;", "=r,r,r", [x, mask], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def scaled(x, by, plus):
    """`x * by + plus` for the bf16 numbers in both halves of words."""
    return tl.inline_asm_elementwise(
        "fma.rn.bf16x2 $0, $1, $2, $3;", "=r,r,r,r", [x, by, plus], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def moved(x, by):
    """`x` shifted right, or left where `by` is negative."""
    return tl.where(by < 0, x << tl.maximum(-by, 0), x >> tl.maximum(by, 0))


@triton.jit
def pairs(x, BITS: tl.constexpr, UNIT: tl.constexpr, OPERAND: tl.constexpr, RAISED: tl.constexpr = False):
    """The numbers of both halves of words, `[..., pair, 2]`; 4 bits are -8 to 7, or `RAISED` by 136; 1 bit is -1 or 1.

    One statement for all pairs, which differ by a shift: compilers take a time that grows faster than statements do.
    `RAISED` bits of pair `n` are 1, or 1 and 2**-a more, a = 4 - (n + 1) % 4: four pairs share a shift. The query's
    side makes up for that (`compiler.triton.whole_rows`).
    """
    at = tl.arange(0, UNIT // BITS // 2) * BITS
    x = tl.expand_dims(x, len(x.shape))
    if OPERAND == tl.bfloat16:  # noqa: SIM300 - a constexpr compares, a dtype does not
        if BITS == 4:
            m = nibbles(x >> at)
            if not RAISED:  # less 136, of whole words
                m = scaled(m, tl.full([], 0x3F803F80, tl.int32), tl.full([], -1022835960, tl.int32))
        elif RAISED:
            bit = 3 + ((at + 1) & 3)
            m = picked(moved(x, at - bit), 0x00010001 << bit)
        else:
            m = signed(x << (15 - at), tl.full([], -1082081408, tl.int32))  # 0xBF80BF80
        both = both_halves(m)
    else:
        both = tl.join((x >> at) & (2**BITS - 1), (x >> (at + 16)) & (2**BITS - 1)).to(OPERAND)
        if BITS == 4:
            both = both + 128.0 if RAISED else both - 8.0
        elif RAISED:
            both = both / tl.expand_dims((16 >> ((at + 1) & 3)).to(OPERAND), 1) + 1.0
        else:
            both = both * 2.0 - 1.0
    return both


@triton.jit
def plane_pairs(x, y, z, PLANES: tl.constexpr, UNIT: tl.constexpr, OPERAND: tl.constexpr):
    """The odd numbers whose bits lie in two or three planes, `[..., pair, 2]`; `z` is not read where there are two."""
    at = tl.arange(0, UNIT // 2)
    x = tl.expand_dims(x, len(x.shape))
    y = tl.expand_dims(y, len(y.shape))
    z = tl.expand_dims(z, len(z.shape))
    if OPERAND == tl.bfloat16:  # noqa: SIM300
        # 1 and sixteenths: times 32, less 32 and half the range, both of whole words.
        m = (moved(x, at - 3) & 0x00080008) | (moved(y, at - 4) & 0x00100010) | 0x3F803F80
        if PLANES == 3:
            m = m | (moved(z, at - 5) & 0x00200020)
        less = -1039351284 if PLANES == 2 else -1038302692
        both = both_halves(scaled(m, tl.full([], 1107313152, tl.int32), tl.full([], less, tl.int32)))
    else:
        x, y = x >> at, y >> at
        both = tl.join((x & 1) + (y & 1) * 2, ((x >> 16) & 1) + ((y >> 16) & 1) * 2)
        if PLANES == 3:
            z = z >> at
            both += tl.join(z & 1, (z >> 16) & 1) * 4
        both = both.to(OPERAND) * 2.0 - (2**PLANES - 1.0)
    return both


@triton.jit
def both_halves(m):
    """The bf16 numbers in both halves of words, `[..., 2]`."""
    low = m.to(tl.int16).to(tl.bfloat16, bitcast=True)
    high = (m >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    return tl.join(low, high)


@triton.jit
def in_order(both, A: tl.constexpr, B: tl.constexpr):
    """`[A, B, pair, 2]` as `[A, B, 2, 2, ...]`: half first, then the bits of the pair, lowest first."""
    count: tl.constexpr = both.shape[2]
    if count == 1:
        found = tl.reshape(both, [A, B, 2])
    elif count == 2:
        found = tl.permute(both, (0, 1, 3, 2))
    elif count == 4:
        found = tl.permute(tl.reshape(both, [A, B, 2, 2, 2]), (0, 1, 4, 3, 2))
    elif count == 8:
        found = tl.permute(tl.reshape(both, [A, B, 2, 2, 2, 2]), (0, 1, 5, 4, 3, 2))
    else:
        found = tl.permute(tl.reshape(both, [A, B, 2, 2, 2, 2, 2]), (0, 1, 6, 5, 4, 3, 2))
    return found


@triton.jit
def unpack(w, BITS: tl.constexpr, UNIT: tl.constexpr, OPERAND: tl.constexpr, RAISED: tl.constexpr = False):
    """All numbers of units `[rows, units]`: `[rows, units, 2, 2, ...]`, half first, then the bits of the
    pair, lowest first."""
    return in_order(pairs(halves(w, UNIT), BITS, UNIT, OPERAND, RAISED), w.shape[0], w.shape[1])


@triton.jit
def unpack_bytes(w):
    """The bits of words `[rows, 4]` as bytes `[rows, 128]`: bit `n` of a byte is `2**(n % 4)` where it is set, so that
    four of them need no shift. A lane's lowest bits say which byte of a word, the next which word, the others `n`:
    what a thread holds of a left operand of bytes is its own word's."""
    n = tl.arange(0, 8)
    x = tl.expand_dims(w, 2)
    m = (x >> (n & 4)) & (0x01010101 << (n & 3))
    low = tl.join(m.to(tl.int8), (m >> 8).to(tl.int8))
    high = tl.join((m >> 16).to(tl.int8), (m >> 24).to(tl.int8))
    return tl.reshape(tl.permute(tl.join(low, high), (0, 2, 1, 4, 3)), [w.shape[0], 128])


@triton.jit
def rows_in_order(both, ROWS: tl.constexpr):
    """`[ROWS, column, pair, 2]` as `[ROWS, numbers]`: half first, then the bits of the pair, lowest first, then the
    column."""
    C: tl.constexpr = both.shape[1]
    count: tl.constexpr = both.shape[2]
    if count == 2:
        found = tl.permute(both, (0, 3, 2, 1))
    elif count == 4:
        found = tl.permute(tl.reshape(both, [ROWS, C, 2, 2, 2]), (0, 4, 3, 2, 1))
    elif count == 8:
        found = tl.permute(tl.reshape(both, [ROWS, C, 2, 2, 2, 2]), (0, 5, 4, 3, 2, 1))
    else:
        found = tl.permute(tl.reshape(both, [ROWS, C, 2, 2, 2, 2, 2]), (0, 6, 5, 4, 3, 2, 1))
    return tl.reshape(found, [ROWS, C * count * 2])


@triton.jit
def unpack_columns(
    w, BITS: tl.constexpr, UNIT: tl.constexpr, OPERAND: tl.constexpr, RAISED: tl.constexpr = False
):
    """All numbers of columns `[rows, columns]`, `[rows, numbers]` in the order of `rows_in_order`."""
    return rows_in_order(pairs(halves(w, UNIT), BITS, UNIT, OPERAND, RAISED), w.shape[0])


@triton.jit
def unpack_planes(x, y, z, PLANES: tl.constexpr, UNIT: tl.constexpr, OPERAND: tl.constexpr):
    """`unpack_columns` of numbers whose bits lie in planes."""
    both = plane_pairs(halves(x, UNIT), halves(y, UNIT), halves(z, UNIT), PLANES, UNIT, OPERAND)
    return rows_in_order(both, x.shape[0])


@triton.jit
def unpack_times(w, factors, BITS: tl.constexpr, UNIT: tl.constexpr, OPERAND: tl.constexpr):
    """`unpack_columns` of `[pages, rows, columns]` times what all rows of a page share: `[pages rows, numbers]`.

    Args:
        factors: `[pages, numbers]` in the order column, pair, half.
    """
    PAGES: tl.constexpr = w.shape[0]
    ROWS: tl.constexpr = w.shape[1]
    C: tl.constexpr = w.shape[2]
    PAIRS: tl.constexpr = UNIT // BITS // 2
    x = halves(w, UNIT)
    f = tl.reshape(factors, [PAGES, 1, C, PAIRS, 2])
    if OPERAND == tl.bfloat16:  # noqa: SIM300
        low, high = tl.split(f)
        word = (low.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF) | (
            high.to(tl.int16, bitcast=True).to(tl.int32) << 16
        )
        at = tl.arange(0, PAIRS) * BITS
        x = tl.expand_dims(x, 3)
        if BITS == 1:
            m = signed(x << (15 - at), word ^ -2147450880)
        else:
            less = tl.full([], -1022835960, tl.int32)  # 136
            m = scaled(nibbles(x >> at), tl.full([], 0x3F803F80, tl.int32), less)
            m = scaled(m, word, tl.full([], -2147450880, tl.int32))  # and -0
        both = both_halves(m)
    else:
        both = pairs(x, BITS, UNIT, OPERAND) * f
    return rows_in_order(tl.reshape(both, [PAGES * ROWS, C, PAIRS, 2]), PAGES * ROWS)


@triton.jit
def paired(low, high, UNIT: tl.constexpr):
    """The lower halves of two words beside each other, then the upper, `[..., 2]`; small units have none."""
    low = low.to(tl.int32)
    high = high.to(tl.int32)
    x = (low & 0xFFFF) | (high << 16)
    if UNIT == 32:
        x = tl.join(x, ((low >> 16) & 0xFFFF) | (high & -65536))
    else:
        x = tl.expand_dims(x, len(x.shape))
    return x


@triton.jit
def row_operand(both):
    """`[pages, channels, words, parts, pair, 2]` as the left operand `[pages, rows, 2 channels]`."""
    P: tl.constexpr = both.shape[0]
    K: tl.constexpr = both.shape[1]
    ROWS: tl.constexpr = both.shape[2] * both.shape[3] * both.shape[4]
    return tl.reshape(tl.permute(both, (0, 2, 3, 4, 1, 5)), [P, ROWS, 2 * K])


@triton.jit
def unpack_rows(low, high, BITS: tl.constexpr, UNIT: tl.constexpr, OPERAND: tl.constexpr):
    """Numbers that are packed along the rows of a page as the left operand `[pages, rows, 2 channels]`.

    Args:
        low: words `[pages, channels, words]` of the channels that come first in a pair.
        high: of those that come second.
    """
    SPAN: tl.constexpr = 32 if UNIT == 32 else 2 * UNIT
    return row_operand(pairs(paired(low, high, UNIT), BITS, SPAN, OPERAND))


@triton.jit
def unpack_row_planes(
    low, high, low2, high2, low3, high3, PLANES: tl.constexpr, UNIT: tl.constexpr, OPERAND: tl.constexpr
):
    """`unpack_rows` of numbers whose bits lie in planes; the third is not read where there are two."""
    SPAN: tl.constexpr = 32 if UNIT == 32 else 2 * UNIT
    x, y, z = paired(low, high, UNIT), paired(low2, high2, UNIT), paired(low3, high3, UNIT)
    return row_operand(plane_pairs(x, y, z, PLANES, SPAN, OPERAND))


@triton.jit
def parts_of_pages(x, OPERAND: tl.constexpr):
    """`[pages, heads, lanes]` as two numbers of the operand's type that add up to it, `[pages, 2 heads, lanes]`."""
    high = x.to(OPERAND)
    low = (x - high.to(tl.float32)).to(OPERAND)
    both = tl.permute(tl.join(high, low), (0, 1, 3, 2))
    return tl.reshape(both, [x.shape[0], 2 * x.shape[1], x.shape[2]])


@triton.jit
def two_parts(x, OPERAND: tl.constexpr):
    """`[rows, lanes]` as two numbers of the operand's type that add up to it, `[2 rows, lanes]`."""
    high = x.to(OPERAND)
    low = (x - high.to(tl.float32)).to(OPERAND)
    both = tl.permute(tl.join(high, low), (0, 2, 1))
    return tl.reshape(both, [2 * x.shape[0], x.shape[1]])


@triton.jit
def long_rows(c, ROWS: tl.constexpr, PER: tl.constexpr, LOW: tl.constexpr):
    """What `unpack_columns` gives for `ROWS` rows, as the left operand `[ROWS / 4, 4 PER]`: four rows that
    neighbouring threads read are one. `LOW` bits of a number's place come before the row's. See
    `compiler.triton.whole_rows`."""
    OWN: tl.constexpr = 4 if ROWS >= 128 else ROWS // 32
    if LOW == 2:
        found = tl.reshape(c, [ROWS // (32 * OWN), 8, 4, OWN // 2, 2, 2, 2, PER // 4])
        found = tl.permute(found, (3, 0, 4, 1, 7, 2, 6, 5))
    else:
        found = tl.reshape(c, [ROWS // (32 * OWN), 8, 4, OWN // 2, 2, 2, 2, 2, PER // 8])
        found = tl.permute(found, (3, 0, 4, 1, 8, 2, 7, 6, 5))
    return tl.reshape(found, [ROWS // 4, 4 * PER])


@triton.jit
def long_query(f, LANES: tl.constexpr, LOW: tl.constexpr):
    """Two heads of a query `[2, LANES]` beside long rows, `[8, LANES]`: zero where a row meets another's channels."""
    row = tl.reshape(tl.arange(0, 4), [4, 1, 1])
    of = tl.reshape((tl.arange(0, LANES) >> LOW) & 3, [1, 1, LANES])
    return tl.reshape(tl.where(row == of, tl.reshape(f, [1, 2, LANES]), 0.0), [8, LANES])


@triton.jit
def short_rows(sums, ROWS: tl.constexpr):
    """Sums of long rows for two heads, each row by itself: `[ROWS, 2]`."""
    OWN: tl.constexpr = 4 if ROWS >= 128 else ROWS // 32
    found = tl.reshape(sums, [OWN // 2, ROWS // (32 * OWN), 2, 8, 4, 2])
    return tl.reshape(tl.permute(found, (1, 3, 4, 0, 2, 5)), [ROWS, 2])

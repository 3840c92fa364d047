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
def pair(x, AT: tl.constexpr, BITS: tl.constexpr, OPERAND: tl.constexpr, RAISED: tl.constexpr = False):
    """The numbers at bit `AT` of both halves, `[..., 2]`; 4 bits are -8 to 7, or `RAISED` by 136; 1 bit is -1 or 1."""
    if OPERAND == tl.bfloat16:  # noqa: SIM300 - a constexpr compares, a dtype does not
        if BITS == 4:
            m = nibbles(x >> AT)
        else:
            m = signed(x << (15 - AT), tl.full([], -1082081408, tl.int32))  # 0xBF80BF80
        low = m.to(tl.int16).to(tl.bfloat16, bitcast=True)
        high = (m >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
        both = tl.join(low, high)
        if BITS == 4 and not RAISED:
            both = both - 136.0
    else:
        both = tl.join((x >> AT) & (2**BITS - 1), (x >> (AT + 16)) & (2**BITS - 1)).to(OPERAND)
        if BITS == 4:
            both = both + 128.0 if RAISED else both - 8.0
        else:
            both = both * 2.0 - 1.0
    return both


@triton.jit
def pair_times(x, factors, AT: tl.constexpr, BITS: tl.constexpr, OPERAND: tl.constexpr):
    """`pair`, its two numbers multiplied by two factors `[..., 2]`. Signs turn those instead."""
    if OPERAND == tl.bfloat16 and BITS == 1:  # noqa: SIM300
        low, high = tl.split(factors)
        word = (low.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF) | (
            high.to(tl.int16, bitcast=True).to(tl.int32) << 16
        )
        m = signed(x << (15 - AT), word ^ -2147450880)
        first = m.to(tl.int16).to(tl.bfloat16, bitcast=True)
        second = (m >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
        both = tl.join(first, second)
    else:
        both = pair(x, AT, BITS, OPERAND) * factors
    return both


@triton.jit
def _two(x, AT: tl.constexpr, BITS: tl.constexpr, OPERAND: tl.constexpr, RAISED: tl.constexpr):
    return tl.join(pair(x, AT, BITS, OPERAND, RAISED), pair(x, AT + BITS, BITS, OPERAND, RAISED))


@triton.jit
def _four(x, AT: tl.constexpr, BITS: tl.constexpr, OPERAND: tl.constexpr, RAISED: tl.constexpr):
    return tl.join(_two(x, AT, BITS, OPERAND, RAISED), _two(x, AT + 2 * BITS, BITS, OPERAND, RAISED))


@triton.jit
def _eight(x, AT: tl.constexpr, BITS: tl.constexpr, OPERAND: tl.constexpr, RAISED: tl.constexpr):
    return tl.join(_four(x, AT, BITS, OPERAND, RAISED), _four(x, AT + 4 * BITS, BITS, OPERAND, RAISED))


@triton.jit
def unpack(w, BITS: tl.constexpr, UNIT: tl.constexpr, OPERAND: tl.constexpr, RAISED: tl.constexpr = False):
    """All numbers of units `[rows, units]`: `[rows, units, 2, 2, ...]`, half first, then the bits of the
    pair, lowest first."""
    x = halves(w, UNIT)
    pairs: tl.constexpr = UNIT // BITS // 2
    if pairs == 1:
        found = pair(x, 0, BITS, OPERAND, RAISED)
    elif pairs == 2:
        found = _two(x, 0, BITS, OPERAND, RAISED)
    elif pairs == 4:
        found = _four(x, 0, BITS, OPERAND, RAISED)
    elif pairs == 8:
        found = _eight(x, 0, BITS, OPERAND, RAISED)
    else:
        found = tl.join(_eight(x, 0, BITS, OPERAND, RAISED), _eight(x, 8 * BITS, BITS, OPERAND, RAISED))
    return found


@triton.jit
def two_parts(x, OPERAND: tl.constexpr):
    """`[rows, lanes]` as two numbers of the operand's type that add up to it, `[2 rows, lanes]`."""
    high = x.to(OPERAND)
    low = (x - high.to(tl.float32)).to(OPERAND)
    both = tl.permute(tl.join(high, low), (0, 2, 1))
    return tl.reshape(both, [2 * x.shape[0], x.shape[1]])


@triton.jit
def long_rows(c, ROWS: tl.constexpr, PER: tl.constexpr, LOW: tl.constexpr):
    """What `unpack` gives for a column of `ROWS` rows, as the left operand `[ROWS / 4, 4 PER]`: four rows that
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

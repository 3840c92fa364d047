"""Products in which a thread has whole rows: see `compiler.triton.whole_rows`.

Codes that lie by columns are multiplied as bytes. Four bytes of a row are one register, and one logical operation
takes the same bits of all four: eight for the thirty-two signs in them, two for eight 4-bit numbers. Nothing is shifted
to its place; a number that stands at a higher bit of its byte meets a query that was divided by as much. The query is
three bytes a number, of which integer products lose nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vortex_core.kernels.runtime import INTERPRETED
from vortex_core.kernels.unpack import halves, nibbles, signed

ASSEMBLY = tl.constexpr(not INTERPRETED)


@triton.jit
def _masked(x, MASK: tl.constexpr):
    """The bits `MASK` of four bytes at a time."""
    if MASK == 1:
        y = tl.inline_asm_elementwise("and.b32 $0, $1, 0x01010101;", "=r,r", [x], tl.int8, True, 4)
    elif MASK == 2:
        y = tl.inline_asm_elementwise("and.b32 $0, $1, 0x02020202;", "=r,r", [x], tl.int8, True, 4)
    elif MASK == 4:
        y = tl.inline_asm_elementwise("and.b32 $0, $1, 0x04040404;", "=r,r", [x], tl.int8, True, 4)
    elif MASK == 8:
        y = tl.inline_asm_elementwise("and.b32 $0, $1, 0x08080808;", "=r,r", [x], tl.int8, True, 4)
    else:
        y = tl.inline_asm_elementwise("and.b32 $0, $1, 0x0F0F0F0F;", "=r,r", [x], tl.int8, True, 4)
    return y


@triton.jit
def _bit(x, AT: tl.constexpr):
    """Bit `AT` of every byte, as 0 or two to the power of `AT` modulo 4."""
    if ASSEMBLY:
        y = x
        if AT >= 4:  # of four bytes at once: what crosses from one to the next is masked
            y = tl.inline_asm_elementwise("shr.b32 $0, $1, 4;", "=r,r", [x], tl.int8, True, 4)
        found = _masked(y, 1 << (AT % 4))
    else:
        found = ((x.to(tl.int32) >> (AT // 4 * 4)) & (1 << (AT % 4))).to(tl.int8)
    return found


@triton.jit
def numbers(x, BITS: tl.constexpr):
    """The numbers in bytes; the last dimensions count those of a byte. Of four bits, the lower is 0 to 15 and the
    upper -8 to 7 times 16; of one bit, the `n`-th is 0 or two to the power of `n` modulo 4."""
    if BITS == 4:
        if ASSEMBLY:
            low = _masked(x, 15)
            high = tl.inline_asm_elementwise(
                "lop3.b32 $0, $1, 0xF0F0F0F0, 0x80808080, 0x6A;", "=r,r", [x], tl.int8, True, 4
            )
        else:
            low = (x.to(tl.int32) & 15).to(tl.int8)
            high = (((x.to(tl.int32) >> 4) - 8) * 16).to(tl.int8)
        found = tl.join(low, high)
    else:
        even = tl.join(tl.join(_bit(x, 0), _bit(x, 4)), tl.join(_bit(x, 2), _bit(x, 6)))
        odd = tl.join(tl.join(_bit(x, 1), _bit(x, 5)), tl.join(_bit(x, 3), _bit(x, 7)))
        found = tl.join(even, odd)
    return found


@triton.jit
def long_bytes(c, ROWS: tl.constexpr, PLACES: tl.constexpr, WORDS: tl.constexpr):
    """`numbers` of `WORDS` times four bytes of `ROWS` rows, `[ROWS, 4, ..., WORDS]`, as the left operand
    `[ROWS / 4, 16 PLACES WORDS]`: four rows that neighbouring threads read are one. Of a lane, the first two bits are
    the byte, one is the lowest of a number's place, two are the row, then come the rest of the place and the word."""
    OWN: tl.constexpr = 4 if ROWS >= 128 else ROWS // 32
    c = tl.reshape(c, [ROWS // (32 * OWN), 8, 4, OWN // 2, 2, 4, PLACES // 2, 2, WORDS])
    return tl.reshape(tl.permute(c, (3, 0, 4, 1, 8, 6, 2, 7, 5)), [ROWS // 4, 16 * PLACES * WORDS])


@triton.jit
def digit(x, scale, N: tl.constexpr):
    """The `N`-th of three signed bytes that hold `x * scale`, the highest first."""
    v = tl.floor(x * scale + 0.5).to(tl.int32)
    for _ in tl.static_range(2 - N):
        v = (v + 128) >> 8
    if N > 0:
        v = ((v + 128) & 255) - 128
    return v.to(tl.int8)


@triton.jit
def long_rows(c, ROWS: tl.constexpr, PER: tl.constexpr, LOW: tl.constexpr):
    """What `unpack` gives for a column of `ROWS` rows, as the left operand `[ROWS / 4, 4 PER]`: four rows that
    neighbouring threads read are one. `LOW` bits of a number's place come before the row's."""
    OWN: tl.constexpr = 4 if ROWS >= 128 else ROWS // 32
    if LOW == 2:
        found = tl.reshape(c, [ROWS // (32 * OWN), 8, 4, OWN // 2, 2, 2, 2, PER // 4])
        found = tl.permute(found, (3, 0, 4, 1, 7, 2, 6, 5))
    else:
        found = tl.reshape(c, [ROWS // (32 * OWN), 8, 4, OWN // 2, 2, 2, 2, 2, PER // 8])
        found = tl.permute(found, (3, 0, 4, 1, 8, 2, 7, 6, 5))
    return tl.reshape(found, [ROWS // 4, 4 * PER])


@triton.jit
def page_pairs(low, high, OPERAND: tl.constexpr):
    """Codes of four bits that all rows of a page share: numbers of units of 16 bits `[pages, units]`, each pair one of
    `low` and one of `high`, `[pages, 4 units, 2]`."""
    word = (low.to(tl.int32) & 65535) | (high.to(tl.int32) << 16)
    at = (4 * tl.arange(0, 4))[None, None, :]
    word = tl.reshape(word[:, :, None] >> at, [low.shape[0], 4 * low.shape[1]])
    if OPERAND == tl.bfloat16:  # noqa: SIM300 - a constexpr compares, a dtype does not
        m = nibbles(word)
        first = m.to(tl.int16).to(tl.bfloat16, bitcast=True)
        second = (m >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
        found = tl.join(first, second) - 136.0
    else:
        found = tl.join(word & 15, (word >> 16) & 15).to(OPERAND) - 8.0
    return found


@triton.jit
def signed_rows(x, factors, UNIT: tl.constexpr, ROWS: tl.constexpr, OPERAND: tl.constexpr):
    """Signs of rows `[pages, rows]`, units of `UNIT` bits, times factors of their page `[pages, UNIT / 2, 2]`, as the
    left operand. A lane's first two bits are the half of its unit and the lowest of its place there, then come the row
    and the rest of the place."""
    OWN: tl.constexpr = 4 if ROWS >= 128 else ROWS // 32
    PAIRS: tl.constexpr = UNIT // 2
    words = halves(x, UNIT)[:, :, None]
    low, high = tl.split(factors)
    at = tl.arange(0, PAIRS)[None, None, :]
    if OPERAND == tl.bfloat16:  # noqa: SIM300
        word = (low.to(tl.int16, bitcast=True).to(tl.int32) & 65535) | (
            high.to(tl.int16, bitcast=True).to(tl.int32) << 16
        )
        m = signed(words << (15 - at), (word ^ -2147450880)[:, None, :])
        first = m.to(tl.int16).to(tl.bfloat16, bitcast=True)
        second = (m >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        first = (((words >> at) & 1) * 2 - 1).to(OPERAND) * low[:, None, :]
        second = (((words >> (at + 16)) & 1) * 2 - 1).to(OPERAND) * high[:, None, :]
    found = tl.reshape(tl.join(first, second), [ROWS // (32 * OWN), 8, 4, OWN // 2, 2, PAIRS // 2, 2, 2])
    return tl.reshape(tl.permute(found, (3, 0, 4, 1, 5, 2, 6, 7)), [ROWS // 4, 4 * UNIT])


@triton.jit
def long_query(f, LANES: tl.constexpr, LOW: tl.constexpr):
    """Two heads of a query `[2, LANES]` beside long rows, `[8, LANES]`: zero where a row meets another's channels."""
    row = (tl.arange(0, 8) >> 1)[:, None]
    of = ((tl.arange(0, LANES) >> LOW) & 3)[None, :]
    every = tl.reshape(tl.broadcast_to(f[None, :, :], [4, 2, LANES]), [8, LANES])
    return tl.where(row == of, every, tl.zeros([1, 1], f.dtype))


@triton.jit
def four_times(x):
    """A number for each of two heads, for each column of their product: `[8]`."""
    return tl.reshape(tl.broadcast_to(x[None, :], [4, 2]), [8])


@triton.jit
def short_rows(sums, ROWS: tl.constexpr):
    """Sums of long rows for two heads, each row by itself: `[ROWS, 2]`."""
    OWN: tl.constexpr = 4 if ROWS >= 128 else ROWS // 32
    found = tl.reshape(sums, [OWN // 2, ROWS // (32 * OWN), 2, 8, 4, 2])
    return tl.reshape(tl.permute(found, (1, 3, 4, 0, 2, 5)), [ROWS, 2])

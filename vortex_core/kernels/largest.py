"""Masks of the k largest numbers of a row, without sorting it and without comparing all pairs.

The k-th largest is found bit by bit: floats in an order-preserving integer form, thirty-two counts. Equal numbers are
taken from the front.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def largest_mask(x, K: tl.constexpr, AXIS: tl.constexpr):
    """Whether each number of `x` is among the `K` largest along `AXIS`, the earlier of equal ones first."""
    x = tl.where(x == 0.0, 0.0, x)  # the two zeros are equal
    bits = x.to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    first = tl.sum((key >= 0).to(tl.int32), axis=AXIS) >= K
    least = tl.where(first, 0, -2147483648)
    for n in tl.static_range(31):
        higher = least + (1 << (30 - n))
        enough = tl.sum((key >= tl.expand_dims(higher, AXIS)).to(tl.int32), axis=AXIS) >= K
        least = tl.where(enough, higher, least)
    at = tl.expand_dims(least, AXIS)
    above = tl.sum((key > at).to(tl.int32), axis=AXIS)
    equal = (key == at).to(tl.int32)
    return (key > at) | ((equal == 1) & (tl.cumsum(equal, axis=AXIS) <= K - tl.expand_dims(above, AXIS)))

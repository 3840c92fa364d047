"""In which order packed numbers come out of registers, and which channel each of them is.

A matrix product may take its channels in any order, as long as both operands take the same. The one chosen here is
that in which a thread's part of the left operand consists of numbers of its own units, so that nothing moves between
threads once the units are loaded: a quarter of a row's units for each of the four threads that share a row.
"""

from __future__ import annotations

from dataclasses import dataclass

from vortex_core.ir.types import PLANES

BITS = {"int4": 4, **dict.fromkeys(PLANES, 1)}
UNITS = (32, 16, 8)
_LEAST = 4  # units of a row: one for each thread that shares it


@dataclass(frozen=True)
class Packing:
    """A piece of a row: `units` units of `unit` bits from unit `start`, `real` of them in the row.

    Attributes:
        bits: of one number.
        offset: the unit at which a view of the row starts; `start` and channels count from there.
    """

    bits: int
    unit: int
    start: int
    units: int
    real: int
    offset: int = 0

    @property
    def per(self) -> int:
        """Numbers of a unit."""
        return self.unit // self.bits

    @property
    def lanes(self) -> int:
        """Numbers of the piece, padding included."""
        return self.units * self.per

    @property
    def _quarters(self) -> int:
        return min(_LEAST, self.units)

    @property
    def _inner(self) -> list[int]:
        """Channel weight of each bit that lies inside a thread: half, pair, unit; lowest first."""
        halves, pairs = self.per // 2, (self.per // 2).bit_length() - 1
        own = (self.units // self._quarters).bit_length() - 1
        return [halves, *(1 << b for b in range(pairs)), *(self.per << b for b in range(own))]

    @property
    def _low(self) -> int:
        """Bits of a lane below those that say which thread: what Triton takes for the operand of a product."""
        return min(len(self._inner), 3 if self.unit == 8 else 2)

    def channel(self, lane: str) -> str:
        """The channel of a lane of the operand, counted from the start of the view."""
        low, inner, quarters = self._low, self._inner, self._quarters
        shift = quarters.bit_length() - 1
        place = [*range(low), *range(low + shift, len(inner) + shift)]
        terms = [f"(({lane} >> {at}) & 1) * {w}" for at, w in zip(place, inner, strict=True)]
        if quarters > 1:
            terms.append(f"(({lane} >> {low}) & {quarters - 1}) * {self.per * self.units // quarters}")
        return " + ".join([str(self.start * self.per), *terms])

    def operand(self, text: str, rows: int) -> str:
        """The operand `[rows, lanes]` from what `kernels.unpack.unpack` gives."""
        inner, low = self._inner, self._low
        pairs = (self.per // 2).bit_length() - 1
        own = len(inner) - 1 - pairs
        # Axes: 0 rows, 1 quarter, the units of a quarter from the highest bit, half, pair bits from the lowest.
        axes = [2 + own, *range(3 + own, 3 + own + pairs), *range(1 + own, 1, -1)]
        order = [0, *reversed(axes[low:]), 1, *reversed(axes[:low])]
        shape = [rows, self._quarters, *[2] * len(inner)]
        return f"tl.reshape(tl.permute(tl.reshape({text}, {shape}), {tuple(order)}), [{rows}, {self.lanes}])"


def packings(
    bits: int, width: int, stride: int, start: int, most: int, sizes: tuple[int, ...] = UNITS
) -> list[Packing]:
    """The pieces in which `width` packed numbers are taken, at most `most` lanes each; none where they do not lie
    on whole bytes.

    Args:
        stride: bytes from one row, or plane of one, to the next.
        start: first number wanted; multiples of both must be whole units.
        sizes: of units that can be read, the best first.
    """
    for unit in sizes:
        per = unit // bits
        if stride * 8 % unit or start % per:
            continue
        units = -(-width // per)
        if units < _LEAST - 1 and unit != sizes[-1]:
            continue
        if units * per > stride * 8 // bits:
            continue
        return _pieces(bits, unit, start // per, units, max(_LEAST, most // per))
    return []


def _pieces(bits: int, unit: int, offset: int, units: int, most: int) -> list[Packing]:
    found = []
    start = 0
    while units > 0:
        size = min(most, 1 << (units.bit_length() - 1))
        if size < _LEAST or (
            units - size and 2 * (units - size) > size
        ):  # pad: little is lost, and fewer products
            size = max(_LEAST, 1 << (units - 1).bit_length())
        size = min(size, most)
        found.append(Packing(bits, unit, start, size, min(size, units), offset))
        start, units = start + size, units - size
    return found

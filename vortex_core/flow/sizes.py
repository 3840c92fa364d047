"""Sizes an author computes with: `page.head_dim`, `page.size`, `x.size("dim")`.

A size is a symbol while tracing, never a number. What stays a fraction of one symbol is a size again, fit for a
state's dimensions; everything else is a value of the method being traced: `page.head_dim ** -0.5` is 1 / sqrt(D).
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any, ClassVar, NoReturn

from vortex_core.flow.caller import caller
from vortex_core.ir import mistakes
from vortex_core.ir.types import Extent

_REST = {"N": "R", "R": "N"}  # the channels of a key are the unrotated and the rotary ones


class Size(Extent):
    """An extent with an author's arithmetic."""

    value_of: ClassVar[Callable[[Extent], Any]]  # the extent as a vTensor; set by `vtensor`
    __hash__ = Extent.__hash__

    @classmethod
    def of(cls, extent: Extent) -> Size:
        """The same extent, for authors."""
        return cls(extent.symbol, extent.factor)

    def _scaled(self, factor: Fraction) -> Any:
        found = self.factor * factor
        if found > 0 and found.numerator < 10**9 and found.denominator < 10**9:
            return Size(self.symbol, found)
        return Size.value_of(self) * float(factor)

    # ---- arithmetic ---------------------------------------------------------------------------------------

    def __mul__(self, other: Any) -> Any:
        if _whole(other):
            return self._scaled(Fraction(other))
        if (
            isinstance(other, float)
            and other > 0
            and other == (near := Fraction(other).limit_denominator(4096))
        ):
            return self._scaled(near)  # page.head_dim * 0.25 is a fraction of it
        return _right(self) * _right(other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        if _whole(other):
            return self._scaled(Fraction(1, other))
        if isinstance(other, Extent) and other.symbol == self.symbol:
            ratio = self.factor / other.factor
            return int(ratio) if ratio.denominator == 1 else float(ratio)
        return _right(self) / _right(other)

    def __floordiv__(self, other: Any) -> Any:
        if _whole(other):
            return self._scaled(Fraction(1, other))
        if isinstance(other, Extent) and other.symbol == self.symbol:
            return self.factor // other.factor
        return _right(self) // _right(other)

    def __rtruediv__(self, other: Any) -> Any:
        return _right(other) / _right(self)

    def __rfloordiv__(self, other: Any) -> Any:
        return _right(other) // _right(self)

    def __add__(self, other: Any) -> Any:
        if isinstance(other, Extent) and (both := self.plus(other)) is not None:
            return Size.of(both)
        return _right(self) + _right(other)

    def __radd__(self, other: Any) -> Any:
        return _right(other) + _right(self)

    def __sub__(self, other: Any) -> Any:
        if isinstance(other, Extent):
            if self.symbol == other.symbol and self.factor > other.factor:
                return Size(self.symbol, self.factor - other.factor)
            if self.symbol == "D" and other.symbol in _REST and self.factor == other.factor:
                return Size(_REST[other.symbol], self.factor)
        return _right(self) - _right(other)

    def __rsub__(self, other: Any) -> Any:
        return _right(other) - _right(self)

    def __pow__(self, power: Any) -> Any:
        return Size.value_of(self) ** power

    def __rpow__(self, base: Any) -> Any:
        return base ** Size.value_of(self)

    def __mod__(self, other: Any) -> Any:
        return _right(self) % _right(other)

    def __neg__(self) -> Any:
        return -Size.value_of(self)

    # ---- what tracing cannot give -------------------------------------------------------------------------

    def __eq__(self, other: object) -> Any:
        if isinstance(other, Extent):
            return self.symbol == other.symbol and self.factor == other.factor
        return self._unknown("the value")

    def __ne__(self, other: object) -> Any:
        return not self == other

    def __lt__(self, other: object) -> Any:
        return Size.value_of(self) < _right(other)

    def __le__(self, other: object) -> Any:
        return Size.value_of(self) <= _right(other)

    def __gt__(self, other: object) -> Any:
        return Size.value_of(self) > _right(other)

    def __ge__(self, other: object) -> Any:
        return Size.value_of(self) >= _right(other)

    def __float__(self) -> NoReturn:
        self._unknown("the number")

    def __int__(self) -> NoReturn:
        self._unknown("the number")

    def __index__(self) -> NoReturn:
        self._unknown("the number")

    def _unknown(self, what: str) -> NoReturn:
        raise mistakes.DATA_DEPENDENT.error(caller(), what=f"{what} of the size {self}")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 10**9


def _right(value: Any) -> Any:
    """An operand as a vTensor where it is a size."""
    return Size.value_of(value) if isinstance(value, Extent) else value

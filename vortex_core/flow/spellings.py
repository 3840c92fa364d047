"""Spellings that authors of attention code bring along, written in terms of the language's own operators.

`METHODS` are further names of methods; they are no operators of their own and stand in no table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from vortex_core.flow.caller import caller
from vortex_core.ir import mistakes
from vortex_core.ir.types import PLANES

if TYPE_CHECKING:
    from vortex_core.flow.vtensor import vTensor

MAX_POWER = 16  # a whole power is a product of as many factors


def power(x: vTensor, p: Any) -> vTensor:
    """x ** p: products for whole numbers, square roots for halves and quarters, else exp(p log x).

    A fractional power is NaN below 0, as `sqrt` and `log` are.
    """
    if not isinstance(p, int | float) or isinstance(p, bool):
        return (p * x.log()).exp()
    if p == 0 or not math.isfinite(p) or (p == int(p) and abs(p) > MAX_POWER):
        raise mistakes.BAD_ATTRIBUTE.error(
            caller(),
            op="**",
            name="power",
            found=repr(p),
            want=f"a number but 0; whole ones up to {MAX_POWER}",
        )
    if p < 0:
        return 1 / power(x, -p)
    whole, rest = divmod(Fraction(p), 1)
    if whole > MAX_POWER or rest not in (0, Fraction(1, 4), Fraction(1, 2), Fraction(3, 4)):
        return (p * x.log()).exp()
    half = x.sqrt() if rest else x
    factors = [x] * int(whole)
    if rest >= Fraction(1, 2):
        factors.append(half)
    if rest in (Fraction(1, 4), Fraction(3, 4)):
        factors.append(half.sqrt())
    result = factors[0]
    for f in factors[1:]:
        result = result * f
    return result


STEPS = {"int8": 127.0, "int4": 7.0, "int3": 7.0, "int2": 3.0}  # the largest whole number of each


def scaled(x: vTensor, dtype: str, dims: tuple[Any, ...]) -> vTensor:
    """`x` as an integer state reads it back: one fp16 scale for the values along `dims`, halves to the even step.

    int3 and int2 are odd numbers: as many levels above zero as below, and the upper one at the same distance of two.
    """
    from vortex_core.flow import ops

    top = STEPS[dtype]
    scale = (x.abs().max(*dims) / top).clamp(max=6.0e4).to("fp16")
    ratio = x / ops.where(scale > 0, scale, 1.0)
    if dtype in PLANES:
        return (2 * ((ratio + (top + 1)) * 0.5).floor() - top).clamp(-top, top) * scale
    up = (ratio + 0.5).floor()
    even = ops.where((up - ratio == 0.5) & (up - 2 * (up * 0.5).floor() == 1.0), up - 1, up)
    return even.clamp(-top, top) * scale


_PRIME = 1019  # x ** 3 is a permutation modulo it, and every number on the way is a whole one that fp32 holds
_STRIDES = (421, 617)


def signs(first: vTensor, second: vTensor, seed: int) -> vTensor:
    """-1 or 1 for every pair of two counters, as independent to the eye as coin tosses, and everywhere the same."""
    from vortex_core.flow import ops

    def modulo(
        x: vTensor,
    ) -> vTensor:  # rounded last, so that no rewriting of the sums can leave the whole numbers
        return (x - _PRIME * ((x + 0.5) / _PRIME).floor() + 0.5).floor()

    def cube(x: vTensor) -> vTensor:
        return modulo(modulo(x * x) * x)

    mixed = cube(modulo((first + 1) * _STRIDES[0] + ((seed * 389 + 211) % _PRIME + 37)))
    mixed = cube(modulo(mixed + (second + 1) * _STRIDES[1] + 37))
    return ops.where(2 * cube(modulo(mixed + 101)) < _PRIME, 1.0, -1.0)


def hadamard(first: vTensor, second: vTensor, size: int) -> vTensor:
    """-1 for every pair of two counters that have an odd number of binary digits in common, else 1."""

    def digit(x: vTensor, n: int) -> vTensor:
        return (x / 2**n).floor() - 2 * (x / 2 ** (n + 1)).floor()

    result = None
    for n in range(size.bit_length() - 1):
        sign = 1 - 2 * digit(first, n) * digit(second, n)
        result = sign if result is None else result * sign
    assert result is not None
    return result


def argmax(x: vTensor, dims: tuple[Any, ...]) -> vTensor:
    """The index of the largest value along one dimension."""
    from vortex_core.flow.vtensor import arange_of

    if len(dims) != 1:
        raise mistakes.BAD_ATTRIBUTE.error(
            caller(), op="argmax", name="dims", found=repr(dims), want="one dimension"
        )
    dim = dims[0]
    return (x.largest(1, dim) * arange_of(dim, x.size(dim))).sum(dim)


def take(x: vTensor, index: Any, dim: str) -> vTensor:
    """The values at one index of a small dimension: a sum with one term that is not left out."""
    from vortex_core.flow import ops
    from vortex_core.flow.vtensor import arange_of

    extent = x.size(dim)
    if dim == "page":
        raise mistakes.BAD_ATTRIBUTE.error(
            caller(),
            op="take",
            name="dim",
            found="page",
            want="another dimension: pages are selected, not read",
        )
    if isinstance(index, int) and not isinstance(index, bool) and index < 0:
        index = ops.size(extent) + index
    return ops.where(arange_of(dim, extent) == index, x, 0.0).sum(dim)


def is_last(x: vTensor, dim: str, start: Any, stop: Any) -> bool:
    """Whether a range is the last position: `slice("token", "S-1", "S")`, `slice("token", -1, "S")`."""
    if dim not in x.dims:
        return False
    end = str(x.size(dim))
    first = start.replace(" ", "") if isinstance(start, str) else start
    return (first == -1 or first == f"{end}-1") and stop in (None, end, x.size(dim))


def check_ends(dim: str, *ends: Any) -> None:
    """Refuse what counts from the end, with what says the same: sizes are symbols while tracing."""
    for end in ends:
        if end is None or (isinstance(end, str) and "-" in end) or (isinstance(end, int) and end < 0):
            raise mistakes.BAD_ATTRIBUTE.error(
                caller(),
                op="slice",
                name="ends",
                found=repr(end)[:40],
                want=f'a number or a fraction of the size such as "S/2"; the last is x.take(-1, {dim!r}), and '
                f"x.conv([0, 0, 1], {dim!r}) moves each one's right neighbour to its place",
            )


def exponential(base: Any, x: vTensor) -> vTensor:
    """base ** x, for a positive number."""
    if not isinstance(base, int | float) or isinstance(base, bool) or base <= 0:
        raise mistakes.BAD_ATTRIBUTE.error(
            caller(), op="**", name="base", found=repr(base)[:40], want="a positive number"
        )
    return (x * math.log(base)).exp()


def reduced(
    x: vTensor, op: str, dims: Sequence[Any], dim: Any = (), axis: Any = (), keepdim: bool = False
) -> tuple[Any, ...]:
    """The dimensions of a reduction however they are given: one after the other, as a list, or as `dim=`."""
    if keepdim:
        raise mistakes.BAD_ATTRIBUTE.error(
            caller(),
            op=op,
            name="keepdim",
            found=True,
            want="left out: tensors broadcast by name, so none is needed",
        )
    found: list[Any] = []
    for given in (*dims, dim, axis):
        found += list(given) if isinstance(given, list | tuple) else [given]
    if not found:
        raise mistakes.BAD_ATTRIBUTE.error(
            caller(),
            op=op,
            name="dims",
            found="()",
            want=f"one or more names of {', '.join(x.dims) or 'none'}",
            known=x.dims,
        )
    return tuple(sorted(found, key=str))


def _ops(name: str) -> Callable[..., vTensor]:
    def call(x: vTensor, y: Any) -> vTensor:
        from vortex_core.flow import vtensor

        return vtensor.emit(name, x, y)

    return call


def _masked_fill(x: vTensor, mask: vTensor, value: Any) -> vTensor:
    from vortex_core.flow import vtensor

    return vtensor.emit("where", mask, value, x)


METHODS: dict[str, Callable[..., Any]] = {
    "amax": lambda x, *a, **k: x.max(*a, **k),
    "amin": lambda x, *a, **k: x.min(*a, **k),
    "clip": lambda x, *a, **k: x.clamp(*a, **k),
    "clamp_min": lambda x, low: x.clamp(low),
    "clamp_max": lambda x, high: x.clamp(None, high),
    "pow": power,
    "rsqrt": lambda x: power(x, -0.5),
    "reciprocal": lambda x: 1 / x,
    "neg": lambda x: -x,
    "negative": lambda x: -x,
    "absolute": lambda x: x.abs(),
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "maximum": _ops("maximum"),
    "minimum": _ops("minimum"),
    "exp2": lambda x: exponential(2, x),
    "log2": lambda x: x.log() * (1 / math.log(2)),
    "log10": lambda x: x.log() * (1 / math.log(10)),
    "log1p": lambda x: (1 + x).log(),
    "expm1": lambda x: x.exp() - 1,
    "softplus": lambda x: (1 + (-x.abs()).exp()).log() + x.relu(),
    "ceil": lambda x: -((-x).floor()),
    "trunc": lambda x: x.sign() * x.abs().floor(),
    "float": lambda x: x * 1.0 if x.type.kind == "bool" else x,
    "masked_fill": _masked_fill,
    "logical_not": lambda x: ~x,
    "logical_and": lambda x, y: x & y,
    "logical_or": lambda x, y: x | y,
}

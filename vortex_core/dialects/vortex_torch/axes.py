"""Positional axes over named dimensions.

vortex_torch tensors are `[lead, D0, D1]`; ours have names and no order. An axis is therefore a row-major list
of named dimensions, empty for size 1, so that Kronecker products, reshapes and transposes only regroup names.
Sizes are checked for one concrete model (`Sizes`), the program keeps the symbolic extents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vortex_core.errors import VortexError
from vortex_core.flow import ops
from vortex_core.flow.vtensor import vTensor
from vortex_core.ir import mistakes
from vortex_core.ir.types import Extent

Dim = tuple[str, Extent]
Axis = tuple[Dim, ...]
Axes = tuple[Axis, Axis]
Sizes = Mapping[str, int]


def count(axis: Axis, sizes: Sizes) -> int:
    """Elements along an axis."""
    total = 1
    for _, extent in axis:
        total *= extent.resolve(sizes)
    return total


def names(*axes: Axis) -> set[str]:
    """Dimension names of some axes."""
    return {name for axis in axes for name, _ in axis}


def fresh(taken: set[str]) -> str:
    """A dimension name that is not taken: row, row2, row3, ..."""
    found, n = "row", 2
    while found in taken:
        found, n = f"row{n}", n + 1
    return found


def shape_error(op: str, found: object, rule: str, remedy: str) -> VortexError:
    """`VF082`."""
    return mistakes.DIALECT_SHAPE.error(op=op, found=found, why=rule, remedy=remedy)


def cut(
    op: str, t: vTensor, axis: Axis, minor: int, sizes: Sizes, taken: set[str]
) -> tuple[vTensor, Axis, Axis]:
    """Split an axis into major and minor parts, the minor one with `minor` elements."""
    left, right, have = list(axis), list[Dim](), 1
    while have < minor:
        name, extent = left.pop()
        size = extent.resolve(sizes)
        if minor % (have * size) == 0:
            right.insert(0, (name, extent))
            have *= size
            continue
        need = minor // have
        if minor % have or size % need:
            raise shape_error(
                op,
                f"{minor} of {size} elements",
                "an axis splits into whole groups",
                "choose sizes that divide each other",
            )
        new = fresh(taken | names(axis))
        if name in t.dims:
            t = t.split(name, **{new: size // need})
        left.append((new, Extent.parse(size // need)))
        right.insert(0, (name, extent // (size // need)))
        have = minor
    return t, tuple(left), tuple(right)


def refine(
    op: str, tx: vTensor, x: Axis, ty: vTensor, y: Axis, sizes: Sizes, taken: set[str]
) -> tuple[vTensor, Axis, vTensor, Axis]:
    """Split two axes of equal size until their dimensions pair up."""
    if count(x, sizes) != count(y, sizes):
        raise shape_error(
            op,
            f"axes of {count(x, sizes)} and {count(y, sizes)} elements",
            "axes are equal or one of them is 1",
            "reduce or reshape one of them",
        )
    px, py, outx, outy = list(x), list(y), list[Dim](), list[Dim]()
    while px or py:
        (_, ex), (_, ey) = px[-1], py[-1]
        sx, sy = ex.resolve(sizes), ey.resolve(sizes)
        if sx == sy:
            if ex != ey:
                raise shape_error(
                    op,
                    f"{ex} and {ey} elements, both {sx} here",
                    "two axes are combined only if they are equal for every model",
                    "derive both sizes from the same argument",
                )
            outx.insert(0, px.pop())
            outy.insert(0, py.pop())
        elif sx > sy:
            tx, major, minor = cut(op, tx, (px.pop(),), sy, sizes, taken | names(tuple(px)))
            px += [*major, *minor]
        else:
            ty, major, minor = cut(op, ty, (py.pop(),), sx, sizes, taken | names(tuple(py)))
            py += [*major, *minor]
    return tx, tuple(outx), ty, tuple(outy)


def rename(t: vTensor, mapping: Mapping[str, str]) -> vTensor:
    """Rename dimensions simultaneously; names the tensor lacks are ignored."""
    todo = {a: b for a, b in mapping.items() if a != b and a in t.dims}
    held = {}
    for n, (a, b) in enumerate(todo.items()):
        if b in t.dims:  # another dimension that is renamed too still has this name
            held[f"swap{n}"] = b
            t = t.rename(**{a: f"swap{n}"})
        else:
            t = t.rename(**{a: b})
    for a, b in held.items():
        t = t.rename(**{a: b})
    return t


def renamed(axis: Axis, mapping: Mapping[str, str]) -> Axis:
    """An axis under new names."""
    return tuple((mapping.get(name, name), extent) for name, extent in axis)


def pair(
    op: str,
    tx: vTensor,
    x: Axes,
    ty: vTensor,
    y: Axes,
    matched: Sequence[int],
    sizes: Sizes,
) -> tuple[vTensor, Axes, vTensor, Axes]:
    """Give two tensors names under which they combine: the `matched` axes share names, all others differ."""
    xs, ys = list(x), list(y)
    for i in matched:
        taken = names(*xs, *ys)
        tx, xs[i], ty, ys[i] = refine(op, tx, xs[i], ty, ys[i], sizes, taken)
    both = [(a, b) for i in matched for (a, _), (b, _) in zip(xs[i], ys[i], strict=True)]
    if any((a == "token") != (b == "token") for a, b in both):  # a token dimension cannot be given to y
        mapping = {"token": fresh(names(*xs, *ys))}
        if any(a == "token" for a, _ in both):
            tx, xs = rename(tx, mapping), [renamed(axis, mapping) for axis in xs]
        else:
            ty, ys = rename(ty, mapping), [renamed(axis, mapping) for axis in ys]
        both = [(a, b) for i in matched for (a, _), (b, _) in zip(xs[i], ys[i], strict=True)]
    mapping = {b: a for a, b in both}
    taken = names(*xs)
    for name in (n for axis in ys for n, _ in axis):
        if name not in mapping:
            mapping[name] = fresh(taken | names(*ys)) if name in taken else name
            taken.add(mapping[name])
    ty = rename(ty, mapping)
    ys = [renamed(axis, mapping) for axis in ys]
    return tx, (xs[0], xs[1]), ty, (ys[0], ys[1])


def reduce(kind: str, t: vTensor, axis: Axis) -> vTensor:
    """Reduce an axis. Dimensions the tensor is constant along are accounted for, not materialised."""
    present = [name for name, _ in axis if name in t.dims]
    missing = [extent for name, extent in axis if name not in t.dims]
    match kind:
        case "sum":
            t = t.sum(*present) if present else t
            for extent in missing:
                t = t * _size(extent)
        case "norm":
            t = t.norm(*present) if present else t.abs()
            for extent in missing:
                t = t * _size(extent).sqrt()
        case "mean" | "max" | "min":
            t = {"mean": t.mean, "max": t.max, "min": t.min}[kind](*present) if present else t
    return t


def _size(extent: Extent) -> vTensor:
    return ops.size(extent) if extent.symbol else ops.constant(float(extent.factor))


def index(axis: Axis, sizes: Sizes) -> vTensor:
    """Position along an axis, row-major over its dimensions."""
    total = ops.constant(0.0)
    for i, (name, extent) in enumerate(axis):
        stride = count(axis[i + 1 :], sizes)
        step = ops.arange(**{name: extent})
        total = step if not i and stride == 1 else total + stride * step if i else stride * step
    return total


def materialise(t: vTensor, *axes: Axis, pages: bool = False) -> vTensor:
    """The tensor with every named dimension really there."""
    for name, extent in (dim for axis in axes for dim in axis):
        if name not in t.dims:
            t = t + 0 * ops.arange(**{name: extent})
    return t + 0 * ops.position() if pages and "page" not in t.dims else t

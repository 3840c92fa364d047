"""Lowering of a page's leading directions: weights of its rows once, the directions wherever they are asked for.

The directions are W'x with `W[row, direction]` from the rows' Gram matrix. W is small and held whole; x is read again at
the channels that an environment names, so the directions can be packed, summed or stored piece by piece.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vortex_core.compiler.triton.tile import Axis, Env, Tile, atom, order, pow2, powers_of_two, unsupported
from vortex_core.ir.definitions import NEGLIGIBLE, STEPS
from vortex_core.ir.graph import Graph, Node

if TYPE_CHECKING:
    from vortex_core.compiler.triton.emitter import Emitter

_LEAST = 16  # numbers that a matrix product sums over
_MOST = 16384  # rows x channels: more would not fit the shared memory
_GRAM_LANES = 2048  # rows x channels that a step of the Gram matrix reads
_CHANNELS = 32  # that a step of their coordinates takes
_SUM_LANES = 16384  # rows x directions x channels that are multiplied without a matrix product
_EXACT = 'input_precision="ieee"'
_TENSOR = 'input_precision="tf32x3"'


def principal(e: Emitter, node: Node, env: Env) -> Tile:
    """The directions at the indices of `env`."""
    a = node.attr
    (i,) = node.inputs
    source = e.graph.nodes[i].type
    rows = e.axis(a["over"], source.extent(a["over"]).resolve(e.sizes))
    real = source.extent(a["dim"]).resolve(e.sizes)
    if rows.size * pow2(real) > _MOST:
        raise unsupported(
            node,
            f"{rows.real} rows of {real} channels; rows x channels, both as powers of two, are at most {_MOST}",
        )
    if node not in e.decomposed:
        e.decomposed[node] = _weights(e, node, rows)
    weights = e.decomposed[node]
    (found,) = (axis for axis in weights.axes if axis != rows)
    at, which = env[a["dim"]], env[a["into"]]
    x = e.at(i, {a["over"]: Tile(rows.index, (rows,)), a["dim"]: at})
    x = Tile(e.masked(x, rows, "0.0"), x.axes)
    single = len(at.axes) == 1 and rows.size >= _LEAST
    if single and rows.size * math.prod(axis.size for axis in (*which.axes, *at.axes)) > _SUM_LANES:
        right = _arranged(e, x, (rows, at.axes[0]))
        left = _arranged(e, weights, (found, rows))
        text = f"tl.dot({left.text}, {right.text}, {_EXACT})"
        value = _arranged(e, e.bind(text, (found, at.axes[0]), False), order([found, *at.axes]))
        return _picked(e, value, found, which)
    weights = _picked(e, weights, found, which)
    axes = order([*weights.axes, *x.axes])
    text = f"tl.sum({weights.to(axes)} * {x.to(axes)}, axis={axes.index(rows)})"
    return e.bind(text, [axis for axis in axes if axis != rows], False)


def coordinates(e: Emitter, node: Node, env: Env) -> Tile | None:
    """A sum of products with directions, over their channels, as matrix products; None where it is none.

    Their coordinates have a number for each row and direction: the products themselves would not fit the registers.
    """
    product, names = e.graph.nodes[node.inputs[0]], node.attr["dims"]
    if product.op != "mul" or len(names) != 1 or not _of_directions(e.graph) & set(product.inputs):
        return None
    (dim,), (left, right) = names, product.inputs
    types = [e.graph.nodes[i].type for i in (left, right)]
    if any(len(t.dims) != 2 or dim not in t.names for t in types) or types[0].names == types[1].names:
        return None
    sides = [env[n].axes for t in types for n in t.names if n != dim]
    real = types[0].extent(dim).resolve(e.sizes)
    whole = any(e.needs_whole(i, dim) for i in (left, right))
    pieces = [(0, real)] if whole else powers_of_two(real, _CHANNELS)
    if any(len(axes) != 1 for axes in sides) or any(pow2(size) < _LEAST for _, size in pieces):
        return None
    (rows,), (columns,) = sides
    total = ""
    for start, size in pieces:
        lanes = e.axis(dim, size)
        at = {**env, dim: Tile(f"{start} + {lanes.index}" if start else lanes.index, (lanes,))}
        x, y = e.at(left, at), e.at(right, at)
        x = _arranged(e, Tile(e.masked(x, lanes, "0.0"), x.axes), (rows, lanes))
        y = _arranged(e, Tile(e.masked(y, lanes, "0.0"), y.axes), (lanes, columns))
        extra = f", {total}" if total else ""
        total = e.bind(f"tl.dot({x.text}, {y.text}{extra}, {_TENSOR})", (), False).text
    return _arranged(e, Tile(total, (rows, columns)), order([rows, columns]))


def turned(e: Emitter, node: Node, env: Env) -> Tile | None:
    """A sum of products with a matrix that is the same everywhere as a matrix product; None where it is none.

    The products themselves have a number for each number before and after: more than registers hold.
    """
    if len(node.attr["dims"]) != 1:
        return None
    (dim,), todo = node.attr["dims"], [*node.inputs]
    sides: tuple[list[int], list[int]] = [], []  # by what it is turned, which is the smaller, and what is
    while todo:
        i = todo.pop()
        factor = e.graph.nodes[i]
        if factor.op == "mul":
            todo += factor.inputs
        else:
            sides[factor.type.domain != "const" or dim not in factor.type.names].append(i)
    real = e.graph.nodes[node.inputs[0]].type.extent(dim).resolve(e.sizes)
    names = [{n for i in side for n in e.graph.nodes[i].type.names} for side in sides]
    if dim not in names[0] & names[1] or names[0] & names[1] != {dim} or pow2(real) != real or real < _LEAST:
        return None
    lanes = e.axis(dim, real)
    found = [order([a for n in own - {dim} for a in env[n].axes]) for own in names]
    counts = [math.prod(a.size for a in axes) for axes in found]
    if min(counts) < _LEAST or set(found[0]) & set(found[1]) or lanes in (*found[0], *found[1]):
        return None
    at, operands = {**env, dim: Tile(lanes.index, (lanes,))}, []
    for side, axes, count in zip(sides, found, counts, strict=True):
        parts = [e.at(i, at) for i in sorted(side)]
        own = order([*axes, lanes])
        product = " * ".join(atom(t.to(own)) for t in parts)
        shape = [a.size for a in own]
        if {a for t in parts for a in t.axes} != set(own):
            product = f"tl.zeros({shape}, tl.float32) + {product}"
        x = _arranged(e, e.bind(product, own, False), (*axes, lanes))
        operands.append(f"tl.reshape({x.text}, {[count, real]})")
    text = f"tl.dot({operands[0]}, tl.trans({operands[1]}), {_TENSOR})"
    both = (*found[0], *found[1])
    result = e.bind(f"tl.reshape({text}, {[a.size for a in both]})", both, False)
    return _arranged(e, result, order(both))


def _of_directions(graph: Graph) -> set[int]:
    """Nodes whose values follow from directions."""
    found: set[int] = set()
    for i, node in enumerate(graph.nodes):
        if node.op == "principal" or any(j in found for j in node.inputs):
            found.add(i)
    return found


def _picked(e: Emitter, value: Tile, found: Axis, which: Tile) -> Tile:
    """The directions of the indices `which`, of all that were found."""
    (first, *more) = (*which.axes, found)
    if (
        len(more) == 1 and which.text == first.index and first.real == found.real
    ):  # all of them, in their order
        renamed = Tile(value.text, tuple(first if axis == found else axis for axis in value.axes))
        return _arranged(e, renamed, order(renamed.axes))
    axes = order([*value.axes, *which.axes])
    here = f"{Tile(found.index, (found,)).to(axes)} == {which.to(axes)}"
    text = f"tl.sum(tl.where({here}, {value.to(axes)}, 0.0), axis={axes.index(found)})"
    return e.bind(text, [axis for axis in axes if axis != found], False)


def _weights(e: Emitter, node: Node, rows: Axis) -> Tile:
    """The weights of the rows, with the rows and the directions as axes."""
    a, (i,) = node.attr, node.inputs
    real = e.graph.nodes[i].type.extent(a["dim"]).resolve(e.sizes)
    most = max(_LEAST, min(128, _GRAM_LANES // rows.size))
    pieces = [(0, real)] if e.needs_whole(i, a["dim"]) else powers_of_two(real, most)
    total = ""
    for start, size in pieces:
        lanes = e.axis(a["dim"], size)
        at = Tile(f"{start} + {lanes.index}" if start else lanes.index, (lanes,))
        x = e.at(i, {a["over"]: Tile(rows.index, (rows,)), a["dim"]: at})
        x = Tile(e.masked(x, rows, "0.0"), x.axes)
        x = _arranged(e, e.bind(e.masked(x, lanes, "0.0"), x.axes, False), (rows, lanes))
        if lanes.size >= _LEAST:
            extra = f", {total}" if total else ""
            text = f"tl.dot({x.text}, tl.trans({x.text}){extra}, {_TENSOR})"
        else:
            text = f"tl.sum({x.text}[:, None, :] * {x.text}[None, :, :], axis=2)"
            text = f"{total} + {text}" if total else text
        total = e.bind(text, (), False).text
    found = e.axis(f"{a['into']}_found", a["rank"])
    sizes = f"{rows.real}, {a['rank']}, {rows.size}, {found.size}"
    call = f"principal_weights({total}, {sizes}, {STEPS}, {NEGLIGIBLE!r})"
    return _arranged(e, e.bind(call, (rows, found), False), order([rows, found]))


def _arranged(e: Emitter, x: Tile, axes: Sequence[Axis]) -> Tile:
    """`x` with its axes in this order."""
    if x.axes == tuple(axes):
        return x
    moved = tuple(x.axes.index(axis) for axis in axes)
    return e.bind(f"tl.permute({x.text}, {moved})", axes, False)

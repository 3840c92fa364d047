"""Where a budget is undefined: intervals in place of numbers, halved until they decide.

Looking at sample lengths misses a pole between them; then a decode fails in its middle, at the one length that hits it.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping

MAX_LENGTH = 1 << 20
_MOST = 4_096  # intervals looked at; budgets in use need one to twenty

Range = tuple[float, float]


class UnsureError(Exception):
    """Somewhere in this interval the expression may be undefined."""


def doubtful_lengths(tree: ast.expr, layer: int, layers: int) -> list[int] | None:
    """Lengths from 1 to 2^20 at which a legal expression may be undefined or infinite: all that its own value must
    tell. None if they are too many to name, as where a remainder divides."""
    found: list[int] = []
    todo = [(1, MAX_LENGTH)]
    for _ in range(_MOST):
        if not todo:
            return found
        low, high = todo.pop()
        names = {"length": (float(low), float(high)), "layer": (layer, layer), "layers": (layers, layers)}
        try:
            _range(tree, names)
        except UnsureError:
            if low == high:
                found.append(low)
            else:
                middle = (low + high) // 2
                todo += [(low, middle), (middle + 1, high)]
    return None


def _range(node: ast.expr, names: Mapping[str, Range]) -> Range:
    match node:
        case ast.Constant(value=value):
            return float(value), float(value)  # type: ignore[arg-type]  # the budget's check has seen it
        case ast.Name(id=name):
            return names[name]
        case ast.UnaryOp(operand=operand):
            low, high = _range(operand, names)
            return -high, -low
        case ast.IfExp(test=test, body=body, orelse=orelse):
            low, high = _range(test, names)
            if low > 0 or high < 0:
                return _range(body, names)
            if low == high == 0:
                return _range(orelse, names)
            return _hull(*_range(body, names), *_range(orelse, names))
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return _compare(op, _range(left, names), _range(right, names))
        case ast.BinOp(left=left, op=operation, right=right):
            return _binary(operation, _range(left, names), _range(right, names))
        case ast.Call(func=ast.Name(id=function), args=args):
            return _call(function, [_range(a, names) for a in args])
    raise AssertionError(ast.dump(node))


def _hull(*ends: float) -> Range:
    """The interval of these ends. Raises UnsureError if one is infinite or no number."""
    if not all(map(math.isfinite, ends)):
        raise UnsureError
    return min(ends), max(ends)


def _compare(op: ast.cmpop, a: Range, b: Range) -> Range:
    if isinstance(op, ast.Gt | ast.GtE):
        a, b = b, a
    match op:
        case ast.Lt() | ast.Gt():
            certain, impossible = a[1] < b[0], a[0] >= b[1]
        case ast.LtE() | ast.GtE():
            certain, impossible = a[1] <= b[0], a[0] > b[1]
        case _:
            apart, same = a[1] < b[0] or b[1] < a[0], a[0] == a[1] == b[0] == b[1]
            certain, impossible = (same, apart) if isinstance(op, ast.Eq) else (apart, same)
    return (1.0, 1.0) if certain else (0.0, 0.0) if impossible else (0.0, 1.0)


def _binary(op: ast.operator, a: Range, b: Range) -> Range:
    match op:
        case ast.Add():
            return _hull(a[0] + b[0], a[1] + b[1])
        case ast.Sub():
            return _hull(a[0] - b[1], a[1] - b[0])
        case ast.Mult():
            return _hull(*(x * y for x in a for y in b))
    if b[0] <= 0 <= b[1]:
        raise UnsureError
    if isinstance(op, ast.Mod):
        if a[0] >= 0 and a[1] < b[0]:
            return a
        return _hull(0.0, b[1]) if b[0] > 0 else _hull(b[0], 0.0)
    low, high = _hull(*(x / y for x in a for y in b))
    return (float(math.floor(low)), float(math.floor(high))) if isinstance(op, ast.FloorDiv) else (low, high)


def _call(name: str, args: list[Range]) -> Range:
    if name in ("min", "max"):
        if len(args) < 2:
            raise UnsureError
        pick = min if name == "min" else max
        return pick(a[0] for a in args), pick(a[1] for a in args)
    if len(args) != 1:
        raise UnsureError
    low, high = args[0]
    match name:
        case "sqrt" if low >= 0:
            return math.sqrt(low), math.sqrt(high)
        case "log2" if low > 0:
            return math.log2(low), math.log2(high)
        case "ceil":
            return float(math.ceil(low)), float(math.ceil(high))
        case "floor":
            return float(math.floor(low)), float(math.floor(high))
    raise UnsureError

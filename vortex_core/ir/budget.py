"""Budget expressions: how many tokens a decode step may attend, as a function of length and layer.

A budget is a small arithmetic expression over `length` (tokens in the sequence), `layer` (0-based)
and `layers` (their number), e.g. `"512"`, `"max(256, length / 16)"` or `"1024 if layer < 4 else 256"`.
It counts tokens; the engine rounds it up to pages. Pages kept by rule (first, last) count inside it.
"""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from vortex_core.errors import VortexError
from vortex_core.ir import mistakes
from vortex_core.ir.budget_range import MAX_LENGTH, doubtful_lengths

NAMES = ("length", "layer", "layers")
_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARE: dict[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
CALLS: dict[str, Callable[..., float]] = {
    "min": min,
    "max": max,
    "sqrt": math.sqrt,
    "log2": math.log2,
    "ceil": math.ceil,
    "floor": math.floor,
}
_MAX_CHARACTERS = 200


def budget_error(text: str, why: str) -> VortexError:
    """`VF060`: the expression is not one a budget may be."""
    return mistakes.BAD_BUDGET.error(text=text, why=why)


@dataclass(frozen=True)
class Budget:
    """A parsed budget. Equality is by text.

    Attributes:
        text: the expression as its syntax tree prints: no comment or spelling of the author's is kept.
    """

    text: str

    def __post_init__(self) -> None:
        _check(self._tree, self.text)  # every branch, also those that no length takes
        object.__setattr__(self, "text", ast.unparse(self._tree))
        self.pages(length=4096, page_size=16, layer=0, layers=1)  # a bad expression fails where it is written
        if not self.names and self._evaluate(self._tree, {}) < 0:
            raise budget_error(self.text, "is below 0 at every length")

    @cached_property
    def _tree(self) -> ast.expr:
        if len(self.text) > _MAX_CHARACTERS:
            raise budget_error(self.text[:40] + "...", f"longer than {_MAX_CHARACTERS} characters")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return ast.parse(self.text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise budget_error(self.text, "not an expression") from error

    @property
    def names(self) -> frozenset[str]:
        """Those of `length`, `layer` and `layers` that the expression reads."""
        return frozenset(n.id for n in ast.walk(self._tree) if isinstance(n, ast.Name) and n.id in NAMES)

    def tokens(self, length: int, layer: int = 0, layers: int = 1) -> int:
        """Tokens one row may attend at a sequence `length`, at least 1.

        Raises:
            VortexError: `VF060`, if the expression is malformed or not finite there.
        """
        names = {"length": float(length), "layer": float(layer), "layers": float(layers)}
        try:
            value = self._evaluate(self._tree, names)
        except (ArithmeticError, ValueError, TypeError) as error:
            raise budget_error(self.text, f"{error} at length {length}") from error
        if not math.isfinite(value):
            raise budget_error(self.text, f"is {value} at length {length}")
        return max(1, math.ceil(value))

    def check_everywhere(self) -> None:
        """Raises `VF060` unless the budget is finite at every length to 2^20, and in every layer of models of 1, 2,
        32 and 64 if it asks for layers."""
        by_layer = self.names & {"layer", "layers"}
        counts = (1, 2, 32, 64) if by_layer else (1,)
        for layers in counts:
            for layer in range(layers):
                doubtful = doubtful_lengths(self._tree, layer, layers)
                if doubtful is None:
                    raise budget_error(
                        self.text, f"cannot be shown to be finite at every length to {MAX_LENGTH}"
                    )
                for length in doubtful:
                    self.tokens(length, layer, layers)

    def pages(self, length: int, page_size: int, layer: int = 0, layers: int = 1) -> int:
        """The same budget in pages, rounded up."""
        return -(-self.tokens(length, layer, layers) // page_size)

    def _evaluate(self, node: ast.expr, names: dict[str, float]) -> float:
        match node:
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                return float(value)
            case ast.Name(id=name) if name in names:
                return names[name]
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self._evaluate(operand, names)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                return _BINARY[type(op)](self._evaluate(left, names), self._evaluate(right, names))
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARE:
                return float(_COMPARE[type(op)](self._evaluate(left, names), self._evaluate(right, names)))
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self._evaluate(body if self._evaluate(test, names) else orelse, names)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in CALLS and args:
                return float(CALLS[name](*(self._evaluate(a, names) for a in args)))
        raise AssertionError(ast.dump(node))  # `_check` has seen it


def _check(node: ast.expr, text: str) -> None:
    """Raises `VF060` unless an expression and all its parts are of the kinds above."""
    parts: list[ast.expr]
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool) and _is_finite(
            value
        ):
            parts = []
        case ast.Name(id=name) if name in NAMES:
            parts = []
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            parts = [operand]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            parts = [left, right]
        case ast.Compare(left=left, ops=[compared], comparators=[right]) if type(compared) in _COMPARE:
            parts = [left, right]
        case ast.IfExp(test=test, body=body, orelse=orelse):
            parts = [test, body, orelse]
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in CALLS and args:
            parts = args
        case _:
            raise budget_error(text, f"{ast.unparse(node)!r} is not allowed; names are {', '.join(NAMES)}")
    for part in parts:
        _check(part, text)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False

"""Where an error happened in the author's syntax tree, and what may take its place."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Edit:
    """`text` takes the place of `node`."""

    node: ast.expr | ast.stmt | ast.keyword
    text: str


@dataclass(frozen=True)
class Place:
    """Where an error happened.

    Attributes:
        tree: the whole source; every node knows its `parent`.
        node: what was being computed, None if the tracer found the error afterwards.
        line: the line of the error.
        facts: what filled the templates of its message.
    """

    tree: ast.Module
    node: ast.AST | None
    line: int
    facts: Mapping[str, Any]

    def parents(self) -> Iterator[ast.AST]:
        """The node and what it is part of, innermost first."""
        node = self.node
        while node is not None:
            yield node
            node = getattr(node, "parent", None)

    @property
    def call(self) -> ast.Call | None:
        """The call being made, or whose function was looked up."""
        return next((n for n in self.parents() if isinstance(n, ast.Call)), None)

    def statements(self) -> list[ast.stmt]:
        """Statements that begin on the line."""
        return [n for n in ast.walk(self.tree) if isinstance(n, ast.stmt) and n.lineno == self.line]

    def calls(self, name: str) -> list[ast.Call]:
        """Every call of a function or method of this name."""
        found = [n for n in ast.walk(self.tree) if isinstance(n, ast.Call)]
        return [n for n in found if getattr(n.func, "attr", getattr(n.func, "id", "")) == name]


def text_of(node: ast.AST) -> str:
    """As the author wrote it; of what is new, as this project quotes."""
    source = getattr(node, "source", None)
    written = None if source is None else ast.get_source_segment(source, node)
    if written is not None and "\n" not in written:
        return written
    text = ast.unparse(node)
    return text if '"' in text else text.replace("'", '"')


def receiver(node: ast.expr) -> str:
    text = text_of(node)
    return text if isinstance(node, ast.Name | ast.Attribute | ast.Call | ast.Subscript) else f"({text})"


def changed(call: ast.Call, change: Callable[[ast.Call], None]) -> Edit:
    copied = ast.parse(ast.unparse(call), mode="eval").body
    assert isinstance(copied, ast.Call)
    change(copied)
    return Edit(call, text_of(copied))


def constant(value: object) -> ast.expr:
    return ast.parse(repr(value), mode="eval").body


def swapped(call: ast.Call, old: object, new: object) -> Edit | None:
    """The call with one literal for another, wherever among its arguments it stands."""
    for node in ast.walk(call):
        literal = node.value if isinstance(node, ast.Constant) else None
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            inner = node.operand
            literal = (
                -inner.value
                if isinstance(inner, ast.Constant) and isinstance(inner.value, int | float)
                else None
            )
        if literal is not None and type(literal) is type(old) and literal == old:
            assert isinstance(node, ast.expr)
            return Edit(node, repr(new).replace("'", '"'))
    return None


def close(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that was probably meant."""
    found = difflib.get_close_matches(name[:100], sorted(known), 1, cutoff)
    return found[0] if found else None


def dims_of(shown: str) -> list[tuple[str, str]]:
    """The dimensions of a type as messages show it, `(page, row=S, dim=D)`."""
    inside = shown[shown.index("(") + 1 : shown.rindex(")")] if "(" in shown else ""
    pairs = [item.strip().partition("=") for item in inside.split(",") if item.strip()]
    return [(name, extent) for name, _, extent in pairs]

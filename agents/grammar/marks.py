"""Constants that an author hands to the tuner: a line `Tune: 0.9 in [0.5, 0.99]; 4 in [1, 8]` in a flow's docstring.

It names numbers as the methods are written, each with the range it may be moved in. They are moved in the author's own
text, for the canonical program holds others (a score that only orders pages has no scale), and the line with them.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_LINE = re.compile(r"^([ \t]*)tune:(.*)$", re.IGNORECASE | re.MULTILINE)
_MARK = re.compile(rf"({_NUMBER})\s+in\s+\[\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\]")
_MOST = 16
_WIDE = 10.0  # a range of positive numbers this wide is walked by ratio


@dataclass(frozen=True)
class Mark:
    """A number and the range it may be moved in."""

    value: float
    low: float
    high: float

    def moved(self, at: float, whole: bool) -> Mark:
        """The same number at a point of its range, from 0 to 1."""
        if self.low > 0 and self.high / self.low >= _WIDE:
            value = self.low * (self.high / self.low) ** at
        else:
            value = self.low + (self.high - self.low) * at
        return replace(self, value=float(round(value)) if whole else float(f"{value:.4g}"))


def marks_of(doc: str) -> tuple[Mark, ...]:
    """The marks of a docstring, in the order written; ranges that are none are left out."""
    found = []
    for _, text in _LINE.findall(doc):
        for numbers in _MARK.findall(text):
            value, low, high = map(float, numbers)
            if math.isfinite(low) and math.isfinite(high) and low < high:
                found.append(Mark(value, low, high))
    return tuple(found[:_MOST])


def line_of(marks: Iterable[Mark]) -> str:
    """The marks as a line of a docstring."""
    return "Tune: " + "; ".join(f"{m.value:.10g} in [{m.low:.10g}, {m.high:.10g}]" for m in marks)


def retuned(source: str, point: Sequence[float]) -> tuple[str, str] | None:
    """A flow's text with its marked numbers moved to a point of the unit cube, and what was moved, in words.

    Args:
        point: one number in [0, 1] a mark that the methods hold, in order; those beyond mean nothing.

    Returns:
        None where nothing is marked, or the methods hold none of the numbers.
    """
    try:
        classes = [n for n in ast.parse(source).body if isinstance(n, ast.ClassDef)]
    except (SyntaxError, ValueError, RecursionError):
        return None
    flow = next((c for c in classes if marks_of(ast.get_docstring(c) or "")), None)
    if flow is None:
        return None
    literals = [
        node
        for method in flow.body
        if isinstance(method, ast.FunctionDef)
        for node in ast.walk(method)
        if isinstance(node, ast.Constant) and type(node.value) in (int, float)
    ]
    left = iter(point)
    edits: dict[ast.Constant, str] = {}
    marks: list[Mark] = []
    changes: list[str] = []
    for mark in marks_of(ast.get_docstring(flow) or ""):
        meant = [node for node in literals if node.value == mark.value and node not in edits]
        if meant:
            whole = all(type(node.value) is int for node in meant)
            old, mark = mark.value, mark.moved(next(left, 0.5), whole)
            text = str(int(mark.value)) if whole else repr(mark.value)
            edits |= dict.fromkeys(meant, text)
            changes.append(f"{old:g} -> {text}")
        marks.append(mark)
    if not edits:
        return None
    return _marked(_spliced(source, edits), flow, marks), f"marked constants tuned: {', '.join(changes)}"


def _spliced(source: str, edits: dict[ast.Constant, str]) -> str:
    lines = source.encode().splitlines(keepends=True)  # columns count bytes
    for node, text in sorted(edits.items(), key=lambda e: (-e[0].lineno, -e[0].col_offset)):
        row = lines[node.lineno - 1]
        lines[node.lineno - 1] = row[: node.col_offset] + text.encode() + row[node.end_col_offset :]
    return b"".join(lines).decode()


def _marked(source: str, flow: ast.ClassDef, marks: Sequence[Mark]) -> str:
    """The text with one line of marks where the docstring's first stood."""
    first, last = flow.body[0].lineno - 1, flow.body[0].end_lineno or 0
    lines = source.splitlines(keepends=True)
    said = "".join(lines[first:last])
    line = iter([line_of(marks)])
    said = _LINE.sub(lambda found: found[1] + next(line, ""), said)
    return "".join([*lines[:first], said, *lines[last:]])

"""A program's data flow as a picture: SVG text, drawn from the terms of its IR. No scripts, no colours of its own."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from vortex_core.ir.program import Program
from vortex_core.ir.terms import Term, account

_WIDE, _HIGH, _GAP_X, _GAP_Y = 118, 34, 34, 14
_NAMES = {"amax": "max", "amin": "min", "maximum": "larger of", "minimum": "smaller of", "mul": "times", "add": "plus",
          "sub": "minus", "div": "divided by", "q": "query", "k": "keys", "v": "values"}  # fmt: skip
_FITS = 21  # characters of the small text in a box
_MOST = 120  # values; a larger program is read, not looked at


def dataflow(program: Program, labels: Mapping[str, str] | None = None) -> str:
    """The picture, or nothing for a program of more values than one can look at."""
    found = account(program, labels)
    ends = [(f"keep {d.name}", d.term) for d in found.cache] + [
        (f"{d.name} for the next step", d.term) for d in found.index
    ]
    ends.append(("pages to read", found.selection))
    depth: dict[int, int] = {}
    terms: list[Term] = []

    def visit(term: Term) -> int:
        if id(term) not in depth:
            depth[id(term)] = 1 + max((visit(a) for a in term.args), default=-1)
            terms.append(term)
        return depth[id(term)]

    for _, term in ends:
        visit(term)
    if len(terms) > _MOST:
        return ""
    columns: dict[int, int] = {}
    place: dict[int, tuple[int, int]] = {}
    for term in terms:
        column = depth[id(term)]
        place[id(term)] = _at(column, columns)
    last = max(depth.values()) + 1
    boxes = [_box(place[id(t)], _label(t), _dims(t)) for t in terms]
    lines = [_line(place[id(a)], place[id(t)]) for t in terms for a in t.args]
    for words, term in ends:
        spot = _at(max(depth[id(term)] + 1, last), columns)
        boxes.append(_box(spot, words, "", end=True))
        lines.append(_line(place[id(term)], spot))
    width = (last + 1) * (_WIDE + _GAP_X)
    height = max(columns.values()) * (_HIGH + _GAP_Y) + 6
    return (
        f'<svg class="flow" role="img" aria-label="data flow of the program, {len(terms)} values" width="{width}" '
        f'height="{height}" viewBox="0 0 {width} {height}">{"".join(lines)}{"".join(boxes)}</svg>'
    )


def _at(column: int, columns: dict[int, int]) -> tuple[int, int]:
    row = columns.get(column, 0)
    columns[column] = row + 1
    return column * (_WIDE + _GAP_X) + 2, row * (_HIGH + _GAP_Y) + 2


def _label(term: Term) -> str:
    match term.op:
        case "const":
            return f"{term.attr['value']:.4g}"
        case "load" | "param":
            return str(term.attr["name"])
        case "extent":
            return f"size {term.attr['extent']}"
        case "sum" | "mean" | "amax" | "amin":
            return f"{_NAMES.get(term.op, term.op)} over {', '.join(term.attr['dims'])}"
        case "principal":
            return f"principal over {term.attr['over']}"
        case "softmax" | "cumsum" | "conv" | "maxpool" | "largest" | "slice" | "split" | "concat" | "rename":
            return f"{term.op} {term.attr['dim']}"
    return _NAMES.get(term.op, term.op)


def _dims(term: Term) -> str:
    return " × ".join(term.dims)


def _box(at: tuple[int, int], words: str, dims: str, *, end: bool = False) -> str:
    (x, y), middle = at, at[0] + _WIDE // 2
    shown = escape(words if len(words) <= 20 else words[:19] + "…")
    # Long dims are squeezed into the box, never cut.
    fit = f' textLength="{_WIDE - 8}" lengthAdjust="spacingAndGlyphs"' if len(dims) > _FITS else ""
    small = f'<text class="dims" x="{middle}" y="{y + 27}"{fit}>{escape(dims)}</text>' if dims else ""
    return (
        f'<g><title>{escape(words)}</title><rect class="{"end" if end else "op"}" x="{x}" y="{y}" width="{_WIDE}" '
        f'height="{_HIGH}" rx="5"/><text x="{middle}" y="{y + (15 if dims else 21)}">{shown}</text>{small}</g>'
    )


def _line(start: tuple[int, int], end: tuple[int, int]) -> str:
    x0, y0, x1, y1 = start[0] + _WIDE, start[1] + _HIGH // 2, end[0], end[1] + _HIGH // 2
    half = (x0 + x1) // 2
    return f'<path d="M{x0},{y0} C{half},{y0} {half},{y1} {x1},{y1}"/>'

"""A program as mathematics, generated from its IR: Unicode text for terminals, MathML for pages.

Both come from one walk, so they cannot disagree. Indices are the first letters of dimensions: `p` page, `h` query head,
`t` token of a page, `d` channel, `r` row. A value that is used more than once, or is long, gets a name of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape

from vortex_core.ir.program import Program
from vortex_core.ir.terms import LETTERS, Account, Definition, Term, account, uses

_LOGIC, _COMPARE, _SUM, _REDUCED, _TERM, _ATOM = range(6)
_LONG = 110  # characters of an expression that gets a name
_SHORT = 12  # of one that is written again instead
_SOURCES = (
    "q", "k", "v", "position", "pages", "length", "mass", "dense_mass", "rotary", "const", "extent", "iota", "load",
    "param",
)  # fmt: skip
_SIGNS = {"lt": "<", "le": "≤", "eq": "=", "and": "∧", "or": "∨"}
_WORDS = {"amax": "max", "amin": "min", "maximum": "max", "minimum": "min", "log": "ln", "sigmoid": "σ"}


@dataclass(frozen=True)
class Line:
    """One line of a formula, in both spellings; `stage` is when it is computed."""

    stage: str
    text: str
    mathml: str


def formula(program: Program, labels: Mapping[str, str] | None = None) -> list[Line]:
    """The lines of a program: its states, then what a decode step computes and selects.

    Args:
        program: any verified program; the canonical one gives the shortest lines.
        labels: what its states are called; by default their own names.
    """
    found: Account = account(program, labels)
    lines: list[Line] = []
    writer = _Writer(uses(*(d.term for d in found.cache)), "each completed page", lines)
    for definition in found.cache:
        writer.define(definition, "p")
    writer = _Writer(uses(found.selection, *(d.term for d in found.index)), "each decode step", lines)
    for definition in found.index:
        writer.define(definition, "p", next_step=True)
    writer.select(found.selection)
    return lines


@dataclass(frozen=True)
class _Part:
    text: str
    math: str
    level: int = _ATOM

    def at(self, level: int) -> _Part:
        if self.level >= level:
            return self
        return _Part(f"({self.text})", f"<mrow><mo>(</mo>{self.math}<mo>)</mo></mrow>")


def _letter(dim: str) -> str:
    return LETTERS.get(dim, dim)


def _indexed(name: str, dims: tuple[str, ...], first: str = "") -> _Part:
    letters = [*([first] if first else []), *(_letter(d) for d in dims)]
    symbol = f"<mi>{escape(name)}</mi>"
    if not letters:
        return _Part(name, symbol)
    below = "<mo>,</mo>".join(f"<mi>{escape(x)}</mi>" for x in letters)
    return _Part(f"{name}[{','.join(letters)}]", f"<msub>{symbol}<mrow>{below}</mrow></msub>")


def _op(sign: str) -> str:
    return f"<mo>{escape(sign)}</mo>"


def _number(value: float) -> _Part:
    if value <= -1e29:
        return _Part("-∞", "<mrow><mo>-</mo><mi>∞</mi></mrow>", _TERM)
    text = f"{value:.4g}"
    return _Part(text, f"<mn>{text}</mn>", _ATOM if value >= 0 else _TERM)


class _Writer:
    """Writes the terms of one stage; shared and long ones become lines of their own."""

    def __init__(self, counts: Counter[int], stage: str, lines: list[Line]) -> None:
        self.counts, self.stage, self.lines = counts, stage, lines
        self.names: dict[int, _Part] = {}

    def define(self, definition: Definition, page: str, *, next_step: bool = False) -> None:
        """`state[p, ...] = term`; what is assigned in a decode step is read in the next."""
        dims = tuple(d for d in definition.term.dims if d != "page")
        self._line(_indexed(definition.name + ("′" if next_step else ""), dims, page), definition.term)

    def select(self, term: Term) -> None:
        """`S = ...`: the pages a step attends."""
        self._line(_Part("S", "<mi>S</mi>"), term)

    def _line(self, left: _Part, term: Term) -> None:
        right = self._make(term)
        math = f'<math display="block"><mrow>{left.math}<mo>=</mo>{right.math}</mrow></math>'
        self.lines.append(Line(self.stage, f"{left.text} = {right.text}", math))

    def part(self, term: Term) -> _Part:
        """A term, by name where it has one."""
        if id(term) in self.names:
            return self.names[id(term)]
        made = self._make(term)
        shared = self.counts[id(term)] > 1 and len(made.text) > _SHORT
        if (shared or len(made.text) > _LONG) and term.op not in (
            *_SOURCES,
            "topk",
            "topp",
            "threshold",
            "refine",
            "residual",
        ):
            name = _indexed(f"x{len(self.names) + 1}", term.dims)
            self.names[id(term)] = name
            math = f'<math display="block"><mrow>{name.math}<mo>=</mo>{made.math}</mrow></math>'
            self.lines.append(Line(self.stage, f"{name.text} = {made.text}", math))
            return name
        return made

    def _make(self, term: Term) -> _Part:
        if term.op in _MAKERS:
            return _MAKERS[term.op](self, term)
        return self._call(_WORDS.get(term.op, term.op), *(self.part(a) for a in term.args))

    def _call(self, name: str, *parts: _Part) -> _Part:
        inner = "<mo>,</mo>".join(p.math for p in parts)
        math = f"<mrow><mi>{escape(name)}</mi><mo>(</mo>{inner}<mo>)</mo></mrow>"
        return _Part(f"{name}({', '.join(p.text for p in parts)})", math)

    def _source(self, term: Term) -> _Part:
        match term.op:
            case "const":
                return _number(term.attr["value"])
            case "extent":
                text = str(term.attr["extent"])
                return _Part(text, f"<mi>{escape(text)}</mi>", _ATOM if text.isalnum() else _TERM)
            case "position":
                return _Part("p", "<mi>p</mi>")
            case "iota":
                return _Part(_letter(term.attr["dim"]), f"<mi>{escape(_letter(term.attr['dim']))}</mi>")
            case "pages" | "length":
                name = {"pages": "P", "length": "L"}[term.op]
                return _Part(name, f"<mi>{name}</mi>")
            case "load" | "param":
                return _indexed(term.attr["name"], term.dims)
        return _indexed(term.op, term.dims)

    def _infix(self, term: Term) -> _Part:
        sign, level = {
            "add": ("+", _SUM), "sub": ("−", _SUM), "mul": ("·", _TERM), "lt": ("<", _COMPARE),
            "le": ("≤", _COMPARE), "eq": ("=", _COMPARE), "and": ("∧", _LOGIC), "or": ("∨", _LOGIC),
        }[term.op]  # fmt: skip
        left = self.part(term.args[0]).at(level)
        follows = {"add": _SUM, "mul": _REDUCED, "and": _LOGIC, "or": _COMPARE}.get(term.op, level + 1)
        right = self.part(term.args[1]).at(follows)
        return _Part(
            f"{left.text} {sign} {right.text}", f"<mrow>{left.math}{_op(sign)}{right.math}</mrow>", level
        )

    def _fraction(self, term: Term) -> _Part:
        over, under = (self.part(a) for a in term.args)
        text = f"{over.at(_TERM).text} / {under.at(_ATOM).text}"
        return _Part(text, f"<mfrac><mrow>{over.math}</mrow><mrow>{under.math}</mrow></mfrac>", _TERM)

    def _reduced(self, term: Term) -> _Part:
        dims = term.attr["dims"] if "dims" in term.attr else (term.attr["dim"],)
        letters = ",".join(_letter(d) for d in dims)
        sign = {"sum": "∑", "amax": "max", "amin": "min", "maxpool": "maxpool"}.get(term.op, term.op)
        inner = self.part(term.args[0]).at(_REDUCED)
        text = f"{sign}_{letters} {inner.text}"
        below = "<mo>,</mo>".join(f"<mi>{escape(_letter(d))}</mi>" for d in dims)
        math = f"<mrow><munder><mo>{escape(sign)}</mo><mrow>{below}</mrow></munder>{inner.math}</mrow>"
        return _Part(text, math, _REDUCED)

    def _conv(self, term: Term) -> _Part:
        weights = ", ".join(f"{w:.3g}" for w in term.attr["weights"])
        inner = self.part(term.args[0])
        letter = _letter(term.attr["dim"])
        text = f"[{weights}] ∗_{letter} {inner.at(_TERM).text}"
        return _Part(
            text,
            f"<mrow><mtext>[{escape(weights)}]</mtext><msub><mo>∗</mo><mi>{escape(letter)}</mi></msub>"
            f"{inner.at(_TERM).math}</mrow>",
            _TERM,
        )

    def _unary(self, term: Term) -> _Part:
        inner = self.part(term.args[0])
        match term.op:
            case "neg":
                part = inner.at(_TERM)
                return _Part(f"-{part.text}", f"<mrow><mo>-</mo>{part.math}</mrow>", _SUM)
            case "not":
                part = inner.at(_ATOM)
                return _Part(f"¬{part.text}", f"<mrow><mo>¬</mo>{part.math}</mrow>")
            case "exp":
                return _Part(f"exp({inner.text})", f"<msup><mi>e</mi><mrow>{inner.math}</mrow></msup>")
            case "sqrt":
                return _Part(f"√({inner.text})", f"<msqrt>{inner.math}</msqrt>")
            case "floor":
                return _Part(f"⌊{inner.text}⌋", f"<mrow><mo>⌊</mo>{inner.math}<mo>⌋</mo></mrow>")
        return _Part(f"|{inner.text}|", f"<mrow><mo>|</mo>{inner.math}<mo>|</mo></mrow>")

    def _shaped(self, term: Term) -> _Part:
        """What only names or cuts dimensions: the value with what was done to it written behind it."""
        a = term.attr
        match term.op:
            case "split":
                note = f"{_letter(a['dim'])} in {a['parts']} groups {_letter(a['into'])}"
            case "slice":
                note = f"{_letter(a['dim'])} = {a['start']}..{a['stop']}"
            case "channels":
                note = {"rope": "rotary", "nope": "unrotated"}.get(a["group"], a["group"])
            case "rename":
                note = f"{_letter(a['dim'])} → {_letter(a['to'])}"
            case "principal":
                note = f"the {a['rank']} leading directions over {_letter(a['over'])}, {_letter(a['into'])}"
            case "largest":
                note = f"the {a['k']} largest along {_letter(a['dim'])}"
            case _:
                note = str(a["dtype"])
        inner = self.part(term.args[0]).at(_ATOM)
        return _Part(f"{inner.text}⟨{note}⟩", f"<msub>{inner.math}<mtext>⟨{escape(note)}⟩</mtext></msub>")

    def _where(self, term: Term) -> _Part:
        mask, yes, no = (self.part(a) for a in term.args)
        text = f"{{{yes.text} if {mask.text}, else {no.text}}}"
        rows = (
            f"<mtr><mtd>{yes.math}</mtd><mtd><mtext>if </mtext>{mask.math}</mtd></mtr>"
            f"<mtr><mtd>{no.math}</mtd><mtd><mtext>else</mtext></mtd></mtr>"
        )
        return _Part(text, f"<mrow><mo>{{</mo><mtable>{rows}</mtable></mrow>")

    def _selected(self, term: Term) -> _Part:
        if term.op == "everything":
            return _Part("all pages", "<mtext>all pages</mtext>")
        if term.op == "residual":
            chosen, mass, value = self._make(term.args[0]), *map(self.part, term.args[1:])
            text = f"{chosen.text}, else exp({mass.text}) {value.at(_ATOM).text}"
            math = (
                f"{chosen.math}<mtext>, else </mtext><msup><mi>e</mi>{mass.math}</msup>{value.at(_ATOM).math}"
            )
            return _Part(text, f"<mrow>{math}</mrow>")
        if term.op == "union":
            left, right = (self._make(a) for a in term.args)
            return _Part(f"{left.text} ∪ {right.text}", f"<mrow>{left.math}<mo>∪</mo>{right.math}</mrow>")
        if term.op == "refine":
            coarse, fine = map(self.part, term.args)
            among, share = term.attr["candidates"], term.attr.get("fraction", 1.0)
            shown = "" if share == 1.0 else f"; fraction={share:g}"
            text = f"top-k_p({fine.text} among the {among} k best by {coarse.text}{shown})"
            math = (
                f"<munder><mtext>top-k</mtext><mi>p</mi></munder><mo>(</mo>{fine.math}<mtext> among the {among} k best "
                f"by </mtext>{coarse.math}<mtext>{escape(shown)}</mtext><mo>)</mo>"
            )
            return _Part(text, f"<mrow>{math}</mrow>")
        notes = [f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in sorted(term.attr.items())
                 if v is not None]  # fmt: skip
        name = {"topk": "top-k", "topp": "top-p", "threshold": "threshold"}[term.op]
        inner, shown = self.part(term.args[0]), f"; {', '.join(notes)}" if notes else ""
        math = (
            f"<mrow><munder><mi>{name}</mi><mi>p</mi></munder><mo>(</mo>{inner.math}"
            f"<mtext>{escape(shown)}</mtext><mo>)</mo></mrow>"
        )
        return _Part(f"{name}_p({inner.text}{shown})", math)


_MAKERS: dict[str, Callable[[_Writer, Term], _Part]] = {
    **dict.fromkeys(_SOURCES, _Writer._source),
    **dict.fromkeys(("add", "sub", "mul", "lt", "le", "eq", "and", "or"), _Writer._infix),
    **dict.fromkeys(("sum", "mean", "amax", "amin", "softmax", "cumsum", "maxpool"), _Writer._reduced),
    **dict.fromkeys(("neg", "not", "exp", "sqrt", "floor", "abs"), _Writer._unary),
    **dict.fromkeys(
        ("split", "slice", "channels", "rename", "cast", "largest", "principal"), _Writer._shaped
    ),
    **dict.fromkeys(
        ("topk", "topp", "threshold", "refine", "union", "residual", "everything"), _Writer._selected
    ),
    "div": _Writer._fraction,
    "where": _Writer._where,
    "conv": _Writer._conv,
}

"""From IR back to readable vFlow source that traces to the same hash."""

from __future__ import annotations

import json
import math
from array import array
from dataclasses import dataclass, field, fields

from vortex_core.flow.naming import class_name, docstring, state_labels
from vortex_core.ir import mistakes
from vortex_core.ir.graph import Graph, Node
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.lint import reachable
from vortex_core.ir.opset import OPS
from vortex_core.ir.params import ParamDecl
from vortex_core.ir.program import Program, StateDecl
from vortex_core.ir.types import Stage

__all__ = ["class_name", "emit", "state_labels"]
_ATOM, _POWER, _UNARY, _TERM, _SUM, _AND, _OR, _COMPARE = 9, 8, 7, 6, 5, 4, 3, 2
_METHODS = {name: name for name, spec in OPS.items() if spec.is_method}
_METHODS |= {"sum": "sum", "mean": "mean", "amax": "max", "amin": "min"}
_MAX_DEPTH = 12  # of nested expressions
_MAX_VALUES = 4096  # learned values written into source
_SHARED_LIMIT = 24  # a longer expression than this gets a name, for the reader's sake


def emit(program: Program, knobs: Knobs, name: str, doc: str, *, beside: bool = False) -> str:
    """Source of a flow.

    Args:
        program: canonical or not.
        knobs: settings; only those that differ from the defaults are written.
        name: registered name.
        doc: docstring, one line or more.
        beside: learned values stay out of the source; they come in a file of its name (`load.write_flow`).

    Raises:
        VortexError: `VF065`, if learned values are too many to write into source.
    """
    labels = state_labels(program)
    params = {p.name: p for p in program.params}
    out = [
        "from vortex_core import Knobs, ops, register, vFlow",
        "",
        "",
        f"@register({_literal(name)})",
    ]
    out += [f"class {class_name(name)}(vFlow):", *docstring(doc), ""]
    changed = [f for f in fields(Knobs) if getattr(knobs, f.name) != f.default]
    if changed:
        inside = ", ".join(f"{f.name}={_literal(getattr(knobs, f.name))}" for f in changed)
        out += [f"    knobs = Knobs({inside})", ""]
    if params and not beside:
        out += [
            "    params = {",
            *(f'        "{p.name}": {_nested(p)},' for p in program.params),
            "    }",
            "",
        ]
    if program.states:
        out += ["    def create_cache(self, page):", "        return {"]
        out += [f'            "{labels[s.name]}": {_state(s)},' for s in program.states]
        out += ["        }", ""]
    if program.cache.writes:
        writer = _Writer(program.cache, "cache", labels, params)
        writer.cut({i for _, i in program.cache.writes})
        roots = [(labels[n], i) for n, i in program.cache.writes]
        body = [f'            "{label}": {writer.text(i)},' for label, i in roots]
        out += [
            "    def forward_cache(self, page):",
            *writer.lines(),
            "        return {",
            *body,
            "        }",
            "",
        ]
    writer = _Writer(program.index, "index", labels, params)
    writer.keep_loads({n for n, _ in program.index.writes})
    assert program.index.result is not None
    writer.cut({program.index.result, *(i for _, i in program.index.writes)})
    updates = [f'        cache["{labels[n]}"] = {writer.text(i)}' for n, i in program.index.writes]
    last = f"        return {writer.text(program.index.result)}"  # before lines(): it may name more values
    out += ["    def forward_indexer(self, q, cache):", *writer.lines(), *updates, last, ""]
    return "\n".join(out)


def _state(s: StateDecl) -> str:
    args = [f"{n}={_extent(str(e))}" for n, e in s.stored]
    if s.dtype != "bf16":
        args.append(f'dtype="{s.dtype}"')
    if s.carried:
        args.append("carried=True")
    if s.of_request:
        args.append('scope="request"')
    if s.init:
        args.append(f"init={_number(s.init)}")
    return f"page.state({', '.join(args)})"


def _nested(p: ParamDecl) -> str:
    """The values as nested lists, each number as short as fp32 allows."""
    if len(p.values.numbers) > _MAX_VALUES:
        why = f"{len(p.values.numbers)} values, too many to write into source; keep them in a file beside it"
        raise mistakes.BAD_PARAM.error(name=p.name, why=why)
    level = [_shortest(v) for v in p.values.numbers]
    for size in reversed(p.values.shape):
        level = [f"[{', '.join(level[i : i + size])}]" for i in range(0, len(level), size)]
    return level[0]


def _shortest(value: float) -> str:
    """The fewest digits that read back as the same fp32 number."""
    if value == 0:
        return "-0.0" if math.copysign(1.0, value) < 0 else "0"  # -0 would read back as a whole number
    for digits in range(1, 9):
        text = f"{value:.{digits}g}"
        if array("f", [float(text)])[0] == value:
            return text
    return f"{value:.9g}"


def _extent(text: str) -> str:
    return {"D": "page.head_dim", "S": "page.size"}.get(text) or (text if text.isdigit() else f'"{text}"')


def _literal(value: object) -> str:
    """Python that reads back as `value`, text in double quotes where Python would write single ones."""
    return (
        json.dumps(value)
        if isinstance(value, str) and value.isascii() and value.isprintable()
        else repr(value)
    )


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e6 else repr(value)


@dataclass
class _Text:
    text: str
    level: int
    literal: bool = False

    def at(self, level: int) -> str:
        return self.text if self.level >= level else f"({self.text})"

    def receiver(self) -> str:
        return f"ops.constant({self.text})" if self.literal else self.at(_ATOM)

    def tensor(self, level: int) -> str:
        return f"ops.constant({self.text})" if self.literal else self.at(level)


@dataclass
class _Writer:
    """Writes one graph's expressions; values used more than once get a local name."""

    graph: Graph
    stage: Stage
    labels: dict[str, str]
    params: dict[str, ParamDecl]
    assigned: list[str] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    deep: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.uses = [0] * len(self.graph.nodes)
        for node in self.graph.nodes:
            for i in node.inputs:
                self.uses[i] += 1
        for _, i in self.graph.writes:
            self.uses[i] += 1

    def keep_loads(self, states: set[str]) -> None:
        """Name the old values of states that are assigned, because reading them later gives the new ones."""
        for i, node in enumerate(self.graph.nodes):
            if node.op == "load" and node.attr["name"] in states:
                label = self.labels[node.attr["name"]]
                self.names[i] = f"{label}_before"
                self.assigned.append(f'{self.names[i]} = cache["{label}"]')

    def cut(self, roots: set[int]) -> None:
        """Name values at regular depths, so that no expression nests deeply."""
        live = set().union(*(reachable(self.graph, i) for i in roots))
        depth: dict[int, int] = {}
        for i in sorted(live):
            inner = self.graph.nodes[i].inputs
            depth[i] = 1 + max((depth[j] for j in inner), default=-1)
            if depth[i] > _MAX_DEPTH:
                depth[i] = 0
                self.deep.add(i)
                self._expr(i)

    def lines(self) -> list[str]:
        return [f"        {line}" for line in self.assigned]

    def text(self, i: int) -> str:
        return self._expr(i).text

    def _expr(self, i: int) -> _Text:
        if i in self.names:
            return _Text(self.names[i], _ATOM)
        node = self.graph.nodes[i]
        made = self._make(node)
        shared = self.uses[i] > 1 and node.spec.group != "source"
        long = len(made.text) > 4 * _SHARED_LIMIT and node.type.kind != "selection"
        if (shared or long or i in self.deep) and not made.literal:
            self.names[i] = f"x{len(self.names) + 1}"
            self.assigned.append(f"{self.names[i]} = {made.text}")
            return _Text(self.names[i], _ATOM)
        return made

    def _args(self, node: Node) -> list[_Text]:
        return [self._expr(i) for i in node.inputs]

    def _make(self, node: Node) -> _Text:
        a = node.attr
        match node.op:
            case "q":
                return _Text("q", _ATOM)
            case "k" | "v":
                return _Text(f"page.{node.op}", _ATOM)
            case "load":
                return _Text(f'cache["{self.labels[a["name"]]}"]', _ATOM)
            case "position" | "pages" | "length" | "mass" | "dense_mass" | "rotary" | "everything":
                return _Text(f"ops.{node.op}()", _ATOM)
            case "param":
                axes = [f"{n}={_quoted(str(e))}" for n, e in self.params[a["name"]].axes]
                return _Text(f"ops.param({', '.join([_literal(a['name']), *axes])})", _ATOM)
            case "const":
                text = _number(a["value"])
                return _Text(text, _UNARY if text.startswith("-") else _ATOM, literal=True)
            case "extent":
                return _Text(f'ops.size("{a["extent"]}")', _ATOM)
            case "iota":
                size = _extent(a["extent"]) if self.stage == "cache" else _quoted(a["extent"])
                return _Text(f"ops.arange({a['dim']}={size})", _ATOM)
            case "mul":
                return self._product(node)
            case "add":
                return self._sum(node)
            case "sub" | "div" | "lt" | "le" | "eq" | "and" | "or":
                return self._infix(node)
            case "neg":
                return _Text(f"-{self._args(node)[0].tensor(_UNARY)}", _UNARY)
            case "not":
                return _Text(f"~{self._args(node)[0].at(_UNARY)}", _UNARY)
            case "concat":
                left, right = self._args(node)
                return _Text(f'ops.concat([{left.tensor(0)}, {right.tensor(0)}], "{a["dim"]}")', _ATOM)
            case "maximum" | "minimum" | "where":
                args = self._args(node)
                if node.op != "where" and all(x.literal for x in args):
                    args[0] = _Text(args[0].receiver(), _ATOM)
                return _Text(f"ops.{node.op}({', '.join(x.text for x in args)})", _ATOM)
            case "union":
                left, right = self._args(node)
                return _Text(f"{left.at(_OR)} | {right.at(_OR + 1)}", _OR)
            case "residual":
                chosen, mass, value = self._args(node)
                return _Text(f"{chosen.receiver()}.residual({mass.tensor(0)}, {value.text})", _ATOM)
            case "refine":
                coarse, fine = self._args(node)
                extra = [f"{k}={_literal(v)}" for k, v in node.attrs]
                return _Text(f"ops.refine({', '.join([coarse.tensor(0), fine.tensor(0), *extra])})", _ATOM)
            case "topk" | "topp" | "threshold":
                extra = [f"{k}={_literal(v)}" for k, v in node.attrs if v is not None]
                (score,) = self._args(node)
                return _Text(f"ops.{node.op}({', '.join([score.tensor(0), *extra])})", _ATOM)
        return self._method(node)

    def _method(self, node: Node) -> _Text:
        a = node.attr
        receiver = self._args(node)[0].receiver()
        match node.op:
            case "sum" | "mean" | "amax" | "amin":
                call = f"{_METHODS[node.op]}({_dims(a['dims'])})"
            case "softmax" | "cumsum":
                call = f'{node.op}("{a["dim"]}")'
            case "conv":
                weights = ", ".join(_number(w) for w in a["weights"])
                call = f'conv([{weights}], "{a["dim"]}")'
            case "maxpool":
                call = f'maxpool({a["size"]}, "{a["dim"]}")'
            case "largest":
                call = f'largest({a["k"]}, "{a["dim"]}")'
            case "principal":
                call = f'principal("{a["over"]}", "{a["dim"]}", {a["into"]}={a["rank"]})'
            case "slice":
                call = f'slice("{a["dim"]}", {_quoted(a["start"])}, {_quoted(a["stop"])})'
            case "channels":
                call = f'channels("{a["group"]}")'
            case "split":
                call = f'split("{a["dim"]}", {a["into"]}={_quoted(a["parts"])})'
            case "rename":
                call = f'rename({a["dim"]}="{a["to"]}")'
            case "cast":
                call = f'to("{a["dtype"]}")'
            case _:
                call = f"{_METHODS[node.op]}()"
        return _Text(f"{receiver}.{call}", _ATOM)

    def _infix(self, node: Node) -> _Text:
        symbol, level = {
            "sub": ("-", _SUM), "div": ("/", _TERM), "and": ("&", _AND), "or": ("|", _OR),
            "lt": ("<", _COMPARE), "le": ("<=", _COMPARE), "eq": ("==", _COMPARE),
        }[node.op]  # fmt: skip
        left, right = self._args(node)
        if left.literal and right.literal:
            left = _Text(left.receiver(), _ATOM)
        return _Text(f"{left.at(level)} {symbol} {right.at(level + 1)}", level)

    def _chain(self, node: Node) -> list[int]:
        """Operands of a chain of the same operator, flattened where the inner links are used once."""
        found: list[int] = []
        stack = list(reversed(node.inputs))
        while stack:
            i = stack.pop()
            inner = self.graph.nodes[i]
            if inner.op == node.op and self.uses[i] == 1 and i not in self.names:
                stack += reversed(inner.inputs)
            else:
                found.append(i)
        return found

    def _sum(self, node: Node) -> _Text:
        positive, negative = [], []
        for i in self._chain(node):
            term = self._expr(i)
            if term.text.startswith("-") and term.level <= _UNARY and not term.literal:
                negative.append(_Text(term.text[1:], _TERM if term.level == _TERM else _UNARY))
            elif term.literal and term.text.startswith("-"):
                negative.append(_Text(term.text[1:], _ATOM, literal=True))
            else:
                positive.append(term)
        if not positive:
            first = negative.pop(0)
            positive = [_Text(f"-{first.at(_UNARY)}", _UNARY)]
        positive.sort(key=lambda t: t.literal)  # a number first would need no tensor on its left
        if len(positive) + len(negative) > 1 and all(t.literal for t in (*positive, *negative)):
            positive[0] = _Text(positive[0].receiver(), _ATOM)
        text = " + ".join(t.at(_SUM) for t in positive) + "".join(f" - {t.at(_SUM + 1)}" for t in negative)
        return _Text(text, _SUM if len(positive) + len(negative) > 1 else positive[0].level)

    def _product(self, node: Node) -> _Text:
        parts = self._chain(node)
        value = 1.0
        over: list[int] = []  # what divides
        rest: list[int] = []
        for i in parts:
            inner = self.graph.nodes[i]
            if inner.op == "const":
                value *= inner.attr["value"]
            elif inner.op == "div" and self._is_one(inner.inputs[0]) and self.uses[i] == 1:
                over.append(inner.inputs[1])
            else:
                rest.append(i)
        factors = []
        for i in rest:
            inner = self.graph.nodes[i]
            if (
                inner.op == "sum"
                and over
                and self.uses[i] == 1
                and (left := self._mean_counts(inner, over)) is not None
            ):
                over = left
                factors.append(
                    _Text(
                        f"{self._expr(inner.inputs[0]).receiver()}.mean({_dims(inner.attr['dims'])})", _ATOM
                    )
                )
            else:
                factors.append(self._expr(i))
        if not factors:  # numbers only, or nothing but divisors
            factors, value = [_Text(f"ops.constant({_number(value)})", _ATOM)], 1.0
        text = " * ".join(f.at(_TERM if n == 0 else _TERM + 1) for n, f in enumerate(factors))
        text += "".join(f" / {self._expr(i).at(_TERM + 1)}" for i in over)
        level = _TERM if len(factors) + len(over) > 1 else factors[0].level if factors else _ATOM
        if value == 1.0:
            return _Text(text, level)
        if value == -1.0:
            return _Text(f"-{text if level >= _TERM else f'({text})'}", _TERM if level == _TERM else _UNARY)
        shown = text if level >= _TERM else f"({text})"
        return _Text(f"{_number(value)} * {shown}", _TERM)

    def _is_one(self, i: int) -> bool:
        node = self.graph.nodes[i]
        return node.op == "const" and node.attr["value"] == 1.0

    def _mean_counts(self, node: Node, over: list[int]) -> list[int] | None:
        """What is left of `over` when this sum becomes a mean, or None if its counts are not all there."""
        source = self.graph.nodes[node.inputs[0]].type
        left = list(over)
        for dim in node.attr["dims"]:
            extent = str(source.extent(dim))
            match_ = next(
                (
                    i
                    for i in left
                    if ((n := self.graph.nodes[i]).op == "pages" and dim == "page")
                    or (n.op == "extent" and dim != "page" and n.attr["extent"] == extent)
                ),
                None,
            )
            if match_ is None:
                return None
            left.remove(match_)
        return left


def _dims(dims: tuple[str, ...]) -> str:
    return ", ".join(f'"{d}"' for d in dims)


def _quoted(value: int | str) -> str:
    text = str(value)
    return text if text.isdigit() else f'"{text}"'

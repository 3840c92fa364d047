"""A flow written as a vortex_torch program, where that system can say it.

What is written is read back by this package's reader, and handed out only if it is the same program by hash and reads
the same pages at every length; so a doubt about an operator ends as a reason, never as a wrong program.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from vortex_core.errors import VortexError
from vortex_core.flow.naming import class_name, state_labels
from vortex_core.ir import mistakes
from vortex_core.ir.flow import Flow
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.terms import Term, account

_DTYPES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
    "fp8_e4m3": "fp8_e4m3",
    "fp8_e5m2": "fp8_e5m2",
}
_REDUCE = {"sum": "Sum", "mean": "Mean", "amax": "Max", "amin": "Min"}
_BINARY = {"mul": "Multiply", "maximum": "Maximum", "minimum": "Minimum"}
_LENGTHS = (1, 17, 200, 511, 1024, 4097, 30_000, 131_072, 1_000_000)


class Inexpressible(Exception):  # noqa: N818 - a reason, not a failure
    """What the other system has no operator for."""


@dataclass(frozen=True)
class Written:
    """A vortex_torch program and its JSON settings."""

    source: str
    settings: dict[str, Any]


def write(flow: Flow) -> Written:
    """The program in vortex_torch's dialect.

    Raises:
        VortexError: `VF081`, with what it cannot say.
    """
    try:
        settings = _settings(flow)
        source = _Writer(flow).text(settings["vortex_module_name"])
    except Inexpressible as reason:
        raise _no_equivalent(flow, str(reason)) from None
    written = Written(source, settings)
    _read_back(flow, written)
    return written


def _no_equivalent(flow: Flow, why: str) -> VortexError:
    return mistakes.DIALECT_NO_EQUIVALENT.error(
        what=f"{flow.name} as a vortex_torch program",
        why=why,
        remedy="serve it with the plug-in of this project",
    )


def _read_back(flow: Flow, written: Written) -> None:
    from vortex_core.dialects import convert

    try:
        found = convert(written.source, written.settings)
    except VortexError as error:
        raise _no_equivalent(flow, f"its reader refuses what would be written ({error.message})") from error
    if found.ir_hash != flow.ir_hash:
        raise _no_equivalent(flow, "what would be written means another program there")
    for length in _LENGTHS:
        if found.knobs.pages(length) != flow.knobs.pages(length):
            raise _no_equivalent(
                flow, f"its budget {flow.knobs.budget!r} is another one there at {length} tokens"
            )


def _settings(flow: Flow) -> dict[str, Any]:
    knobs = flow.knobs
    if knobs.reuse_steps != 1 or knobs.reuse_layers != 1:
        raise Inexpressible("a selection is not reused there over steps or layers")
    dtypes = {s.dtype for s in flow.program.states} or {"bf16"}
    if len(dtypes) > 1 or not dtypes <= _DTYPES.keys():
        raise Inexpressible(
            f"page states are of one floating-point type there, not {', '.join(sorted(dtypes))}"
        )
    return {
        "vortex_module_name": re.sub(r"[^a-z0-9_]", "_", flow.name.lower()) or "flow",
        "vortex_block_size": knobs.page_size,
        "vortex_block_reserved_bos": knobs.keep_first,
        "vortex_block_reserved_eos": knobs.keep_last,
        "vortex_layers_skip": list(knobs.dense_layers),
        "vortex_dtype": _DTYPES[dtypes.pop()],
        "kv_cache_dtype": knobs.kv_dtype,
        **_budget(knobs),
    }


def _budget(knobs: Knobs) -> dict[str, Any]:
    kept = knobs.keep_first + knobs.keep_last
    if knobs.budget.isdigit():
        return {"vortex_topk_val": max(0, -(-int(knobs.budget) // knobs.page_size) - kept)}
    match = re.fullmatch(r"max\((\d+), (?:length / (\d+)|([\d.]+) \* length)\)", knobs.budget)
    if match is None:
        raise Inexpressible(
            f"the budget {knobs.budget!r} is neither a number nor a number or a share of the length"
        )
    share = 1 / int(match[2]) if match[2] else float(match[3])
    return {
        "vortex_topk_val": max(0, -(-int(match[1]) // knobs.page_size) - kept),
        "vortex_topk_ratio": share,
    }


@dataclass
class _Value:
    """An expression of that language with the dimension on each inner axis."""

    text: str
    first: str = ""
    second: str = ""


@dataclass
class _Writer:
    """Writes the methods; each operator is an object of its own, made in `__init__` and called once."""

    flow: Flow
    init: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    used: dict[str, set[str]] = field(default_factory=lambda: {"cache": set(), "indexer": set()})
    stage: str = "cache"
    made: dict[int, _Value] = field(default_factory=dict)

    def text(self, name: str) -> str:
        """The whole program."""
        program = self.flow.program
        if program.params or any(s.carried for s in program.states) or program.needs_mass:
            raise Inexpressible(
                "learned values, carried states and attention mass are not written there by this project"
            )
        labels = state_labels(program)
        found = account(program, labels)
        fields = ", ".join(f'"{labels[s.name]}": {_shape(s.dims)}' for s in program.states)
        for definition in found.cache:
            self._last(definition.term, f'cache["{definition.name}"]')
        cache, self.lines, self.stage, self.made = self.lines, [], "indexer", {}
        selection = found.selection
        if selection.op != "topk" or any(v is not None for v in selection.attr.values()):
            raise Inexpressible("only a top-k within the whole budget is written there")
        score = self._value(selection.args[0])
        if score.first or score.second:
            raise Inexpressible("pages are scored for every query head")
        self.lines.append(f"self.{self._operator('topK', '')}({score.text}, o, ctx=ctx)")
        imports = "".join(
            f"from vortex_torch.{half} import {', '.join(f'{n} as {half[0].upper()}{n}' for n in sorted(names))}\n"
            for half, names in self.used.items()
            if names
        )
        return (
            f"from vortex_torch.flow import register, vFlow\n{imports}\n\n"
            f'@register("{name}")\nclass {class_name(name)}(vFlow):\n'
            f"    def __init__(self):\n        super().__init__()\n{_body(self.init)}\n\n"
            f"    def create_cache(self, block_size, head_dim):\n        return {{{fields}}}\n\n"
            f"    def forward_cache(self, cache, loc, ctx):\n{_body(cache)}\n\n"
            f"    def forward_indexer(self, q, o, cache, ctx):\n{_body(self.lines)}\n"
        )

    def _operator(self, name: str, arguments: str) -> str:
        self.used[self.stage].add(name)
        self.init.append(f"self.op{len(self.init)} = {self.stage[0].upper()}{name}({arguments})")
        return f"op{len(self.init) - 1}"

    def _call(self, name: str, arguments: str, *inputs: str) -> str:
        """A call, kept under a name of its own: a value may be read more than once."""
        where = "loc=loc, ctx=ctx" if self.stage == "cache" else "ctx=ctx"
        variable = f"x{len(self.init)}"
        self.lines.append(
            f"{variable} = self.{self._operator(name, arguments)}({', '.join(inputs)}, {where})"
        )
        return variable

    def _last(self, term: Term, target: str) -> None:
        """The last operator of forward_cache writes into its field."""
        self._value(term)
        if not self.lines or term.op in ("k", "v"):
            raise Inexpressible("a field that is the keys themselves")
        variable, _, call = self.lines[-1].partition(" = ")
        if self.made[id(term)].text != variable:
            raise Inexpressible("two fields that are the same value")
        self.lines[-1] = call.replace(", loc=loc", f", {target}, loc=loc", 1)

    def _value(self, term: Term) -> _Value:
        if id(term) not in self.made:
            self.made[id(term)] = self._make(term)
        return self.made[id(term)]

    def _make(self, term: Term) -> _Value:
        match term.op:
            case "q":
                return _Value("q", "head", "dim")
            case "k" | "v":
                return _Value(f'cache["{term.op}"]', "token", "dim")
            case "load":
                return _Value(f'cache["{term.attr["name"]}"]', *_axes(term.dims))
            case "sum" if (
                self.stage == "indexer" and term.attr["dims"] == ("dim",) and term.args[0].op == "mul"
            ):
                return self._contraction(term)
            case "sum" | "mean" | "amax" | "amin":
                return self._reduced(term)
            case "mul" | "maximum" | "minimum":
                return self._binary(term, _BINARY[term.op], "")
            case "add":
                return self._sum(term, 1.0)
            case "sub":
                return self._sum(term, -1.0)
            case "softmax" if term.attr["dim"] == "page" and self.stage == "indexer":
                value = self._value(term.args[0])
                return _Value(self._call("Softmax", "dim=0", value.text), value.first, value.second)
            case "neg":
                return self._affine(term.args[0], 0.0, -1.0)
            case "abs" | "exp" | "log":
                value = self._value(term.args[0])
                return _Value(self._call(term.op.title(), "", value.text), value.first, value.second)
        raise Inexpressible(f"it has no operator for {term.op}, as it stands here")

    def _affine(self, term: Term, alpha: float, beta: float) -> _Value:
        value = self._value(term)
        text = self._call("Add_Mul", f"alpha={alpha!r}, beta={beta!r}", value.text)
        return _Value(text, value.first, value.second)

    def _sum(self, term: Term, sign: float) -> _Value:
        left, right = term.args
        if right.op == "const":
            return self._affine(left, sign * right.attr["value"], 1.0)
        return self._binary(term, "Add", f"alpha=1.0, beta={sign}")

    def _binary(self, term: Term, name: str, arguments: str) -> _Value:
        left, right = term.args
        if name == "Multiply":
            for constant, other in ((left, right), (right, left)):
                if constant.op == "const":
                    return self._affine(other, 0.0, constant.attr["value"])
        a, b = self._value(left), self._value(right)
        for here, there in ((a.first, b.first), (a.second, b.second)):
            if here and there and here != there:
                raise Inexpressible(f"the dimensions {here} and {there} stand on one axis")
        return _Value(self._call(name, arguments, a.text, b.text), a.first or b.first, a.second or b.second)

    def _contraction(self, term: Term) -> _Value:
        """sum over channels of a product: `GeMM(x, y) = y x^T` for every page."""
        left, right = term.args[0].args
        if "page" in left.dims and "page" not in right.dims:
            left, right = right, left
        a, b = self._value(left), self._value(right)
        if a.second != "dim" or b.second != "dim" or (a.first and a.first == b.first):
            return self._reduced(term)
        return _Value(self._call("GeMM", "", a.text, b.text), b.first, a.first)

    def _reduced(self, term: Term) -> _Value:
        inner, name = term.args[0], _REDUCE[term.op]
        if inner.op == "split" and term.attr["dims"] == ("token",) and inner.attr["dim"] == "token":
            return self._interleaved(term, inner, name)
        value = self._value(inner)
        for dim in term.attr["dims"]:
            if dim == "page" and self.stage == "indexer":
                value = _Value(self._call(name, "dim=0", value.text), value.first, value.second)
            elif dim == value.first:
                value = _Value(self._call(name, "dim=1", value.text), "", value.second)
            elif dim == value.second:
                value = _Value(self._call(name, "dim=2", value.text), value.first, "")
            else:
                raise Inexpressible(f"{term.op} over {dim}")
        return value

    def _interleaved(self, term: Term, inner: Term, name: str) -> _Value:
        parts = inner.attr["parts"]
        size = self.flow.knobs.page_size
        if name == "Sum" or not isinstance(parts, int) or size % parts:
            raise Inexpressible("tokens of a page in groups of that kind")
        value = self._value(inner.args[0])
        text = self._call(f"{name}Interleave", f"dim=1, k={size // parts}", value.text)
        return _Value(text, inner.attr["into"], value.second)


def _body(lines: list[str]) -> str:
    return "\n".join(f"        {line}" for line in lines) or "        pass"


def _axes(dims: tuple[str, ...]) -> tuple[str, str]:
    """Where the dimensions of a state stand: at most one in front of the channels."""
    inner = [d for d in dims if d != "page"]
    second = [d for d in inner if d == "dim"]
    first = [d for d in inner if d != "dim"]
    if len(first) > 1:
        raise Inexpressible(f"a page state of dimensions {', '.join(inner)}")
    return (first[0] if first else ""), (second[0] if second else "")


def _shape(dims: tuple[tuple[str, Any], ...]) -> str:
    sizes = {"D": "head_dim", "S": "block_size"}
    first, second = _axes(tuple(n for n, _ in dims))
    extents = {n: str(e) for n, e in dims}

    def size(name: str) -> str:
        if not name:
            return "1"
        text = extents[name]
        symbol, over, parts = text.partition("/")
        if text.isdigit():
            return text
        if symbol in sizes and (not over or parts.isdigit()):
            return f"{sizes[symbol]} // {parts}" if over else sizes[symbol]
        raise Inexpressible(f"a page state of size {text}")

    return f"({size(first)}, {size(second)})"

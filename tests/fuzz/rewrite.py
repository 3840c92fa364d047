"""Random equivalent rewrites of a program, written without looking at the canonicaliser.

Every rewrite holds for all real inputs, undefined values included; those that hold for finite scores only are made
where the program has no operator that can leave the finite numbers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vortex_core.errors import VortexError
from vortex_core.ir.graph import Graph, GraphBuilder, Node
from vortex_core.ir.program import Program, StateDecl

_MAY_BE_UNDEFINED = {"div", "log", "sqrt"}
_POWERS_OF_TWO = (0.25, 0.5, 2.0, 4.0)  # exact, so that only the shape of the program changes


def rewrite(program: Program, rng: random.Random) -> Program | None:
    """An equivalent program, or None where the rewrites outgrew the size limit."""
    finite = not any(n.op in _MAY_BE_UNDEFINED for g in (program.cache, program.index) for n in g.nodes)
    names = [s.name for s in program.states]
    renamed = dict(zip(names, rng.sample([f"z{i}" for i in range(40)], len(names)), strict=True))
    states = [replace(s, name=renamed[s.name]) for s in program.states]
    try:
        cache, cache_writes, _ = _Rewriter(program.cache, "cache", rng, finite, renamed).run()
        index, index_writes, result = _Rewriter(program.index, "index", rng, finite, renamed).run()
        if rng.random() < 0.3:  # a state nobody reads
            states.append(StateDecl("dead", (), "fp32"))
            cache_writes["dead"] = cache.emit("const", value=3.0)
        if rng.random() < 0.2:
            states.append(StateDecl("idle", (), "fp32", True, 1.0))
            old = index.emit("load", name="idle", dims=())
            index_writes["idle"] = index.emit("add", [old, index.emit("const", value=1.0)])
        rng.shuffle(states)
        return Program(tuple(states), cache.graph(cache_writes), index.graph(index_writes, result))
    except VortexError as error:
        if error.code != "VF008":
            raise
        return None


class _Rewriter:
    def __init__(
        self, graph: Graph, stage: Any, rng: random.Random, finite: bool, names: dict[str, str]
    ) -> None:
        self.graph, self.rng, self.finite, self.names = graph, rng, finite, names
        self.out = GraphBuilder(stage)
        self.done: dict[int, int] = {}

    def run(self) -> tuple[GraphBuilder, dict[str, int], int | None]:
        for i, node in enumerate(self.graph.nodes):
            self.done[i] = self.node(node)
        writes = {self.names[name]: self.done[i] for name, i in self.graph.writes}
        result = None if self.graph.result is None else self.done[self.graph.result]
        return self.out, writes, result

    def maybe(self, chance: float = 0.25) -> bool:
        return self.rng.random() < chance

    def emit(self, op: str, inputs: Sequence[int] = (), **attrs: Any) -> int:
        return self.out.emit(op, inputs, **attrs)

    def const(self, value: float) -> int:
        return self.emit("const", value=value)

    def node(self, node: Node) -> int:
        made = self.translate(node, [self.done[i] for i in node.inputs])
        if self.maybe(0.08):  # computed twice
            self.translate(node, [self.done[i] for i in node.inputs])
        if node.type.kind == "float" and self.maybe(0.12):
            made = self.disguise(made)
        if node.type.kind == "bool" and self.maybe(0.12):
            made = self.emit("not", [self.emit("not", [made])])
        return made

    def disguise(self, x: int) -> int:
        match self.rng.randrange(4):
            case 0:
                return self.emit("neg", [self.emit("neg", [x])])
            case 1:
                return self.emit("maximum", [x, x])
            case 2:
                c = self.rng.choice(_POWERS_OF_TWO)
                return self.emit("mul", [self.const(1 / c), self.emit("mul", [x, self.const(c)])])
            case _:
                return self.emit("add", [x, self.const(0.0)])

    def translate(self, node: Node, args: list[int]) -> int:
        attrs = dict(node.attrs)
        if node.op == "load":
            attrs["name"] = self.names[attrs["name"]]
        match node.op:
            case "add" | "mul" | "maximum" | "minimum" | "eq" | "and" | "or" | "union":
                return self.commuting(node.op, args)
            case "sub" if self.maybe():
                return self.emit("add", [args[0], self.emit("neg", [args[1]])])
            case "neg" if self.maybe():
                return self.emit("mul", [args[0], self.const(-1.0)])
            case "div" if self.maybe():
                return self.emit("mul", [args[0], self.emit("div", [self.const(1.0), args[1]])])
            case "abs" if self.maybe():
                return self.emit("abs", [self.emit("neg", args)])
            case "where" if self.maybe():
                return self.emit("where", [self.emit("not", [args[0]]), args[2], args[1]])
            case "mean" if self.maybe():
                return self.mean(args[0], attrs["dims"])
            case "sum" | "amax" | "amin":
                return self.reduction(node.op, args[0], attrs["dims"])
            case "topk":
                return self.emit("topk", [self.monotone(args[0], attrs)], **attrs)
        return self.emit(node.op, args, **attrs)

    def commuting(self, op: str, args: list[int]) -> int:
        a, b = args if self.maybe(0.5) else args[::-1]
        left = self.out.nodes[a]
        if left.op == op and op != "eq" and self.maybe(0.5):  # (x + y) + b = x + (y + b)
            x, y = left.inputs
            return self.emit(op, [x, self.emit(op, [y, b])])
        if op == "mul" and left.op == "const" and self.out.nodes[b].op == "add" and self.maybe(0.5):
            x, y = self.out.nodes[b].inputs
            return self.emit("add", [self.emit("mul", [a, x]), self.emit("mul", [y, a])])
        if op in ("maximum", "minimum") and self.maybe(0.2):
            other = "minimum" if op == "maximum" else "maximum"
            return self.emit("neg", [self.emit(other, [self.emit("neg", [a]), self.emit("neg", [b])])])
        return self.emit(op, [a, b])

    def mean(self, x: int, dims: tuple[str, ...]) -> int:
        total = self.reduction("sum", x, dims)
        for dim in dims:
            extent = self.out.nodes[x].type.extent(dim)
            if dim == "page":
                count = self.emit("pages")
            elif extent.symbol:
                count = self.emit("extent", extent=str(extent))
            else:
                count = self.const(float(extent.factor))
            total = self.emit("div", [total, count])
        return total

    def reduction(self, op: str, x: int, dims: tuple[str, ...]) -> int:
        inner = self.out.nodes[x]
        if inner.op == op and self.maybe():
            return self.emit(op, [inner.inputs[0]], dims=tuple(sorted({*dims, *inner.attr["dims"]})))
        if len(dims) > 1 and self.maybe():
            order = self.rng.sample(dims, len(dims))
            for dim in order:
                x = self.emit(op, [x], dims=(dim,))
            return x
        if op != "sum" and self.maybe(0.2):
            other = "amin" if op == "amax" else "amax"
            return self.emit("neg", [self.emit(other, [self.emit("neg", [x])], dims=dims)])
        if self.maybe(0.2):
            c = self.rng.choice(_POWERS_OF_TWO)
            scaled = self.emit("mul", [self.const(c), x])
            return self.emit("mul", [self.emit(op, [scaled], dims=dims), self.const(1 / c)])
        return self.emit(op, [x], dims=dims)

    def monotone(self, score: int, attrs: dict[str, Any]) -> int:
        """Work before a top-k that keeps the order of the pages."""
        share, dims = attrs.get("share"), self.out.nodes[score].type.names
        for _ in range(self.rng.choice((0, 0, 1, 2))):
            match self.rng.randrange(5):
                case 0:
                    score = self.emit("mul", [score, self.const(self.rng.choice((3.0, 0.1, 7.5)))])
                case 1 if self.finite:
                    score = self.emit("add", [score, self.const(self.rng.choice((0.3, -2.0)))])
                case 2 if self.finite and share != "mean":
                    # Scaled down first, so that no two scores saturate to the same number.
                    small = self.emit("mul", [score, self.const(2.0**-30)])
                    score = self.emit(self.rng.choice(("exp", "sigmoid", "tanh")), [small])
                case 3 if self.finite and share is None:
                    row = self.emit("amax" if self.maybe(0.5) else "sum", [score], dims=("page",))
                    score = self.emit("sub", [score, row])
                case 4 if self.finite and share is None and "head" not in dims:
                    q = self.emit("sum", [self.emit("q")], dims=("dim", "head"))
                    score = self.emit("add", [score, q])
        return score

"""Random well-typed programs over every operator of the IR, sensible or not: food for property tests."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vortex_core.errors import VortexError
from vortex_core.ir import mistakes
from vortex_core.ir.graph import Graph, GraphBuilder
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.lint import lint
from vortex_core.ir.opset import OPS, OpSpec
from vortex_core.ir.program import SCALED, STATE_DTYPES, Program, StateDecl
from vortex_core.ir.rules import MAX_ROWS, ROUND_DTYPES
from vortex_core.ir.schedule import crosses_pages
from vortex_core.ir.types import LARGEST, Dims, Extent, Scope, Type
from vortex_core.ir.verify import verify

MAX_DIMS = 4
MAX_NUMBERS = 1 << 21  # of one value per page; half of what the language allows
_CUT = {"D": 8, "S": 4, "R": 8}  # by what a symbol may be divided: such extents are whole in every real model
_FREE_NAMES = ("row", "x", "y")
_JUMPY = frozenset(name for name, spec in OPS.items() if not spec.traits.continuous)
# These need values beside the program, or dense layers in its knobs: the program alone cannot run.
_UNSUPPLIED = frozenset({"param", "rotary", "dense_mass"})

Rng = random.Random


def _few(extent: Extent) -> bool:
    """Whether there are few enough of them to be the rows of a decomposition."""
    return extent.factor * LARGEST.get(extent.symbol, 1) <= MAX_ROWS


def random_program(rng: Rng, *, operations: int = 14, smooth: bool = False, nope: bool = False) -> Program:
    """A legal program of any operators, its extents whole where head_dim and page size divide by 8.

    Args:
        rng: source of all choices.
        operations: tries to add an operation, in each of the two graphs.
        smooth: only operators that are continuous and finite for finite inputs, so that scores computed in
            different precisions stay close.
        nope: whether channels without rotation may be read (a model without any refuses the program).
    """
    while True:
        program = _draw(rng, operations, smooth, nope)
        if _tells_pages_apart(program):
            return program


def _tells_pages_apart(program: Program) -> bool:
    """Whether the score is more than zero times something: the one mistake that types do not rule out."""
    try:
        lint(program, program.canonical(), Knobs())
    except VortexError as error:
        if error.code != mistakes.SCORE_CONSTANT.code:
            raise
        return False
    return True


def _draw(rng: Rng, operations: int, smooth: bool, nope: bool) -> Program:
    cache = _Grower(rng, GraphBuilder("cache"), smooth, nope)
    states: list[StateDecl] = []
    writes: dict[str, int] = {}
    derived = rng.choice((0, 1, 1, 2, 2, 3))
    if derived:
        cache.source("k")
        if rng.random() < 0.6:
            cache.source("v")
        cache.grow(operations)
    for n in range(derived):
        value, dims = cache.writable()
        dtype = rng.choice([d for d in STATE_DTYPES if dims or d not in SCALED])
        scale_dim = dims[0][0] if dtype in SCALED and len(dims) > 1 and rng.random() < 0.5 else ""
        states.append(StateDecl(f"a{n}", dims, dtype, scale_dim=scale_dim))
        writes[f"a{n}"] = value
    for n in range(rng.choice((0, 0, 0, 1, 2))):
        scope: Scope = rng.choice(("page", "page", "request"))
        every: list[Dims] = [(), (("dim", Extent.parse("D")),)]
        if scope == "request":
            every.append((("head", Extent.parse("G")), *every[1]))
        carried_dims = rng.choice(every)
        dtype = rng.choice([d for d in STATE_DTYPES if d not in (*SCALED, "bits")])
        init = rng.choice((0.0, 1.0, -0.5))
        states.append(StateDecl(f"c{n}", carried_dims, dtype, True, init, scope=scope))

    index = _Grower(rng, GraphBuilder("index"), smooth, nope)
    index.source("q")
    for s in states:
        scope_of = {"scope": s.scope} if s.of_request else {}
        index.source("load", name=s.name, dims=tuple((n, str(e)) for n, e in s.dims), **scope_of)
    for name in ("position", "pages", "length", "mass"):
        if rng.random() < 0.35 or (name == "position" and not states):
            index.source(name)
    index.grow(operations)
    carried = frozenset(s.name for s in states if s.carried)
    updates = {s.name: index.update(s.dims, s.of_request) for s in states if s.name in carried}
    result = index.refined(index.selection(), carried)
    program = Program(
        tuple(states),
        cache.builder.graph(writes) if writes else Graph(),
        index.builder.graph(updates, result),
    )
    verify(program)
    return program


@dataclass
class _Grower:
    """Adds random nodes to one graph. Every choice is made among legal ones, so nothing is ever refused."""

    rng: Rng
    builder: GraphBuilder
    smooth: bool
    nope: bool
    floats: list[int] = field(default_factory=list)
    masks: list[int] = field(default_factory=list)
    bounded: set[int] = field(default_factory=set)  # within [-1, 1], so that exp and powers stay finite

    def __post_init__(self) -> None:
        stage = self.builder.stage
        left_out = _UNSUPPLIED | (_JUMPY if self.smooth else frozenset())
        legal = [s for s in OPS.values() if stage in s.stages and s.name not in left_out]
        self.operators: list[OpSpec] = [s for s in legal if s.group not in ("source", "select")]
        self.constants = ("const", "extent", "iota")
        if self.smooth:  # no comparison, so no masks
            self.operators = [s for s in self.operators if s.group != "logic"]

    # ---- adding nodes ------------------------------------------------------------------------------------

    def emit(self, op: str, *inputs: int, **attrs: Any) -> int:
        node = self.builder.emit(op, inputs, **attrs)
        kind = self.type(node).kind
        (self.masks if kind == "bool" else self.floats).append(node)
        if OPS[op].traits.bounded:
            self.bounded.add(node)
        return node

    def source(self, op: str, **attrs: Any) -> int:
        return self.emit(op, **attrs)

    def grow(self, tries: int) -> None:
        for _ in range(tries):
            if self.rng.random() < 0.2:
                self._constant()
            else:
                self._operation(self.rng.choice(self.operators))

    def _constant(self) -> None:
        op = self.rng.choice(self.constants)
        if op == "const":
            self.emit("const", value=self.rng.choice((0.0, 1.0, -1.0, 0.5, 2.0, -3.0, 0.125, 1e-3)))
        elif op == "extent":
            self.emit("extent", extent=self.rng.choice(("D", "S", "G", "D/2", "R")))
        else:
            own = ("token", "S") if self.builder.stage == "cache" else ("head", "G")
            dim, extent = self.rng.choice((("dim", "D"), own, ("row", "2"), ("x", "3")))
            self.emit("iota", dim=dim, extent=extent)

    def _operation(self, spec: OpSpec) -> None:
        match spec.group:
            case "unary":
                self._unary(spec.name)
            case "binary" | "compare":
                self._pair(spec.name, self.floats)
            case "logic":
                self._logic(spec.name)
            case "reduce":
                if (x := self._pick(lambda t: bool(t.dims))) is not None:
                    names = self.type(x).names
                    dims = self.rng.sample(names, self.rng.randint(1, len(names)))
                    self.emit(spec.name, x, dims=tuple(sorted(dims)))
            case "scan":
                self._scan(spec.name)
            case "shape":
                self._shape(spec.name)
            case "decompose":
                self._decompose(spec.name)

    def _unary(self, op: str) -> None:
        x = self._pick()
        assert x is not None
        if op == "cast":
            self.emit(op, x, dtype=self.rng.choice(ROUND_DTYPES))
            return
        if self.smooth and op == "exp":
            x = self._bound(x)
        if self.smooth and op in ("log", "sqrt"):
            x = self._positive(x)
        self.emit(op, x)

    def _pair(self, op: str, pool: list[int]) -> None:
        found = self._partners(2, pool)
        if found is None:
            return
        a, b = found
        if self.smooth and op == "div":
            b = self._positive(b)
        if self.smooth and op == "mul" and not {a, b} & self.bounded:
            b = self._bound(b)
        self.emit(op, a, b)

    def _logic(self, op: str) -> None:
        if not self.masks:
            return
        mask = self.rng.choice(self.masks)
        if op == "not":
            self.emit(op, mask)
        elif op == "where":
            x = self._fit([mask], self.floats)
            y = None if x is None else self._fit([mask, x], self.floats)
            if x is not None and y is not None:
                self.emit(op, mask, x, y)
        else:
            other = self._fit([mask], self.masks)
            if other is not None:
                self.emit(op, mask, other)

    def _scan(self, op: str) -> None:
        x = self._pick(lambda t: bool(set(t.names) - ({"page"} if op == "largest" else set())))
        if x is None:
            return
        dim = self.rng.choice([n for n in self.type(x).names if op != "largest" or n != "page"])
        if op == "conv":
            weights = tuple(
                self.rng.choice((0.25, 0.5, 1.0, -0.5)) for _ in range(self.rng.choice((1, 3, 5)))
            )
            self.emit(op, x, dim=dim, weights=weights)
        elif op == "maxpool":
            self.emit(op, x, dim=dim, size=self.rng.choice((1, 3, 5)))
        elif op == "largest":
            self.emit(op, x, dim=dim, k=self.rng.choice((1, 2, 4)))
        else:
            self.emit(op, x, dim=dim)

    def _decompose(self, op: str) -> None:
        x = self._pick(lambda t: len(t.dims) == 2 and any(_few(e) for _, e in t.dims))
        if x is None:
            return
        dims = self.type(x).dims
        over = self.rng.choice([n for n, e in dims if _few(e)])
        (dim,) = (n for n, _ in dims if n != over)
        into = self.rng.choice([n for n in _FREE_NAMES if n != dim])
        self.emit(op, x, over=over, dim=dim, into=into, rank=self.rng.choice((1, 2, 3)))

    def _shape(self, op: str) -> None:
        if op == "channels":
            x = self._pick(lambda t: ("dim", Extent.parse("D")) in t.dims)
            if x is not None:
                self.emit(op, x, group=self.rng.choice(("rope", "nope") if self.nope else ("rope",)))
            return
        x = self._pick(lambda t: any(n != "page" for n in t.names))
        if x is None:
            return
        t = self.type(x)
        dim = self.rng.choice([n for n in t.names if n != "page"])
        free = [n for n in _FREE_NAMES if n not in t.names]
        if op == "concat":
            self._concat(x, dim)
        elif op == "rename":
            if free:
                self.emit(op, x, dim=dim, to=self.rng.choice(free))
        elif op == "split":
            parts = self.rng.choice((2, 4))
            if free and len(t.dims) < MAX_DIMS and _divides(t.extent(dim), parts):
                self.emit(op, x, dim=dim, into=self.rng.choice(free), parts=parts)
        else:
            self._slice(x, dim, t.extent(dim))

    def _concat(self, x: int, dim: str) -> None:
        """`x` and a value that ends where it goes on: the same dimensions, and no longer than all of the symbol."""
        own = dict(self.type(x).dims)
        known = {n: e for n, e in own.items() if n != dim}
        fitting = []
        for y in self.floats:
            theirs = dict(self.type(y).dims)
            both = own[dim].plus(theirs[dim]) if dim in theirs else None
            if both is not None and (not both.symbol or both.factor <= 1):
                rest = tuple((n, e) for n, e in theirs.items() if n != dim)
                if _joins({**known, dim: both}, rest):
                    fitting.append(y)
        if fitting:
            self.emit("concat", x, self.rng.choice(fitting), dim=dim)

    def _slice(self, x: int, dim: str, full: Extent) -> None:
        if _divides(full, 2):
            ends = (0, str(full // 2)), (str(full // 2), str(full)), (0, str(full))
            start, stop = self.rng.choice(ends)
            self.emit("slice", x, dim=dim, start=start, stop=stop)
        else:
            self.emit("slice", x, dim=dim, start=0, stop=str(full))

    # ---- choosing inputs ---------------------------------------------------------------------------------

    def type(self, node: int) -> Type:
        return self.builder.nodes[node].type

    def _pick(self, fits: Callable[[Type], bool] = lambda t: True) -> int | None:
        """A fitting float value, the later ones likelier, so that programs grow deep."""
        found = [n for n in self.floats if fits(self.type(n))]
        return found[int(len(found) * self.rng.random() ** 0.6)] if found else None

    def _partners(self, count: int, pool: list[int]) -> list[int] | None:
        first = self._pick() if pool is self.floats else self.rng.choice(pool)
        chosen = [] if first is None else [first]
        while chosen and len(chosen) < count:
            other = self._fit(chosen, pool)
            if other is None:
                return None
            chosen.append(other)
        self.rng.shuffle(chosen)
        return chosen or None

    def _fit(self, chosen: list[int], pool: list[int]) -> int | None:
        """A value that broadcasts with `chosen` without growing too large."""
        known = {n: e for c in chosen for n, e in self.type(c).dims}
        found = [x for x in pool if _joins(known, self.type(x).dims)]
        return self.rng.choice(found) if found else None

    def _bound(self, x: int) -> int:
        return x if x in self.bounded else self.emit("tanh", x)

    def _positive(self, x: int) -> int:
        return self.emit("add", self.emit("abs", x), self.emit("const", value=0.5))

    # ---- ends --------------------------------------------------------------------------------------------

    def _reduced(self, x: int, gone: list[str]) -> int:
        op = self.rng.choice(("sum", "mean", "amax", "amin"))
        return self.emit(op, x, dims=tuple(sorted(gone))) if gone else x

    def writable(self) -> tuple[int, Dims]:
        """A value that may be a state, with the state's dimensions."""
        x = self._pick()
        assert x is not None
        names = [n for n in self.type(x).names if n not in ("token", "head", "page")]
        keep = [n for n in names if self.rng.random() < 0.7][:3]
        x = self._reduced(x, [n for n in self.type(x).names if n not in keep])
        return x, self.type(x).dims

    def update(self, dims: Dims, of_request: bool) -> int:
        """A value for a carried state of these dimensions, of pages with or without a page dimension."""
        x = self._pick(lambda t: set(dims) <= set(t.dims))
        x = self.floats[0] if x is None else x  # the query has every dimension a carried state may have
        keep = {n for n, _ in dims} | (set() if of_request else {"page"})
        return self._reduced(x, [n for n in self.type(x).names if n not in keep])

    def selection(self) -> int:
        """The result."""
        if self.rng.random() < 0.03:
            return self.builder.emit("everything")
        per_head = self.rng.random() < 0.2
        first = self._select(per_head)
        if self.rng.random() < 0.2:
            per_head = "head" in self.type(first).names
            second = self._select(per_head)
            if self.type(second).dims == self.type(first).dims:
                return self.builder.emit("union", (first, second))
        return first

    def refined(self, selection: int, carried: frozenset[str]) -> int:
        """Now and then a selection in two stages in the place of a plain one, by a score that is a page's own."""
        nodes = self.builder.nodes
        node = nodes[selection]
        if node.op != "topk" or self.type(selection).dims or self.rng.random() < 0.7:
            return selection
        own: set[int] = set()
        for i, n in enumerate(nodes):
            steps = n.op == "mass" or (n.op == "load" and n.attr["name"] in carried)
            if not steps and not crosses_pages(n) and own.issuperset(n.inputs):
                own.add(i)
        fine = [i for i in self.floats if i in own and "page" in self.type(i).names]
        if not fine:
            return selection
        x = self.rng.choice(fine)
        score = self._reduced(x, [n for n in self.type(x).names if n != "page"])
        fraction = node.attr.get("fraction", 1.0)
        return self.builder.emit(
            "refine", (node.inputs[0], score), candidates=self.rng.choice((2, 3, 8)), fraction=fraction
        )

    def _select(self, per_head: bool) -> int:
        x = self._pick(lambda t: "page" in t.names and (not per_head or "head" in t.names))
        if x is None:
            x = self._pick(lambda t: "page" in t.names)
        if x is None:
            x = self.source("position")
        keep = {"page", "head"} if per_head else {"page"}
        score = self._reduced(x, [n for n in self.type(x).names if n not in keep])
        op = self.rng.choice(("topk", "topk", "topp", "threshold"))
        attrs: dict[str, Any] = {}
        if self.rng.random() < 0.4:
            attrs["fraction"] = self.rng.choice((0.25, 0.5, 0.75))
        if "head" not in self.type(score).names and self.rng.random() < 0.3:
            attrs["share"] = self.rng.choice(("max", "mean"))
        if op == "topk" and self.rng.random() < 0.2:
            attrs["recall"] = 0.9
        if op == "topp":
            attrs["p"] = self.rng.choice((0.5, 0.9, 0.99))
        if op == "threshold":
            attrs["at"] = self.rng.choice((0.0, 0.5, -1.0))
        return self.builder.emit(op, (score,), **attrs)


def _divides(extent: Extent, parts: int) -> bool:
    inner = extent // parts
    if not inner.symbol:
        return inner.factor.denominator == 1
    return inner.factor.denominator <= _CUT.get(inner.symbol, 1)


def _joins(known: dict[str, Extent], dims: Dims) -> bool:
    if any(known.get(n, e) != e for n, e in dims):
        return False
    together = {**known, **dict(dims)}
    numbers = math.prod(e.factor * LARGEST.get(e.symbol, 1) for e in together.values())
    return len(together) <= MAX_DIMS and numbers <= MAX_NUMBERS

"""Programs as expressions: the form in which they are grown, changed and crossed.

A `Term` is an immutable expression. A term that reads a page state holds the state, and a derived state holds
the `forward_cache` expression that computes it, so a subtree carries all it needs when it moves to another
program. Only carried states are known by name: what updates them reads them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vortex_core.ir.graph import Graph, GraphBuilder, Node
from vortex_core.ir.opset import OPS
from vortex_core.ir.program import SCALED, Program, StateDecl
from vortex_core.ir.types import Dims, Scope, Type


@dataclass(frozen=True)
class State:
    """A state of pages or of requests.

    Attributes:
        dims: as declared.
        dtype: storage.
        value: what forward_cache writes; None if it is carried.
        tag: the name under which `Flow.updates` has the update of a carried state; empty otherwise.
        init: initial value of a carried state.
        scale_dim: which dimension shares a scale, as in `StateDecl`; of no account unless the dtype has scales.
        scope: whose it is, as in `StateDecl`.
    """

    dims: Dims
    dtype: str
    value: Term | None = None
    tag: str = ""
    init: float = 0.0
    scale_dim: str = ""
    scope: Scope = "page"

    @property
    def key(self) -> str:
        """Equal for equal states."""
        content = self.value.key if self.value is not None else self.tag
        dims = [(n, str(e)) for n, e in self.dims]
        return _digest(dims, self.dtype, content, self.init, self.declared_scale, *self.attrs.values())

    @property
    def attrs(self) -> dict[str, str]:
        """What a read says beside name and dimensions."""
        return {"scope": self.scope} if self.scope == "request" else {}

    @property
    def declared_scale(self) -> str:
        """`scale_dim` where the dtype has scales."""
        return self.scale_dim if self.dtype in SCALED else ""


@dataclass(frozen=True, eq=False)
class Term:
    """One expression. Make it with `make`, `load` or the operators below; equality is by content."""

    op: str
    args: tuple[Term, ...]
    attrs: tuple[tuple[str, Any], ...]
    type: Type
    key: str
    state: State | None = field(default=None, repr=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Term) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def attr(self) -> dict[str, Any]:
        """Attributes by name."""
        return dict(self.attrs)

    @property
    def names(self) -> tuple[str, ...]:
        """Dimension names."""
        return self.type.names

    def has(self, dim: str) -> bool:
        """Whether it has the dimension."""
        return dim in self.type.names

    def __add__(self, other: Term | float) -> Term:
        return make("add", self, lift(other))

    def __radd__(self, other: float) -> Term:
        return make("add", lift(other), self)

    def __sub__(self, other: Term | float) -> Term:
        return make("sub", self, lift(other))

    def __mul__(self, other: Term | float) -> Term:
        return make("mul", self, lift(other))

    def __rmul__(self, other: float) -> Term:
        return make("mul", lift(other), self)

    def __truediv__(self, other: Term | float) -> Term:
        return make("div", self, lift(other))


def _digest(*parts: object) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=10).hexdigest()


def make(op: str, *args: Term, **attrs: Any) -> Term:
    """A typed term.

    Raises:
        VortexError: what the operator's typing rule says.
    """
    spec = OPS[op]
    assert len(args) == spec.arity, (op, len(args))
    pairs = tuple(sorted(attrs.items()))
    kind = spec.infer(spec, [a.type for a in args], attrs)
    return Term(op, args, pairs, kind, _digest(op, [a.key for a in args], pairs))


def load(state: State) -> Term:
    """The state as forward_indexer reads it."""
    spec = OPS["load"]
    dims = tuple((n, str(e)) for n, e in state.dims)
    attrs = {"dims": dims, **state.attrs}
    kind = spec.infer(spec, (), attrs)
    return Term("load", (), tuple(attrs.items()), kind, _digest("load", state.key), state)


def const(value: float) -> Term:
    """A number, rounded to four digits: nobody means more than that."""
    return make("const", value=float(f"{value:.4g}"))


def lift(value: Term | float) -> Term:
    """A term, or a number as one."""
    return value if isinstance(value, Term) else const(value)


def reduce(op: str, x: Term, *dims: str) -> Term:
    """`x` reduced over those of `dims` that it has."""
    found = tuple(sorted(d for d in dims if x.has(d)))
    return make(op, x, dims=found) if found else x


Visit = Callable[[Term, tuple[Term, ...]], Term | None]


@dataclass(frozen=True)
class Flow:
    """A program as terms.

    Attributes:
        result: the selection.
        updates: new values of carried states, by tag.
    """

    result: Term
    updates: tuple[tuple[str, Term], ...] = ()

    @property
    def roots(self) -> list[Term]:
        """The expressions of forward_indexer."""
        return [self.result, *(t for _, t in self.updates)]

    def terms(self) -> list[Term]:
        """All different subterms of forward_indexer, operands first."""
        return list(walk(*self.roots))

    def states(self) -> list[State]:
        """All different states, in order of appearance."""
        found = {t.state.key: t.state for t in self.terms() if t.state is not None}
        return list(found.values())

    def swap(self, new: Mapping[str, Term], grown: Mapping[str, Term] | None = None) -> Flow:
        """Replace index terms by key, everywhere; what is left without a reader is dropped.

        Args:
            new: replacements, by the key of what they replace.
            grown: updates of the carried states that the replacements read and this flow has not.
        """
        return self.rewritten(lambda t, args: new.get(t.key), grown)

    def swap_states(self, new: Mapping[str, State]) -> Flow:
        """Replace states by key, everywhere."""
        return self.rewritten(
            lambda t, args: load(new[t.state.key]) if t.state is not None and t.state.key in new else None
        )

    def rewritten(self, visit: Visit, grown: Mapping[str, Term] | None = None) -> Flow:
        """Every expression of forward_indexer through `rewrite`."""
        memo: dict[str, Term] = {}
        result = rewrite(self.result, visit, memo)
        own = {s.tag for s in self.states() if s.scope == "request"}
        updates = {tag: _as_update(rewrite(t, visit, memo), t, tag in own) for tag, t in self.updates}
        return Flow(result, tuple(sorted({**updates, **(grown or {})}.items()))).pruned()

    def pruned(self) -> Flow:
        """Without updates of carried states that nothing reads."""
        updates = dict(self.updates)
        live: dict[str, Term] = {}
        stack = [self.result]
        while stack:
            for t in walk(stack.pop()):
                if t.state is not None and t.state.tag and t.state.tag not in live:
                    live[t.state.tag] = updates[t.state.tag]
                    stack.append(live[t.state.tag])
        return replace(self, updates=tuple(sorted(live.items())))


def _as_update(new: Term, old: Term, own: bool) -> Term:
    """A carried state keeps its dimensions: what the new value has beyond the old one's is reduced, and pages are where
    it is the request's own."""
    extra = [n for n in new.names if n not in old.names and (own or n != "page")]
    return reduce("amax", new, *extra)


def walk(*roots: Term) -> Iterator[Term]:
    """Different subterms, operands first. Does not enter states."""
    seen: set[str] = set()
    for root in roots:
        stack: list[tuple[Term, bool]] = [(root, False)]
        while stack:
            t, ready = stack.pop()
            if ready:
                yield t
            elif t.key not in seen:
                seen.add(t.key)
                stack.append((t, True))
                stack += [(a, False) for a in reversed(t.args)]


def rewrite(root: Term, visit: Visit, memo: dict[str, Term] | None = None) -> Term:
    """`root`, operands first, with each term replaced by what `visit(term, new operands)` gives; where it
    gives None, the operator stays and follows dimensions that came or went.

    Raises:
        VortexError: where a replacement of another type does not fit.
    """
    done: dict[str, Term] = {} if memo is None else memo
    for t in walk(root):
        if t.key not in done:
            args = tuple(done[a.key] for a in t.args)
            new = visit(t, args)
            done[t.key] = new if new is not None else t if args == t.args else _follow(t, args)
    return done[root.key]


def _follow(t: Term, args: tuple[Term, ...]) -> Term:
    """The operator of `t` on other operands: reductions forget dimensions that are gone, and a score is
    brought back to pages by its best row."""
    attrs = t.attr
    group = OPS[t.op].group
    if group == "reduce":
        return reduce(t.op, args[0], *attrs["dims"])
    if group == "scan" and not args[0].has(attrs["dim"]):
        return args[0]
    if group == "shape" and "dim" in attrs and not args[0].has(attrs["dim"]):
        return args[0]
    if group == "select" and t.op not in ("union", "residual"):
        keep = ("page", "head") if t.args and t.args[0].has("head") else ("page",)
        args = tuple(reduce("amax", a, *(n for n in a.names if n not in keep)) for a in args)
    return make(t.op, *args, **attrs)


def refines_legally(flow: Flow) -> bool:
    """Whether a program has at most one refinement, whose fine score is a page's own (`VF071`)."""
    found = [t for t in flow.terms() if t.op == "refine"]
    return len(found) < 2 and all(_own(t) for r in found for t in walk(r.args[1]))


def _own(t: Term) -> bool:
    """Whether a term is made of the page's own states, that no step changes."""
    across = "page" in (t.attr.get("dims") or ()) and t.op != "load"
    across |= t.attr.get("dim") == "page" or t.op == "mass"
    return not across and not (t.state is not None and t.state.tag)


# ---- to and from programs --------------------------------------------------------------------------------


def to_program(flow: Flow) -> Program:
    """The program, not canonical.

    Raises:
        VortexError: `VF008` or `VF026` if it is larger than the language allows.
    """
    flow = flow.pruned()
    states = flow.states()
    names = {s.key: f"s{n}" for n, s in enumerate(states)}
    tags = {s.tag: names[s.key] for s in states if s.tag}
    cache = _Placer(GraphBuilder("cache"), names)
    writes = {names[s.key]: cache.place(s.value) for s in states if s.value is not None}
    index = _Placer(GraphBuilder("index"), names)
    updates = {tags[tag]: index.place(t) for tag, t in flow.updates}
    result = index.place(flow.result)
    declared = tuple(
        StateDecl(names[s.key], s.dims, s.dtype, bool(s.tag), s.init, s.declared_scale, s.scope)
        for s in states
    )
    return Program(declared, cache.builder.graph(writes), index.builder.graph(updates, result))


@dataclass
class _Placer:
    builder: GraphBuilder
    names: Mapping[str, str]
    placed: dict[str, int] = field(default_factory=dict)

    def place(self, root: Term) -> int:
        for t in walk(root):
            if t.key not in self.placed:
                attrs = t.attr
                if t.state is not None:
                    attrs["name"] = self.names[t.state.key]
                self.placed[t.key] = self.builder.emit(t.op, [self.placed[a.key] for a in t.args], **attrs)
        return self.placed[root.key]


def from_program(program: Program) -> Flow:
    """The terms of a program."""
    cache = _terms(program.cache, lambda node: make(node.op, **node.attr))
    written = {name: cache[i] for name, i in program.cache.writes}
    states = {
        s.name: State(s.dims, s.dtype, None, s.name, s.init, scope=s.scope)
        if s.carried
        else State(s.dims, s.dtype, written[s.name], scale_dim=s.scale_dim)
        for s in program.states
    }

    def source(node: Node) -> Term:
        return load(states[node.attr["name"]]) if node.op == "load" else make(node.op, **node.attr)

    index = _terms(program.index, source)
    assert program.index.result is not None
    updates = tuple((name, index[i]) for name, i in program.index.writes)
    return Flow(index[program.index.result], updates).pruned()


def _terms(graph: Graph, source: Callable[[Node], Term]) -> list[Term]:
    done: list[Term] = []
    for node in graph.nodes:
        args = [done[i] for i in node.inputs]
        done.append(make(node.op, *args, **node.attr) if args else source(node))
    return done


def retagged(flow: Flow, taken: set[str]) -> Flow:
    """The same flow with its carried states under tags that are not `taken`."""
    names: dict[str, str] = {}
    loads: dict[str, Term] = {}
    for t in flow.terms():
        if t.state is not None and t.state.tag in taken:
            used = taken | set(names.values()) | {tag for tag, _ in flow.updates}
            if t.state.tag not in names:
                names[t.state.tag] = fresh_tag(used)
            loads[t.key] = load(replace(t.state, tag=names[t.state.tag]))

    def visit(t: Term, args: tuple[Term, ...]) -> Term | None:
        return loads.get(t.key)

    return Flow(
        rewrite(flow.result, visit),
        tuple((names.get(tag, tag), rewrite(t, visit)) for tag, t in flow.updates),
    ).pruned()


def fresh_tag(taken: set[str]) -> str:
    """A tag that is not `taken`."""
    return next(t for n in range(len(taken) + 1) if (t := f"c{n}") not in taken)

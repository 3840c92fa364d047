"""The canonical form: programs that must select the same pages become the same program.

Besides the algebra of `expr.py`: whatever cannot change the order of scores before a top-k is removed, equal
states are merged, dead states and dead code vanish, states are named by content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from vortex_core.ir.expr import Algebra, Expr
from vortex_core.ir.program import Graph, GraphBuilder, Program, StateDecl
from vortex_core.ir.types import Dims, Stage


def canonicalise(program: Program) -> Program:
    """The canonical form of a verified program. Idempotent; never changes which pages are selected."""
    digests = _state_digests(program)
    algebra = Algebra(digests)
    cache = _expressions(program.cache, algebra)
    index = _expressions(program.index, algebra)
    assert program.index.result is not None
    result = index[program.index.result]
    updates = {name: index[i] for name, i in program.index.writes}

    # One representative name per distinct state; states are alive when what selects pages reads them.
    chosen: dict[str, str] = {}
    for s in sorted(program.states, key=lambda s: s.name):
        chosen.setdefault(digests[s.name], s.name)
    alive: set[str] = set()
    frontier = _loads(result)
    while frontier:
        digest = digests[frontier.pop()]
        if digest not in alive:
            alive.add(digest)
            if chosen[digest] in updates:
                frontier |= _loads(updates[chosen[digest]])
    order = sorted(alive)
    rename = {name: f"s{order.index(digests[name])}" for name in digests if digests[name] in alive}
    kept = [chosen[d] for d in order]

    cache_writes = {name: cache[i] for name, i in program.cache.writes if name in kept}
    states = tuple(
        StateDecl(rename[n], s.dims, s.dtype, s.carried, s.init) for n in kept for s in [program.state(n)]
    )
    return Program(
        states,
        _rebuild("cache", None, [(rename[n], cache_writes[n]) for n in kept if n in cache_writes], rename),
        _rebuild("index", result, [(rename[n], updates[n]) for n in kept if n in updates], rename),
    )


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _shape(dims: Dims) -> list[tuple[str, str]]:
    return [(n, str(e)) for n, e in dims]


def _state_digests(program: Program) -> dict[str, str]:
    """Identity of each state by content. Derived states: what computes them. Carried states may read themselves
    and each other, so their digests are refined by colouring until they have seen every other one."""
    algebra = Algebra({})
    cache = _expressions(program.cache, algebra)
    written = {name: cache[i].digest for name, i in program.cache.writes}
    digests = {
        s.name: _digest(_shape(s.dims), s.dtype, s.carried, s.init, written.get(s.name))
        for s in program.states
    }
    carried = [s.name for s in program.states if s.carried]
    for _ in range(len(carried) + 1 if carried else 0):
        step = Algebra(digests)
        index = _expressions(program.index, step)
        updates = {name: index[i].digest for name, i in program.index.writes}
        digests = {n: _digest(d, updates.get(n)) if n in carried else d for n, d in digests.items()}
    return digests


def _expressions(graph: Graph, algebra: Algebra) -> list[Expr]:
    done: list[Expr] = []
    for node in graph.nodes:
        args = [done[i] for i in node.inputs]
        if node.spec.group == "select" and node.op != "everything" and node.op != "union":
            done.append(_selection(algebra, node.op, args[0], node.attr))
        elif node.op == "const":
            done.append(algebra.const(node.attr["value"]))
        else:
            done.append(algebra.make(node.op, args, node.attr))
    return done


_DEFAULTS: dict[str, Any] = {"fraction": 1.0, "recall": 1.0, "share": None}


def _selection(algebra: Algebra, op: str, score: Expr, attrs: dict[str, Any]) -> Expr:
    attrs = {k: v for k, v in attrs.items() if k not in _DEFAULTS or v != _DEFAULTS[k]}
    share = attrs.get("share")
    if op == "topk":
        score = _strip(algebra, score, share)
    elif op == "topp" and share is None:
        score = _without_shift(algebra, score)
    return algebra.raw(op, [score], **attrs)


def _without_shift(algebra: Algebra, score: Expr) -> Expr:
    """Drop terms that are the same for every page of a row."""
    terms = [t for t in algebra.terms(score) if t.has("page")]
    return (
        algebra.total(terms)
        if terms and set(algebra.total(terms).type.names) == set(score.type.names)
        else score
    )


def _strip(algebra: Algebra, score: Expr, share: str | None) -> Expr:
    """Remove order-preserving work before a top-k. Across kv heads (`share`) only what is the same for all kv
    heads may go, and curved functions only under a maximum."""
    while True:
        before = score
        names = score.type.names
        if share is None:
            score = _without_shift(algebra, score)
        else:
            terms = [t for t in algebra.terms(score) if t.type.domain != "const"]
            score = algebra.total(terms) if terms else score
        if share != "mean" and _is_increasing(algebra, score):
            score = score.args[0]
        elif share is None and score.op == "softmax" and score.attr["dim"] == "page":
            score = score.args[0]
        else:
            score = _drop_factors(algebra, score, share)
        if score.type.names != names:
            return before
        if score is before:
            return score


def _is_increasing(algebra: Algebra, e: Expr) -> bool:
    if e.op in ("exp", "sigmoid", "tanh"):
        return True
    return e.op in ("sqrt", "log") and algebra.nonnegative(e.args[0])


def _droppable(algebra: Algebra, factor: Expr, share: str | None) -> bool:
    same = not factor.has("page") if share is None else factor.type.domain == "const"
    return same and algebra.positive(factor)


def _drop_factors(algebra: Algebra, score: Expr, share: str | None) -> Expr:
    terms = algebra.terms(score)
    if len(terms) > 1:  # one positive scale for the whole sum: the first term's weight becomes 1 or -1
        weight = abs(next((v for v, rest in map(algebra.split_constant, terms) if rest and v), 1.0))
        return score if weight == 1.0 else algebra.product([algebra.const(1.0 / weight), score])
    value, rest = algebra.split_constant(score)
    keep = [f for f in rest if not _droppable(algebra, f, share)]
    if not keep or value == 0.0:
        return score
    return algebra.product([*keep, algebra.const(-1.0)] if value < 0 else keep)


def _loads(root: Expr) -> set[str]:
    found: set[str] = set()
    seen: set[int] = set()
    stack = [root]
    while stack:
        e = stack.pop()
        if id(e) not in seen:
            seen.add(id(e))
            stack += e.args
            if e.op == "load":
                found.add(e.attr["name"])
    return found


def _rebuild(
    stage: Stage, result: Expr | None, writes: Sequence[tuple[str, Expr]], rename: dict[str, str]
) -> Graph:
    builder = GraphBuilder(stage)
    placed: dict[str, int] = {}

    def place(root: Expr) -> int:
        stack: list[tuple[Expr, bool]] = [(root, False)]
        while stack:
            e, ready = stack.pop()
            if e.digest in placed:
                continue
            if not ready:
                stack.append((e, True))
                stack += [(a, False) for a in reversed(e.args)]
                continue
            attrs = e.attr
            if e.op == "load":
                attrs["name"] = rename[attrs["name"]]
            placed[e.digest] = builder.emit(e.op, [placed[a.digest] for a in e.args], **attrs)
        return placed[root.digest]

    last = None if result is None else place(result)
    return builder.graph({name: place(e) for name, e in writes}, last)

"""The canonical form: programs that must select the same pages become the same program.

Besides the rules of `algebra.py`: whatever cannot change the order of scores before a top-k is removed, equal
states are merged, dead states and dead code vanish, states are named by content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vortex_core.errors import VortexError
from vortex_core.ir import mistakes
from vortex_core.ir.algebra import Algebra
from vortex_core.ir.expr import MAX_WIDTH, Expr
from vortex_core.ir.graph import MAX_CANONICAL, Graph, GraphBuilder
from vortex_core.ir.opset import OPS
from vortex_core.ir.program import Program
from vortex_core.ir.types import Dims, Stage

MAX_PASSES = 16  # a state found dead, or two found equal, can reveal more; usually the second changes nothing


def canonicalise(program: Program) -> Program:
    """The canonical form of a verified program. Idempotent; never changes which pages are selected.

    Passes repeat until one changes nothing. Carried states are known by what updates them, and what updates them is
    written in the order of what it reads, so two forms could each be the other's next: then the lesser text is it.

    Raises:
        VortexError: `VF008`, if the program is too large even unsimplified.
    """
    seen: list[Program] = []
    # What a page is made of names no state: a pass knows again what the one before wrote. A parameter changes its name.
    known = None if program.params else Algebra({})
    for _ in range(MAX_PASSES):
        found = _pass(program, known)
        if found == program:
            return program
        if found in seen:
            return min(seen[seen.index(found) :], key=repr)
        seen.append(found)
        program = found
    return program


def _pass(program: Program, known: Algebra | None = None) -> Program:
    try:
        return _once(program, MAX_WIDTH, known)
    except VortexError as error:
        if error.code != mistakes.TOO_LARGE.code:
            raise
    return _once(program, 1)  # flattened sums repeat what the author shared: keep them as written


def _once(program: Program, width: int, known: Algebra | None = None) -> Program:
    contents = {p.name: p.digest for p in program.params}  # a parameter is its values

    def algebra(states: Mapping[str, str], finite: Collection[str]) -> Algebra:
        return Algebra(states, finite, contents, width)

    cache = _expressions(program.cache, known or algebra({}, ()))  # reads no state
    finite = _finite_states(program, cache, algebra)
    digests = _state_digests(program, cache, finite, algebra)
    index = _expressions(program.index, algebra(digests, finite))
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
    states = tuple(replace(program.state(n), name=rename[n]) for n in kept)
    numbered = {d: f"p{i}" for i, d in enumerate(sorted(set(contents.values())))}
    names = rename, {name: numbered[digest] for name, digest in contents.items()}
    cache_graph = _rebuild(
        "cache", None, [(rename[n], cache_writes[n]) for n in kept if n in cache_writes], *names
    )
    index_graph = _rebuild("index", result, [(rename[n], updates[n]) for n in kept if n in updates], *names)
    used = {n.attr["name"] for g in (cache_graph, index_graph) for n in g.nodes if n.op == "param"}
    params = {numbered[p.digest]: replace(p, name=numbered[p.digest]) for p in program.params}
    return Program(states, cache_graph, index_graph, tuple(params[n] for n in sorted(used)))


_Algebras = Callable[[Mapping[str, str], Collection[str]], Algebra]  # of state digests and finite states


def _finite_states(program: Program, cache: Mapping[int, Expr], algebra: _Algebras) -> frozenset[str]:
    """States that certainly hold finite numbers: the largest set in which every write is finite if all of it
    is."""
    names = {s.name: s.name for s in program.states}
    finite = set(names) - {n for n, i in program.cache.writes if not cache[i].facts.finite}
    gone = {n for n, _ in program.index.writes}
    while gone:
        index = _expressions(program.index, algebra(names, finite), updates_only=True)
        gone = {n for n, i in program.index.writes if n in finite and not index[i].facts.finite}
        finite -= gone
    return frozenset(finite)


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _shape(dims: Dims) -> list[tuple[str, str]]:
    return [(n, str(e)) for n, e in dims]


def _state_digests(
    program: Program, cache: Mapping[int, Expr], finite: frozenset[str], algebra: _Algebras
) -> dict[str, str]:
    """Identity of each state by content. Derived states: what computes them. Carried states may read
    themselves and each other, so their digests are refined by colouring until they have seen every other
    one."""
    written = {name: cache[i].digest for name, i in program.cache.writes}
    digests = {}
    for s in program.states:
        more = [*filter(None, [s.scale_dim]), *(["of the request"] if s.of_request else [])]
        digests[s.name] = _digest(_shape(s.dims), s.dtype, s.carried, s.init, written.get(s.name), *more)
    carried = [s.name for s in program.states if s.carried]
    for _ in carried:
        index = _expressions(program.index, algebra(digests, finite), updates_only=True)
        updates = {name: index[i].digest for name, i in program.index.writes}
        digests = {n: _digest(d, updates.get(n)) if n in carried else d for n, d in digests.items()}
    return digests


def _expressions(graph: Graph, algebra: Algebra, updates_only: bool = False) -> dict[int, Expr]:
    """Normal forms of the nodes that are written or, unless `updates_only`, selected from."""
    needed = {i for _, i in graph.writes}
    if graph.result is not None and not updates_only:
        needed.add(graph.result)
    for i in range(len(graph.nodes) - 1, -1, -1):
        if i in needed:
            needed.update(graph.nodes[i].inputs)
    done: dict[int, Expr] = {}
    for i, node in enumerate(graph.nodes):
        if i in needed:
            args = [done[j] for j in node.inputs]
            if node.op in ("topk", "topp", "threshold"):
                done[i] = _selection(algebra, node.op, args[0], node.attr)
            elif node.op == "refine":
                done[i] = _refined(algebra, args[0], args[1], node.attr)
            elif node.op == "residual" and args[0].op == "everything":
                done[i] = args[0]  # nothing is left out
            else:
                done[i] = algebra.make(node.op, args, node.attr)
    return done


_DEFAULTS: dict[str, Any] = {"fraction": 1.0, "recall": 1.0, "share": None}


def _selection(algebra: Algebra, op: str, score: Expr, attrs: dict[str, Any]) -> Expr:
    attrs = {k: float(v) + 0.0 if isinstance(v, int | float) else v for k, v in attrs.items()}
    attrs = {k: v for k, v in attrs.items() if k not in _DEFAULTS or v != _DEFAULTS[k]}
    share = attrs.get("share")
    if op == "topk":
        score = _strip(algebra, score, share)
    elif op == "topp" and share is None:
        score = algebra.without_shift(score, "page")
    return algebra.raw(op, [score], **attrs)


def _refined(algebra: Algebra, coarse: Expr, fine: Expr, attrs: dict[str, Any]) -> Expr:
    """Of either score only the order matters; candidates by the score that decides are no stage of their own."""
    coarse, fine = (_strip(algebra, score, None) for score in (coarse, fine))
    fraction = {k: float(v) for k, v in attrs.items() if k == "fraction" and v != 1.0}
    if coarse.digest == fine.digest:
        return algebra.raw("topk", [fine], **fraction)
    return algebra.raw("refine", [coarse, fine], candidates=attrs["candidates"], **fraction)


def _strip(algebra: Algebra, score: Expr, share: str | None) -> Expr:
    """Remove order-preserving work before a top-k. Across kv heads (`share`) only what is the same for all kv
    heads may go, and curved functions only under a maximum."""
    while True:
        shorter = _stripped(algebra, score, share)
        if shorter is score or shorter.type.names != score.type.names:
            return score
        score = shorter


def _stripped(algebra: Algebra, score: Expr, share: str | None) -> Expr:
    if score.op == "add":
        shorter = (
            algebra.without_shift(score, "page") if share is None else _without_constants(algebra, score)
        )
        if shorter is not score:
            return shorter
    # Without finite arguments, exp would raise -inf above NaN.
    if score.args and score.args[0].facts.finite:
        if share != "mean" and _is_increasing(score):
            return score.args[0]
        if share is None and score.op == "softmax" and score.attr["dim"] == "page":
            return score.args[0]
    return _drop_factors(algebra, score, share)


def _without_constants(algebra: Algebra, score: Expr) -> Expr:
    terms = algebra.terms(score)
    rest = [t for t in terms if t.value is None]
    return score if len(rest) == len(terms) else algebra.total(rest)


def _constant(e: Expr) -> bool:
    """Whether it is the same for all kv heads."""
    return e.type.domain == "const"


def _is_increasing(e: Expr) -> bool:
    increasing = OPS[e.op].traits.increasing
    return increasing == "always" or (increasing == "nonneg" and e.args[0].facts.nonneg)


def _drop_factors(algebra: Algebra, score: Expr, share: str | None) -> Expr:
    value, rest = algebra.split_constant(score)
    keep = [
        f for f in rest if not (f.facts.positive and (not f.has("page") if share is None else _constant(f)))
    ]
    if not keep or value == 0:
        return score
    if {n for f in keep for n in f.type.names} != set(score.type.names):
        keep = rest  # one of them is all that carries the head
    if len(keep) == len(rest) and abs(value) == 1:
        return score
    return algebra.product([*keep, algebra.const(-1)] if value < 0 else keep)


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
    stage: Stage,
    result: Expr | None,
    writes: Sequence[tuple[str, Expr]],
    states: dict[str, str],
    params: dict[str, str],
) -> Graph:
    builder = GraphBuilder(stage, MAX_CANONICAL)
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
                attrs["name"] = states[attrs["name"]]
            if e.op == "param":
                attrs["name"] = params[attrs["name"]]
            if e.op == "const":
                attrs["value"] = float(attrs["value"])
            placed[e.digest] = builder.emit(e.op, [placed[a.digest] for a in e.args], **attrs)
        return placed[root.digest]

    last = None if result is None else place(result)
    return builder.graph({name: place(e) for name, e in writes}, last)

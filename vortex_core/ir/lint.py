"""Static checks beyond legality: what is certainly pointless is an error, what is doubtful a warning."""

from __future__ import annotations

from collections.abc import Mapping

from vortex_core.errors import Location, VortexError
from vortex_core.ir import mistakes
from vortex_core.ir.budget import Budget
from vortex_core.ir.graph import Graph, Node
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.layers import check_dense_layers, check_reuse
from vortex_core.ir.program import Program

PROBE_LENGTH = 32_768
_ALONG_PAGES = ("cumsum", "conv")  # even of equal values, what they yield differs from page to page


def lint(
    original: Program, canonical: Program, knobs: Knobs, places: Mapping[str, Location] | None = None
) -> list[VortexError]:
    """Warnings for a verified program.

    Args:
        original: as written.
        canonical: its canonical form.
        knobs: the flow's settings.
        places: where each state is declared, for the lines shown.

    Raises:
        VortexError: `VF042` for a score that is the same for every page, `VF060` for a budget that is undefined
            at some length, `VF063` for one that does not cover the pages kept by rule, `VF067` for dense mass where
            no layer before is dense.
    """
    found: list[VortexError] = []
    location = original.result.location
    selections = [n for n in canonical.index.nodes if n.scores]
    varying = _varying_states(canonical)
    if not all(_varies(canonical, i, varying) for n in selections for i in n.scores):
        raise mistakes.SCORE_CONSTANT.error(location)
    read = _read(canonical)
    if selections and not any(canonical.index.nodes[i].op in ("q", "dense_mass") for i in read):
        found.append(mistakes.STATIC_SCORE.error(location))
    found += [
        mistakes.NO_EFFECT.error(n.location or location, what=n.op)
        for select in original.index.nodes
        if select.op == "topk" and (n := _order_preserving(original.index, select)) is not None
    ]
    loaded = {n.attr["name"] for n in original.index.nodes if n.op == "load"}
    found += [
        mistakes.STATE_UNUSED.error((places or {}).get(s.name), name=s.name)
        for s in original.states
        if s.name not in loaded
    ]
    if not canonical.selects_everything:
        _check_budget(knobs, location)
        if canonical.reads_dense_mass:
            check_dense_layers(original, knobs)
        check_reuse(original, knobs)
    return found


def notes(original: Program, canonical: Program) -> list[VortexError]:
    """What follows from a program without being doubtful: effects that forbid sharing pages by prefix."""
    if not canonical.is_request_local:
        return []
    carried = {s.name for s in original.page_states if s.carried}
    for node in original.index.nodes:
        if node.op == "mass":
            return [mistakes.REQUEST_LOCAL.error(node.location, why="the attention mass of the last step")]
        if node.op == "load" and node.attr["name"] in carried:
            why = f"the carried state {node.attr['name']!r}"
            return [mistakes.REQUEST_LOCAL.error(node.location, why=why)]
    raise AssertionError("request-local without a source of it")


def _check_budget(knobs: Knobs, location: Location | None) -> None:
    budget = Budget(knobs.budget)
    budget.check_everywhere()
    kept = knobs.keep_first + knobs.keep_last
    pages = budget.pages(PROBE_LENGTH, knobs.page_size, layer=0, layers=1)
    if pages < kept:
        raise mistakes.BUDGET_BELOW_KEPT.error(location, pages=pages, length=PROBE_LENGTH, kept=kept)


def _varying_states(program: Program) -> set[str]:
    """States that may differ between pages."""
    varying = {
        name
        for name, i in program.cache.writes
        if any(program.cache.nodes[j].op in ("k", "v") for j in reachable(program.cache, i))
    }
    grown = True
    while grown:
        grown = False
        for name, i in program.writes_of("page"):
            if name not in varying and _varies(program, i, varying):
                varying.add(name)
                grown = True
    return varying


def _varies(program: Program, root: int, varying: set[str]) -> bool:
    """Whether a value of the index graph may differ between pages, as far as its sources tell."""
    graph = program.index
    if _is_zero(graph, root):
        return False
    for i in reachable(graph, root):
        node = graph.nodes[i]
        if node.op in ("position", "mass", "dense_mass") or (
            node.op == "load" and node.attr["name"] in varying
        ):
            return True
        if node.op in _ALONG_PAGES and node.attr["dim"] == "page":
            return True
    return False


def _is_zero(graph: Graph, i: int) -> bool:
    """The canonical form of zero: a product with the number 0."""
    node = graph.nodes[i]
    return node.op == "mul" and any(
        graph.nodes[j].op == "const" and graph.nodes[j].attr["value"] == 0.0 for j in node.inputs
    )


def _order_preserving(graph: Graph, select: Node) -> Node | None:
    """The outermost increasing function of a score, through numbers added to it or multiplied with it."""
    node = graph.nodes[select.inputs[0]]
    while node.op in ("add", "sub", "mul", "div"):
        inputs = [graph.nodes[j] for j in node.inputs]
        rest = [n for n in inputs if n.op != "const"]
        numbers = [n.attr["value"] for n in inputs if n.op == "const"]
        turned = node.op in ("sub", "div") and inputs[0].op == "const"  # c - x and c / x fall where x rises
        if len(rest) != 1 or turned or (node.op in ("mul", "div") and numbers[0] <= 0):
            return None
        node = rest[0]
    share, per_head = select.attr.get("share"), "head" in select.type.names
    if node.spec.traits.increasing == "always" and share != "mean":
        return node
    if node.op == "softmax" and node.attr["dim"] == "page" and not per_head and share is None:
        return node
    return None


def _read(program: Program) -> set[int]:
    """Nodes that the selection depends on, through the states of earlier steps, too."""
    graph, updates = program.index, dict(program.index.writes)
    found = reachable(graph, graph.result)
    while True:
        states = {graph.nodes[i].attr["name"] for i in found if graph.nodes[i].op == "load"}
        more = found.union(*(reachable(graph, updates[name]) for name in states & updates.keys()))
        if more == found:
            return found
        found = more


def reachable(graph: Graph, root: int | None) -> set[int]:
    """Nodes that `root` depends on, itself included."""
    seen: set[int] = set()
    stack = [] if root is None else [root]
    while stack:
        i = stack.pop()
        if i not in seen:
            seen.add(i)
            stack += graph.nodes[i].inputs
    return seen

"""Static checks beyond legality: what is certainly pointless is an error, what is doubtful a warning."""

from __future__ import annotations

from vortex_core.errors import VortexError
from vortex_core.ir import mistakes
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import Graph, Program

PROBE_LENGTH = 32_768


def lint(original: Program, canonical: Program, knobs: Knobs) -> list[VortexError]:
    """Warnings for a verified program.

    Raises:
        VortexError: `VF042` for a score that is the same for every page, `VF063` for a budget that does not
            cover the pages kept by rule.
    """
    from vortex_core.ir.budget import Budget

    found: list[VortexError] = []
    result = canonical.result
    location = original.result.location
    if result.spec.group == "select" and result.inputs:
        reached = reachable(canonical.index, canonical.index.result)
        operators = {canonical.index.nodes[i].op for i in reached}
        score = canonical.index.nodes[result.inputs[0]]
        factors = [canonical.index.nodes[i] for i in score.inputs] if score.op == "mul" else []
        if any(f.op == "const" and f.attr["value"] == 0.0 for f in factors):
            raise mistakes.SCORE_CONSTANT.error(location)
        if "q" not in operators:
            found.append(mistakes.STATIC_SCORE.error(location))
    if original.result.op == "topk":
        score = original.index.nodes[original.result.inputs[0]]
        if score.op in ("exp", "sigmoid", "tanh") or (
            score.op == "softmax" and score.attr["dim"] == "page" and not original.per_query_head
        ):
            found.append(mistakes.NO_EFFECT.error(score.location or location, what=score.op))
    read = {n.attr["name"] for n in original.index.nodes if n.op == "load"}
    for state in original.states:
        if state.name not in read:
            found.append(mistakes.STATE_UNUSED.error(name=state.name))
    if not canonical.selects_everything:
        kept = knobs.keep_first + knobs.keep_last
        pages = Budget(knobs.budget).pages(PROBE_LENGTH, knobs.page_size, layer=0, layers=1)
        if pages < kept:
            raise mistakes.BUDGET_BELOW_KEPT.error(pages=pages, length=PROBE_LENGTH, kept=kept)
    return found


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

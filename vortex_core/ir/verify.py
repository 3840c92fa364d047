"""The verifier: which programs are legal. Run on everything that enters, and after every pass in tests."""

from __future__ import annotations

from vortex_core.ir import mistakes
from vortex_core.ir.graph import MAX_CANONICAL, Graph, Node, check_size
from vortex_core.ir.opset import OPS
from vortex_core.ir.params import MAX_PARAMS
from vortex_core.ir.program import SCALED, STATE_DTYPES, Program, StateDecl
from vortex_core.ir.rules import typed_dims
from vortex_core.ir.schedule import crosses_pages
from vortex_core.ir.types import PARAM_AXES, Stage, Type, check_dim_name

MAX_STATES = 16
MAX_INIT = 1e30  # of a carried state
NOT_CARRIED = "scope 'request', but it is not carried"


def verify(program: Program) -> None:
    """Check a whole program.

    Raises:
        VortexError: the first rule that is broken, with the user's line where it is known.
    """
    names = [s.name for s in program.states]
    if len(set(names)) != len(names):
        raise mistakes.BAD_STATE.error(name=names[0], why="declared twice", dtypes=", ".join(STATE_DTYPES))
    if len(names) > MAX_STATES:
        raise mistakes.TOO_LARGE.error(count=len(names), what="states", limit=MAX_STATES)
    for state in program.states:
        verify_state(state)
    _verify_params(program)
    _verify_graph(program, program.cache, "cache")
    _verify_graph(program, program.index, "index")
    _verify_writes(program)
    if program.cache.result is not None:
        raise mistakes.BAD_IR.error(why="forward_cache selects nothing")
    result = program.index.result
    _verify_residual(program)
    _verify_refinement(program)
    if result is None or program.index.nodes[result].type.kind != "selection":
        raise mistakes.NO_SELECTION.error(
            found="nothing" if result is None else str(program.index.nodes[result].type)
        )


def verify_state(state: StateDecl) -> None:
    """Check one declaration (`VF015`, `VF034`)."""
    check_dim_name(state.name)
    why = ""
    if state.dtype not in STATE_DTYPES:
        why = f"dtype {state.dtype!r}"
    for name, extent in state.dims:
        check_dim_name(name)
        heads = state.of_request and name == "head" and str(extent) == "G"  # as the query's
        if name in ("page", "token", "head", "dtype", "carried", "init", "scope", *PARAM_AXES) and not heads:
            why = f"dimension {name!r}"
        if extent.symbol == "P":
            why = f"{name}={extent} grows with the sequence"
    check_size("a state", Type(state.dims, "float", "page"), None)
    if len(state.dims) > 3:
        why = f"{len(state.dims)} dimensions, at most 3"
    if state.carried and state.dtype in (*SCALED, "bits"):
        why = f"carried with dtype {state.dtype!r}"
    if state.of_request and not state.carried:
        why = NOT_CARRIED
    if state.scale_dim and (
        state.dtype not in SCALED
        or state.scale_dim not in dict(state.dims)
        or state.scale_dim == state.dims[-1][0]
    ):
        why = f"a scale along {state.scale_dim!r}"
    if not state.dims and state.dtype in SCALED:
        why = f"a scalar with dtype {state.dtype!r}, which scales along a dimension"
    if not abs(state.init) <= MAX_INIT:  # not a number is not either
        why = f"an initial value of {state.init}"
    if state.init and not state.carried:
        why = "an initial value, but it is not carried"
    if why:
        raise mistakes.BAD_STATE.error(name=state.name, why=why, dtypes=", ".join(STATE_DTYPES))


def _verify_params(program: Program) -> None:
    names = [p.name for p in program.params]
    if len(set(names)) != len(names) or len(names) > MAX_PARAMS:
        raise mistakes.BAD_PARAM.error(
            name=names[0], why=f"{len(names)} parameters, at most {MAX_PARAMS}, each once"
        )
    declared = {p.name: p.dims for p in program.params}
    for graph in (program.cache, program.index):
        for node in graph.nodes:
            if node.op == "param" and declared.get(node.attr["name"]) != typed_dims(node.attr):
                raise mistakes.BAD_PARAM.error(
                    node.location, name=node.attr["name"], why="no values, or values of other dimensions"
                )


def _verify_graph(program: Program, graph: Graph, stage: Stage) -> None:
    if len(graph.nodes) > MAX_CANONICAL:
        raise mistakes.TOO_LARGE.error(
            count=len(graph.nodes), what="operations in one method", limit=MAX_CANONICAL
        )
    declared = {s.name: s for s in program.states}
    for position, node in enumerate(graph.nodes):
        spec = OPS.get(node.op)
        if spec is None or stage not in spec.stages or len(node.inputs) != spec.arity:
            raise mistakes.BAD_IR.error(why=f"node {position} ({node.op}) is not legal in the {stage} stage")
        if any(not 0 <= i < position for i in node.inputs) or not set(node.attr) <= set(spec.attrs):
            raise mistakes.BAD_IR.error(why=f"node {position} ({node.op}) is malformed")
        inferred = spec.infer(spec, [graph.nodes[i].type for i in node.inputs], node.attr)
        if inferred != node.type:
            raise mistakes.BAD_IR.error(
                why=f"node {position} ({node.op}) is {node.type}, its rule says {inferred}"
            )
        if node.op == "load":
            state = declared.get(node.attr["name"])
            if state is None:
                known = ", ".join(declared) or "none"
                raise mistakes.UNKNOWN_STATE.error(node.location, name=node.attr["name"], known=known)
            if typed_dims(node.attr) != state.dims or node.attr.get("scope", "page") != state.scope:
                raise mistakes.BAD_IR.error(why=f"load of {state.name!r} with other dimensions than declared")


def _verify_residual(program: Program) -> None:
    """A residual is the result, and its value a state as kernels read it."""
    for position, node in enumerate(program.index.nodes):
        if node.op != "residual":
            continue
        if position != program.index.result:
            raise mistakes.BAD_RESIDUAL.error(node.location, why="a selection that is selected from again")
        value = program.index.nodes[node.inputs[2]]
        if value.op != "load":  # one with pages, as the operator's rule wants
            raise mistakes.BAD_RESIDUAL.error(node.location, why=f"a value that is a {value.op}, not a state")
        dtype = program.state(value.attr["name"]).dtype
        if dtype not in ("bf16", "fp16", "fp32"):
            raise mistakes.BAD_RESIDUAL.error(node.location, why=f"a value stored in {dtype}")


def _verify_refinement(program: Program) -> None:
    """One refinement, whose fine score is a page's own and does not change with the steps (`VF071`)."""
    graph = program.index
    refining = [graph.nodes[i] for i in graph.streams if graph.nodes[i].op == "refine"]
    if len(refining) > 1:
        raise mistakes.BAD_REFINEMENT.error(
            refining[1].location, why="two of them in a flow", remedy="unite one with ops.topk(...) instead"
        )
    for node in refining:
        for i in sorted(graph.needed(node.inputs[1])):
            why = _unfit_for_candidates(program, graph.nodes[i])
            if why:
                raise mistakes.BAD_REFINEMENT.error(
                    graph.nodes[i].location or node.location, why=f"a fine score from {why}",
                    remedy="leave it to the coarse score, or to another selection of a union",
                )  # fmt: skip


def _unfit_for_candidates(program: Program, node: Node) -> str:
    """Why candidates cannot compute a node by themselves, in a few words; empty if they can."""
    if crosses_pages(node):
        return f"{node.op} over pages"
    if node.op == "mass":
        return "the attention mass of the step before"
    if node.op == "load" and program.state(node.attr["name"]).carried:
        return f"the carried state {node.attr['name']!r}"
    return ""


def _verify_writes(program: Program) -> None:
    for stage, graph in (("cache", program.cache), ("index", program.index)):
        for name, position in graph.writes:
            node = graph.nodes[position]
            state = next((s for s in program.states if s.name == name), None)
            if state is None:
                known = ", ".join(s.name for s in program.states) or "none"
                raise mistakes.UNKNOWN_STATE.error(node.location, name=name, known=known)
            if stage == "index" and not state.carried:
                raise mistakes.CARRIED_ONLY.error(node.location, name=name)
            if stage == "cache" and state.carried:
                remedy = "carried states start at init and change in forward_indexer: cache[name] = ..."
                raise mistakes.STATE_NOT_WRITTEN.error(node.location, name=name, remedy=remedy)
            check_write(state, node.type)
    written = {n for n, _ in (*program.cache.writes, *program.index.writes)}
    for state in program.states:
        if state.name not in written:
            where = (
                "assign cache[...] in forward_indexer" if state.carried else "return it from forward_cache"
            )
            raise mistakes.STATE_NOT_WRITTEN.error(name=state.name, remedy=where)


def check_write(state: StateDecl, found: Type) -> None:
    """A written value has the declared dimensions (`VF032`); what is written to carried states of pages may have a page
    dimension, and is the same for all of them if it has none."""
    by_page = state.carried and not state.of_request
    dims = tuple(d for d in found.dims if not (by_page and d[0] == "page"))
    if dims != state.dims or found.kind != "float":
        want = "(" + ", ".join(f"{n}={e}" for n, e in state.dims) + ")"
        raise mistakes.STATE_TYPE.error(name=state.name, want=want, found=str(found))

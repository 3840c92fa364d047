"""Tracing: run a flow's methods once on symbolic tensors and keep what they recorded."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from vortex_core.errors import Location, VortexError
from vortex_core.flow import ops
from vortex_core.flow.source_text import source_lines
from vortex_core.flow.vflow import Cache, Page, StateSpec, as_tensor, check_name, vFlow
from vortex_core.flow.vtensor import current, emit, vTensor
from vortex_core.ir import mistakes
from vortex_core.ir.flow import Flow
from vortex_core.ir.graph import Graph, GraphBuilder
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.lint import lint, notes
from vortex_core.ir.params import Values
from vortex_core.ir.program import STATE_DTYPES, Program, StateDecl
from vortex_core.ir.types import Stage
from vortex_core.ir.verify import check_write, verify, verify_state
from vortex_core.text import visible_lines

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Traced(Flow):
    """A flow that has been read from source.

    Attributes:
        source: its text.
        original: the program as written, with source locations.
        warnings: legal but doubtful things (`VortexError.to_json()` each).
        places: where each state is declared.
    """

    source: str
    original: Program
    warnings: tuple[dict[str, Any], ...] = field(default=())
    places: Mapping[str, Location] = field(default_factory=dict, compare=False)

    @property
    def notes(self) -> tuple[dict[str, Any], ...]:
        """What follows from the flow without being doubtful, such as request-local state (`VF046`)."""
        return tuple(n.to_json() for n in notes(self.original, self.program))

    @property
    def flow(self) -> Flow:
        """What is left when the text is left behind."""
        return Flow(self.name, self.program, self.knobs, self.doc, self.origin)


def trace(
    cls: type[vFlow], source: str = "", file: str = "<flow>", params: Mapping[str, Values] | None = None
) -> Traced:
    """Trace a flow class in this process. For trusted code; `load.trace_source` jails the rest.

    Args:
        cls: the flow.
        source: its text, for the lines shown in errors.
        file: its name.
        params: learned values from beside the flow; those in the class come first.

    Raises:
        VortexError: the first mistake, at the author's line.
    """
    lines = source_lines(source)
    tracer = Tracer(cls, params or {})
    try:
        original, knobs = tracer.program()
        original = _with_text(original, lines)
        verify(original)
        program = original.canonical()
        warnings = lint(original, program, knobs, tracer.places)
    except VortexError as error:
        for found in (error, *error.further):
            found.location = _text(found.location, lines)
        raise
    for warning in warnings:
        warning.location = _text(warning.location, lines)
    return Traced(
        tracer.name,
        program,
        knobs,
        doc_of(cls),
        file,
        source=source,
        original=original,
        warnings=tuple(w.to_json() for w in warnings),
        places=tracer.places,
    )


def doc_of(cls: type) -> str:
    """A class's own docstring, bounded and visible; empty if it has none."""
    doc = cls.__dict__.get("__doc__")
    return visible_lines(inspect.cleandoc(doc)) if type(doc) is str else ""


class Tracer:
    """Runs a flow's methods once.

    Args:
        cls: the flow.
        params: learned values from beside it.
        builder: makes the graph of a stage; eager mode has its own.

    Attributes:
        places: where each state is declared.
        states: the declarations so far.
        table: the learned values and how they were declared so far.
    """

    def __init__(
        self,
        cls: type[vFlow],
        params: Mapping[str, Values],
        builder: Callable[[Stage], GraphBuilder] = GraphBuilder,
    ) -> None:
        self.cls = cls
        self.places: dict[str, Location] = {}
        self.table = ops.ParamTable(params)
        self._supplied = params
        self._builder = builder
        self.states: dict[str, StateDecl] = {}

    @property
    def name(self) -> str:
        """The registered name, else the class's. Raises `VF025`."""
        return check_name(getattr(self.cls, "flow_name", self.cls.__name__))

    def program(self) -> tuple[Program, Knobs]:
        """The program as written, and its knobs."""
        assert self.name
        flow = self.cls()
        knobs = flow.knobs
        if isinstance(knobs, dict):
            knobs = Knobs.from_json(knobs)
        if not isinstance(knobs, Knobs):
            raise mistakes.BAD_KNOBS.error(why=f"knobs is a {type(knobs).__name__}")
        table = self.table = ops.ParamTable({**self._supplied, **self._values(flow)})
        self._declare(flow)
        try:
            cache = self._cache(flow, table)
        except VortexError as error:
            error.further = self._also(lambda: self._index(flow, table))
            raise
        index = self._index(flow, table)
        params = tuple(sorted(table.declared.values(), key=lambda p: p.name))
        return Program(tuple(self.states.values()), cache, index, params), knobs

    @staticmethod
    def _also(trace_other: Callable[[], object]) -> tuple[VortexError, ...]:
        """What is wrong with another method, which a first mistake must not hide."""
        try:
            trace_other()
        except VortexError as error:
            return (error,)
        except Exception:  # noqa: BLE001  an exception of the author's own is told when it is the first
            return ()
        return ()

    def _values(self, flow: vFlow) -> dict[str, Values]:
        if not isinstance(flow.params, dict):
            raise mistakes.BAD_PARAM.error(name="params", why=f"params is a {type(flow.params).__name__}")
        return {name: Values.of(name, nested) for name, nested in flow.params.items()}

    def _declare(self, flow: vFlow) -> None:
        specs = flow.create_cache(Page())
        if not isinstance(specs, dict):
            raise self._bad_state("create_cache", "?", f"create_cache returned {type(specs).__name__}")
        for name, spec in specs.items():
            if not isinstance(spec, StateSpec):
                raise self._bad_state("create_cache", name, f"declared as {type(spec).__name__}")
            decl = spec.named(name)
            try:
                verify_state(decl)
            except VortexError as error:
                error.location = error.location or spec.at
                raise
            self.states[name] = decl
            if spec.at is not None:
                self.places[name] = spec.at

    def _cache(self, flow: vFlow, table: ops.ParamTable) -> Graph:
        builder = self._builder("cache")
        values: object = _within(builder, table, lambda: flow.forward_cache(Page(builder)))
        if not isinstance(values, dict):
            remedy = f"forward_cache returned {type(values).__name__}; return a dict of states"
            names = ", ".join(self.states) or "?"
            raise mistakes.STATE_NOT_WRITTEN.error(self.line("forward_cache"), name=names, remedy=remedy)
        writes: dict[str, int] = {}
        for name, value in values.items():
            if name not in self.states:
                known = ", ".join(self.states) or "none"
                raise mistakes.UNKNOWN_STATE.error(self.line("forward_cache"), name=name, known=known)
            try:
                tensor = as_tensor(value, builder, f"state {name}")
                check_write(self.states[name], tensor.type)
            except VortexError as error:
                known_at = builder.nodes[value._id].location if isinstance(value, vTensor) else None
                error.location = error.location or known_at or self.line("forward_cache")
                raise
            writes[name] = tensor._id
        for name, state in self.states.items():
            if name not in writes and not state.carried:
                raise mistakes.STATE_NOT_WRITTEN.error(
                    self.places.get(name), name=name, remedy="return it from forward_cache"
                )
        return builder.graph(writes)

    def _index(self, flow: vFlow, table: ops.ParamTable) -> Graph:
        builder = self._builder("index")
        reader = Cache(builder, self.states)
        q = emit("q", builder=builder)
        selection = _within(builder, table, lambda: flow.forward_indexer(q, reader))
        if not isinstance(selection, ops.Selection):
            found = type(selection).__name__
            shown = str(selection.type) if isinstance(selection, vTensor) else ""
            raise mistakes.NO_SELECTION.error(self.line("forward_indexer"), found=found, type=shown)
        for name, state in self.states.items():
            if state.carried and name not in reader.writes:
                remedy = f"assign cache[{name!r}] in forward_indexer"
                raise mistakes.STATE_NOT_WRITTEN.error(self.places.get(name), name=name, remedy=remedy)
        return builder.graph(
            {name: tensor._id for name, tensor in reader.writes.items()}, selection.tensor._id
        )

    def _bad_state(self, method: str, name: str, why: str) -> VortexError:
        return mistakes.BAD_STATE.error(self.line(method), name=name, why=why, dtypes=", ".join(STATE_DTYPES))

    def line(self, method: str) -> Location | None:
        """Where a method is defined."""
        code = getattr(getattr(self.cls, method, None), "__code__", None)
        return None if code is None else Location(code.co_filename, code.co_firstlineno)


def _within(builder: GraphBuilder, table: ops.ParamTable, call: Callable[[], T]) -> T:
    token, supplied = current.set(builder), ops.supplied.set(table)
    try:
        return call()
    finally:
        current.reset(token)
        ops.supplied.reset(supplied)


def _text(at: Location | None, lines: list[str]) -> Location | None:
    if at is None or at.text or not 1 <= at.line <= len(lines):
        return at
    return replace(at, text=lines[at.line - 1].strip()[:200])


def _with_text(program: Program, lines: list[str]) -> Program:
    def graph(g: Graph) -> Graph:
        return replace(g, nodes=tuple(replace(n, location=_text(n.location, lines)) for n in g.nodes))

    return replace(program, cache=graph(program.cache), index=graph(program.index))

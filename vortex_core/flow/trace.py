"""Tracing: run a flow's methods once on symbolic tensors and keep what they recorded."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from vortex_core.errors import Location, VortexError
from vortex_core.flow import ops
from vortex_core.flow.vflow import Cache, Page, StateSpec, as_tensor, vFlow
from vortex_core.flow.vtensor import emit
from vortex_core.ir import mistakes
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.lint import lint
from vortex_core.ir.program import STATE_DTYPES, Graph, GraphBuilder, Program, StateDecl
from vortex_core.ir.verify import check_write, verify, verify_state

T = TypeVar("T")


@dataclass(frozen=True)
class Traced:
    """A flow that has been read.

    Attributes:
        name: registered name, else the class name.
        doc: the class's docstring.
        source: its text.
        original: the program as written, with source locations.
        program: the canonical program.
        knobs: the flow's settings.
        warnings: legal but doubtful things (`VortexError.to_json()` each).
    """

    name: str
    doc: str
    source: str
    original: Program
    program: Program
    knobs: Knobs
    warnings: tuple[dict[str, Any], ...] = field(default=())

    @property
    def ir_hash(self) -> str:
        """Identity of the program."""
        return self.program.ir_hash

    @property
    def key(self) -> str:
        """Identity of the candidate: program and knobs."""
        return candidate_key(self.program, self.knobs)

    def with_knobs(self, **changes: Any) -> Traced:
        """The same program with other knobs."""
        return replace(self, knobs=self.knobs.with_(**changes))

    def to_json(self) -> dict[str, Any]:
        """Plain data, inverse of `from_json`."""
        return {
            "name": self.name,
            "doc": self.doc,
            "source": self.source,
            "original": self.original.to_json(),
            "knobs": self.knobs.to_json(),
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Traced:
        """Rebuild and verify; the canonical form is computed here, never taken on trust."""
        original = Program.from_json(data["original"])
        knobs = Knobs.from_json(data["knobs"])
        found = tuple(data["warnings"])
        return cls(
            str(data["name"]),
            str(data["doc"]),
            str(data["source"]),
            original,
            original.canonical(),
            knobs,
            found,
        )


def candidate_key(program: Program, knobs: Knobs) -> str:
    """16 hex digits that identify program and knobs together."""
    return hashlib.sha256(f"{program.ir_hash}:{knobs.digest}".encode()).hexdigest()[:16]


def trace(cls: type[vFlow], source: str = "", file: str = "<flow>") -> Traced:
    """Trace a flow class in this process. For trusted code; `load.trace_source` jails the rest.

    Raises:
        VortexError: the first mistake, at the author's line.
    """
    lines = source.splitlines()
    try:
        original, knobs = _trace(cls)
        original = _with_text(original, lines)
        verify(original)
        program = original.canonical()
        warnings = lint(original, program, knobs)
    except VortexError as error:
        error.location = _text(error.location, lines)
        raise
    name = str(getattr(cls, "flow_name", cls.__name__))
    doc = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
    return Traced(name, doc, source, original, program, knobs, tuple(w.to_json() for w in warnings))


def _trace(cls: type[vFlow]) -> tuple[Program, Knobs]:
    flow = cls()
    knobs = flow.knobs
    if isinstance(knobs, dict):
        knobs = Knobs.from_json(knobs)
    if not isinstance(knobs, Knobs):
        raise mistakes.BAD_KNOBS.error(why=f"knobs is a {type(knobs).__name__}")

    specs = flow.create_cache(Page())
    if not isinstance(specs, dict):
        raise mistakes.BAD_STATE.error(
            name="?", why=f"create_cache returned {type(specs).__name__}", dtypes=", ".join(STATE_DTYPES)
        )
    states: dict[str, StateDecl] = {}
    for name, spec in specs.items():
        if not isinstance(spec, StateSpec):
            raise mistakes.BAD_STATE.error(
                name=name, why=f"declared as {type(spec).__name__}", dtypes=", ".join(STATE_DTYPES)
            )
        states[name] = spec.named(name)
        verify_state(states[name])

    builder = GraphBuilder("cache")
    values = _within(builder, lambda: flow.forward_cache(Page(builder)))
    cache = _cache_graph(builder, states, values)

    builder = GraphBuilder("index")
    reader = Cache(builder, states)
    q = emit("q", builder=builder)
    selection = _within(builder, lambda: flow.forward_indexer(q, reader))
    if not isinstance(selection, ops.Selection):
        raise mistakes.NO_SELECTION.error(found=type(selection).__name__)
    writes = {name: tensor._id for name, tensor in reader.writes.items()}
    index = builder.graph(writes, selection.tensor._id)
    return Program(tuple(states.values()), cache, index), knobs


def _cache_graph(builder: GraphBuilder, states: dict[str, StateDecl], values: object) -> Graph:
    if not isinstance(values, dict):
        raise mistakes.STATE_NOT_WRITTEN.error(
            name=", ".join(states) or "?",
            remedy=f"forward_cache returned {type(values).__name__}; return a dict of states",
        )
    writes: dict[str, int] = {}
    for name, value in values.items():
        if name not in states:
            raise mistakes.UNKNOWN_STATE.error(name=name, known=", ".join(states) or "none")
        tensor = as_tensor(value, builder, f"state {name}")
        try:
            check_write(states[name], tensor.type, carried=False)
        except VortexError as error:
            error.location = builder.nodes[tensor._id].location
            raise
        writes[name] = tensor._id
    return builder.graph(writes)


def _within(builder: GraphBuilder, call: Callable[[], T]) -> T:
    token = ops.current.set(builder)
    try:
        return call()
    finally:
        ops.current.reset(token)


def _text(at: Location | None, lines: list[str]) -> Location | None:
    if at is None or at.text or not 1 <= at.line <= len(lines):
        return at
    return replace(at, text=lines[at.line - 1].strip()[:200])


def _with_text(program: Program, lines: list[str]) -> Program:
    def graph(g: Graph) -> Graph:
        return replace(g, nodes=tuple(replace(n, location=_text(n.location, lines)) for n in g.nodes))

    return replace(program, cache=graph(program.cache), index=graph(program.index))

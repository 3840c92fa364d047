"""Programs: two small graphs and the states between them.

`cache` runs once for every completed page (`forward_cache`), `index` at every decode step
(`forward_indexer`). Everything is immutable; passes build new programs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from vortex_core.errors import Location, VortexError
from vortex_core.ir import mistakes
from vortex_core.ir.opset import OPS, OpSpec
from vortex_core.ir.params import ParamDecl
from vortex_core.ir.types import LARGEST, STORED_BITS, Dims, Extent, Stage, Type, make_dims
from vortex_core.text import visible

FORMAT = 1
STATE_DTYPES = tuple(STORED_BITS)
_BITS_ORDER = {"S": 0, "D": 2, "N": 2, "R": 2}  # tokens, anything else, channels
SCALED = ("int8", "int4", "int3", "int2")  # integers, with one fp16 scale a row
MAX_NODES = 400  # as written
MAX_CANONICAL = 2 * MAX_NODES  # the canonical form may repeat what the author shared


@dataclass(frozen=True)
class StateDecl:
    """A value kept for every page (per kv head).

    Attributes:
        name: as in `cache[name]`.
        dims: named extents, canonical order.
        dtype: storage. Integers are symmetric with one fp16 scale per row of the scale's dimension; `int3` and `int2`
            are odd ones, -7 to 7 and -3 to 3, so that all levels are used; `bits` keeps the sign and reads back as
            -1 or 1.
        carried: updated at every decode step by the index graph; starts at `init` when the page completes.
        init: initial value of a carried state.
        scale_dim: the dimension whose values share one scale, of integers only; empty for the last one in
            canonical order. It means something: (row, ch) with a scale a row is not (row, ch) with a scale a channel.
    """

    name: str
    dims: Dims
    dtype: str = "bf16"
    carried: bool = False
    init: float = 0.0
    scale_dim: str = ""

    @property
    def stored(self) -> Dims:
        """The dimensions as they lie in memory: the one that shares a scale comes last, for it is packed.

        Bits have no scale, so that their order means nothing: channels come last, for it is they that are summed.
        """
        if self.dtype == "bits":
            return tuple(sorted(self.dims, key=lambda d: _BITS_ORDER.get(d[1].symbol, 1)))
        last = tuple(d for d in self.dims if d[0] == self.scale_dim)
        return (*(d for d in self.dims if d not in last), *last)

    @classmethod
    def of(
        cls, name: str, dims: Dims, dtype: str, carried: bool, init: float, declared: Sequence[str]
    ) -> StateDecl:
        """A declaration whose dimensions were written in the order `declared`: the last shares a scale."""
        scaled = dtype in SCALED and len(declared) > 1 and declared[-1] != dims[-1][0]
        return cls(name, dims, dtype, carried, init, declared[-1] if scaled else "")


@dataclass(frozen=True)
class Node:
    """One operation. `inputs` are positions in the graph's node list; `attrs` are sorted pairs."""

    op: str
    inputs: tuple[int, ...]
    attrs: tuple[tuple[str, Any], ...]
    type: Type
    location: Location | None = field(default=None, compare=False)

    @cached_property
    def attr(self) -> dict[str, Any]:
        """Attributes by name."""
        return dict(self.attrs)

    @property
    def spec(self) -> OpSpec:
        """The operator."""
        return OPS[self.op]

    @property
    def scores(self) -> tuple[int, ...]:
        """Of a selection by scores these, in the order they are asked; of anything else none."""
        ranks = self.spec.group == "select" and self.op not in ("union", "residual")
        return self.inputs if ranks else ()


@dataclass(frozen=True)
class Residual:
    """What stands for a page that is left out.

    Attributes:
        mass: the node of its log-sum of e^(q . k / sqrt(D)), `(page, head)`.
        state: the name of the state that holds its value.
    """

    mass: int
    state: str


@dataclass(frozen=True)
class Refinement:
    """A selection in two stages.

    Attributes:
        node: the selection.
        coarse: the node of the score by which candidates are chosen.
        fine: that of the score which is computed for candidates alone.
        only: nodes that nothing but the fine score needs, itself among them unless something else does.
        candidates: how many budgets the candidates hold.
        fraction: share of the budget that the selection may use.
    """

    node: int
    coarse: int
    fine: int
    only: frozenset[int]
    candidates: int
    fraction: float


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order, what is written to states, and (index stage) the selection."""

    nodes: tuple[Node, ...] = ()
    writes: tuple[tuple[str, int], ...] = ()
    result: int | None = None

    @property
    def residual(self) -> Residual | None:
        """What stands for the pages that the selection leaves out, where the program says."""
        node = None if self.result is None else self.nodes[self.result]
        if node is None or node.op != "residual":
            return None
        return Residual(
            node.inputs[1], self.nodes[node.inputs[2]].attr.get("name", "")
        )  # the verifier wants a state

    @cached_property
    def refinement(self) -> Refinement | None:
        """The selection in two stages, where the program has one."""
        for i in self.streams:
            node = self.nodes[i]
            if node.op == "refine":
                coarse, fine = node.inputs
                others = [j for k in self.streams for j in self.nodes[k].scores if (k, j) != (i, fine)]
                others += [k for _, k in self.writes]
                if self.residual is not None:
                    others.append(self.residual.mass)
                if coarse == fine:
                    others.append(coarse)
                only = frozenset(self.needed(fine) - self.needed(*others))
                attrs = node.attr
                return Refinement(i, coarse, fine, only, attrs["candidates"], attrs.get("fraction", 1.0))
        return None

    def needed(self, *roots: int) -> set[int]:
        """Nodes that some depend on, themselves included."""
        seen: set[int] = set()
        todo = list(roots)
        while todo:
            i = todo.pop()
            if i not in seen:
                seen.add(i)
                todo += self.nodes[i].inputs
        return seen

    @property
    def streams(self) -> tuple[int, ...]:
        """Selections whose union the result is, in their order; none if it is everything."""
        found: list[int] = []
        todo = [] if self.result is None else [self.result]
        while todo:
            i = todo.pop()
            node = self.nodes[i]
            if node.op == "union":
                todo += reversed(node.inputs)
            elif node.op == "residual":
                todo.append(node.inputs[0])
            elif node.op != "everything" and i not in found:
                found.append(i)
        return tuple(found)


MAX_NUMBERS = 1 << 24  # of one value, per page, at the largest sizes of any model
MAX_LITERAL = 1 << 16  # of one value, per page, counted by dimensions of a written size alone


def check_size(op: str, t: Type, location: Location | None) -> None:
    """Raises `VF026` for a value that is unreasonably large for every page: nothing could hold it."""
    count = written = 1
    for _, extent in t.dims:
        count *= max(1, int(extent.factor * LARGEST.get(extent.symbol, 1)))
        written *= 1 if extent.symbol else int(extent.factor)
    for numbers, limit in ((written, MAX_LITERAL), (count, MAX_NUMBERS)):
        if numbers > limit:
            fits = _fitting(t, numbers, limit)
            raise mistakes.SCRATCH.error(location, op=op, found=str(t), count=numbers, limit=limit, fits=fits)


def _fitting(t: Type, numbers: int, limit: int) -> str:
    """Extents that would be small enough, one of the others' dimensions as they are."""
    shown = []
    for name, extent in t.dims:
        largest = max(1, int(extent.factor * LARGEST.get(extent.symbol, 1)))
        if name not in ("page", "head", "token") and (most := limit * largest // numbers) >= 1:
            shown.append(f"{name}={min(most, largest)}")
    return " or ".join(shown) or "no single one helps"


class GraphBuilder:
    """Appends typed nodes to one stage's graph."""

    def __init__(self, stage: Stage, limit: int = MAX_NODES) -> None:
        self.stage: Stage = stage
        self.limit = limit
        self.nodes: list[Node] = []

    def emit(
        self, op: str, inputs: Sequence[int] = (), location: Location | None = None, **attrs: Any
    ) -> int:
        """Add a node, typed by its operator's rule.

        Raises:
            VortexError: whatever the rule says, with `location`.
        """
        spec = OPS[op]
        assert len(inputs) == spec.arity, (op, inputs)
        assert set(attrs) <= set(spec.attrs), (op, attrs)
        try:
            if self.stage not in spec.stages:
                raise mistakes.WRONG_STAGE.error(
                    op=op,
                    stage=STAGE_METHOD[self.stage],
                    legal=" or ".join(STAGE_METHOD[s] for s in sorted(spec.stages)),
                )
            if len(self.nodes) >= self.limit:
                raise mistakes.TOO_LARGE.error(
                    count=len(self.nodes) + 1, what="operations in one method", limit=self.limit
                )
            kind = spec.infer(spec, [self.nodes[i].type for i in inputs], attrs)
        except VortexError as error:
            if error.location is None:
                error.location = location
            raise
        check_size(op, kind, location)
        self.nodes.append(Node(op, tuple(inputs), tuple(sorted(attrs.items())), kind, location))
        return len(self.nodes) - 1

    def value(self, node: int) -> Any:
        """The value of a node where the builder computes as it records, else None."""
        return None

    def graph(self, writes: dict[str, int], result: int | None = None) -> Graph:
        """Freeze."""
        return Graph(tuple(self.nodes), tuple(sorted(writes.items())), result)


STATE_METHOD_RULE = "carried states start at init and change in forward_indexer: cache[name] = ..."
STAGE_METHOD: dict[Stage, str] = {"cache": "forward_cache", "index": "forward_indexer"}


@dataclass(frozen=True)
class Program:
    """A sparse-attention algorithm, without its knobs.

    Attributes:
        states: what is kept for every page.
        cache: run once for every completed page.
        index: run at every decode step.
        params: learned values.
    """

    states: tuple[StateDecl, ...]
    cache: Graph
    index: Graph
    params: tuple[ParamDecl, ...] = ()

    @property
    def result(self) -> Node:
        """The selection."""
        assert self.index.result is not None
        node = self.index.nodes[self.index.result]
        return self.index.nodes[node.inputs[0]] if node.op == "residual" else node

    @property
    def residual(self) -> Residual | None:
        """What stands for the pages left out, where the program says."""
        return self.index.residual

    def state(self, name: str) -> StateDecl:
        """A declaration by name."""
        return next(s for s in self.states if s.name == name)

    @property
    def needs_mass(self) -> bool:
        """Whether attention must report the mass each page received."""
        return any(n.op == "mass" for n in self.index.nodes)

    @property
    def reads_dense_mass(self) -> bool:
        """Whether it reads the mass that pages receive in this step in a dense layer before it."""
        return any(n.op == "dense_mass" for n in self.index.nodes)

    @property
    def reads_rotary(self) -> bool:
        """Whether it reads the rotary frequencies of the model."""
        return any(n.op == "rotary" for g in (self.cache, self.index) for n in g.nodes)

    @property
    def is_request_local(self) -> bool:
        """Whether page states depend on the request, so prefix pages must not be shared."""
        return self.needs_mass or any(s.carried for s in self.states)

    @property
    def selects_everything(self) -> bool:
        """Whether this is dense attention."""
        return self.result.op == "everything"

    @property
    def per_query_head(self) -> bool:
        """Whether every query head selects for itself."""
        return "head" in self.result.type.names

    @cached_property
    def lowered(self) -> Program:
        """The program as a step computes it: products with states one by one, and what a page can reduce by itself
        reduced there."""
        from vortex_core.ir.linear import distributed
        from vortex_core.ir.page_local import page_local

        index = page_local(distributed(self.index))
        return self if index is self.index else replace(self, index=index)

    @cached_property
    def _canonical(self) -> Program:
        from vortex_core.ir.canonical import canonicalise

        found = canonicalise(self)
        found.__dict__["_canonical"] = found  # it is its own, so that nobody computes it twice
        return found

    def canonical(self) -> Program:
        """The canonical form: equal for programs that must select the same pages."""
        return self._canonical

    @cached_property
    def ir_hash(self) -> str:
        """16 hex digits of the canonical form; the program's identity."""
        program = self.canonical()
        data = replace(program, params=()).to_json(locations=False)
        if program.params:  # large: their digests stand for them
            data["params"] = [[p.name, p.digest] for p in program.params]
        text = json.dumps(data, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self, locations: bool = True, values: bool = True) -> dict[str, Any]:
        """Plain data, inverse of `from_json`. Types are not stored: they follow from the operators.

        Args:
            locations: where each operation is written.
            values: the numbers of learned parameters too, not only their shapes.
        """
        return {
            "format": FORMAT,
            "states": [
                {
                    "name": s.name,
                    "dims": [[n, str(e)] for n, e in s.dims],
                    "dtype": s.dtype,
                    "carried": s.carried,
                    "init": s.init,
                    **({"scale_dim": s.scale_dim} if s.scale_dim else {}),
                }
                for s in self.states
            ],
            "cache": _graph_to_json(self.cache, locations),
            "index": _graph_to_json(self.index, locations),
            **({"params": [p.to_json(values) for p in self.params]} if self.params else {}),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Program:
        """Rebuild, retype and verify.

        Raises:
            VortexError: `VF090` for malformed data, or what the verifier finds.
        """
        from vortex_core.ir.verify import verify

        try:
            if data["format"] != FORMAT:
                raise mistakes.BAD_IR.error(why=f"format {data['format']!r}, this version reads {FORMAT}")
            program = cls(
                tuple(_state_from_json(s) for s in data["states"]),
                _graph_from_json(data["cache"], "cache"),
                _graph_from_json(data["index"], "index"),
                tuple(ParamDecl.from_json(p) for p in data.get("params", ())),
            )
            verify(program)
        except (
            LookupError, TypeError, ValueError, ArithmeticError, AttributeError, AssertionError, RecursionError
        ) as error:  # fmt: skip
            raise mistakes.BAD_IR.error(why=f"{type(error).__name__}: {visible(error)}") from error
        return program


def _state_from_json(data: dict[str, Any]) -> StateDecl:
    dims = make_dims([(_is(n, str), Extent.parse(e)) for n, e in data["dims"]])
    init = float(_is(data["init"], float, int))
    return StateDecl(
        _is(data["name"], str), dims, _is(data["dtype"], str), _is(data["carried"], bool), init,
        _is(data.get("scale_dim", ""), str),
    )  # fmt: skip


def _is(value: Any, *kinds: type) -> Any:
    """The value, if it is exactly of one of these kinds."""
    if type(value) not in kinds:
        raise TypeError(f"{value!r:.40} where {' or '.join(k.__name__ for k in kinds)} belongs")
    return value


def _graph_to_json(graph: Graph, locations: bool) -> dict[str, Any]:
    nodes = []
    for node in graph.nodes:
        item: dict[str, Any] = {"op": node.op, "in": list(node.inputs)}
        if node.attrs:
            item["attrs"] = {k: _plain(v) for k, v in node.attrs}
        if locations and node.location is not None:
            item["at"] = [node.location.file, node.location.line, node.location.text]
        nodes.append(item)
    return {"nodes": nodes, "writes": [[n, i] for n, i in graph.writes], "result": graph.result}


def _graph_from_json(data: dict[str, Any], stage: Stage) -> Graph:
    builder = GraphBuilder(stage, MAX_CANONICAL)
    for item in data["nodes"]:
        if _is(item["op"], str) not in OPS:
            raise mistakes.BAD_IR.error(why=f"unknown operator {item['op']!r:.40}")
        at = item.get("at")
        inputs = [_is(i, int) for i in item["in"]]
        if any(not 0 <= i < len(builder.nodes) for i in inputs):
            raise mistakes.BAD_IR.error(why=f"node {len(builder.nodes)} reads a later node")
        attrs = {str(k): _tuples(v) for k, v in item.get("attrs", {}).items()}
        builder.emit(item["op"], inputs, None if at is None else _location(at), **attrs)
    if len(data["writes"]) > MAX_CANONICAL:
        raise mistakes.BAD_IR.error(why=f"{len(data['writes'])} writes")
    writes = {_is(n, str): _is(i, int) for n, i in data["writes"]}
    result = data["result"]
    for i in [*writes.values(), *([] if result is None else [result])]:
        if type(i) is not int or not 0 <= i < len(builder.nodes):
            raise mistakes.BAD_IR.error(why=f"no node {i!r:.40}")
    return builder.graph(writes, result)


def _location(at: Any) -> Location:
    file, line, text = _is(at, list)
    return Location(visible(_is(file, str)), _is(line, int), visible(_is(text, str), 200))


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value

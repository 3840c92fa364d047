"""Programs: two small graphs and the states between them.

`cache` runs once for every completed page (`forward_cache`), `index` at every decode step
(`forward_indexer`). Everything is immutable; passes build new programs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from vortex_core.errors import Location
from vortex_core.ir import mistakes
from vortex_core.ir.graph import MAX_CANONICAL, Graph, GraphBuilder, Node, Residual
from vortex_core.ir.opset import OPS
from vortex_core.ir.params import ParamDecl
from vortex_core.ir.types import SCOPES, STORED_BITS, Dims, Extent, Scope, Stage, make_dims
from vortex_core.text import visible

FORMAT = 1
STATE_DTYPES = tuple(STORED_BITS)
_BITS_ORDER = {"S": 0, "D": 2, "N": 2, "R": 2}  # tokens, anything else, channels
SCALED = ("int8", "int4", "int3", "int2")  # integers, with one fp16 scale a row


@dataclass(frozen=True)
class StateDecl:
    """A value kept for every page, or for every running request (per layer and kv head).

    Attributes:
        name: as in `cache[name]`.
        dims: named extents, canonical order.
        dtype: storage. Integers are symmetric with one fp16 scale per row of the scale's dimension; `int3` and `int2`
            are odd ones, -7 to 7 and -3 to 3, so that all levels are used; `bits` keeps the sign and reads back as
            -1 or 1.
        carried: updated at every decode step by the index graph; starts at `init` when the page completes, or at the
            request's first step.
        init: initial value of a carried state.
        scale_dim: the dimension whose values share one scale, of integers only; empty for the last one in
            canonical order. It means something: (row, ch) with a scale a row is not (row, ch) with a scale a channel.
        scope: whose value it is, the page's or the request's. Of requests only carried ones.
    """

    name: str
    dims: Dims
    dtype: str = "bf16"
    carried: bool = False
    init: float = 0.0
    scale_dim: str = ""
    scope: Scope = "page"

    @property
    def of_request(self) -> bool:
        """Whether a request has one value of it, and not every page."""
        return self.scope == "request"

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
        cls,
        name: str,
        dims: Dims,
        dtype: str,
        carried: bool,
        init: float,
        declared: Sequence[str],
        scope: Scope = "page",
    ) -> StateDecl:
        """A declaration whose dimensions were written in the order `declared`: the last shares a scale."""
        scaled = dtype in SCALED and len(declared) > 1 and declared[-1] != dims[-1][0]
        return cls(name, dims, dtype, carried, init, declared[-1] if scaled else "", scope)


@dataclass(frozen=True)
class Program:
    """A sparse-attention algorithm, without its knobs.

    Attributes:
        states: what is kept for every page or request.
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
        return self.needs_mass or any(s.carried for s in self.page_states)

    @property
    def remembers(self) -> bool:
        """Whether what a step selects may depend on the steps before."""
        return self.needs_mass or any(s.carried for s in self.states)

    @property
    def page_states(self) -> tuple[StateDecl, ...]:
        """The states of pages."""
        return tuple(s for s in self.states if not s.of_request)

    @property
    def request_states(self) -> tuple[StateDecl, ...]:
        """The states of requests."""
        return tuple(s for s in self.states if s.of_request)

    def writes_of(self, scope: Scope) -> tuple[tuple[str, int], ...]:
        """What a step writes to states of pages or of requests: names and nodes of the index graph."""
        names = {s.name for s in self.states if s.scope == scope}
        return tuple(w for w in self.index.writes if w[0] in names)

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
        """The program as a step computes it: sums from others that are known, products with states one by one,
        functions of signs as such products, and what a page can reduce by itself reduced there."""
        from vortex_core.ir.known_sums import with_known_sums
        from vortex_core.ir.linear import distributed
        from vortex_core.ir.page_local import page_local
        from vortex_core.ir.planes import in_planes

        cache, index = with_known_sums(self.cache, "cache"), with_known_sums(self.index, "index")
        index = page_local(in_planes(distributed(index), {s.name: s for s in self.states}))
        same = cache is self.cache and index is self.index
        return self if same else replace(self, cache=cache, index=index)

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
                    **({"scope": s.scope} if s.of_request else {}),
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
        _is(data.get("scale_dim", ""), str), _scope(data.get("scope", "page")),
    )  # fmt: skip


def _scope(value: Any) -> Scope:
    if value not in SCOPES:
        raise ValueError(f"scope {value!r:.40}")
    found: Scope = value
    return found


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

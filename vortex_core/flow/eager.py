"""Eager mode: the same class on real tensors, for notebooks and debuggers.

Every vTensor holds its value as soon as it is made: `print(x)` shows it, `x.value` is the torch tensor. What is
computed is what the oracle computes, in fp64, for one kv head of one sequence and one decode step.

    from vortex_core.flow import eager
    found = eager.run(Quest, k, v, q)
    found.pages, found.states["kmax"], found
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vortex_core.compiler.evaluate import Evaluator, check_shapes, param_values
from vortex_core.compiler.interface import BatchView, LayerKV
from vortex_core.compiler.oracle import OracleFlow
from vortex_core.compiler.states import Field
from vortex_core.errors import Location
from vortex_core.flow.trace import Tracer
from vortex_core.flow.vflow import vFlow
from vortex_core.flow.vtensor import vTensor
from vortex_core.geometry import Geometry
from vortex_core.ir import mistakes
from vortex_core.ir.graph import Graph, GraphBuilder
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.params import Values
from vortex_core.ir.program import Program
from vortex_core.ir.types import Stage

_SHOWN = 6


@dataclass(frozen=True)
class Run:
    """What one decode step did.

    Attributes:
        pages: logical pages selected, by row: one, or one per query head.
        states: the page states as stored, `[page, *dims]`.
        cache: every value of forward_cache in order; a leading axis runs over the complete pages.
        index: every value of forward_indexer in order.
        program: what was traced on the way.
    """

    pages: list[list[int]]
    states: dict[str, torch.Tensor]
    cache: list[vTensor]
    index: list[vTensor]
    program: Program

    def __repr__(self) -> str:
        lines = [f"pages: {self.pages}"]
        for title, values in (("forward_cache", self.cache), ("forward_indexer", self.index)):
            lines += [title, *(f"  {_line(x)}" for x in values)]
        return "\n".join(lines)


def _line(x: vTensor) -> str:
    node = x._builder.nodes[x._id]
    at = "" if node.location is None else f"line {node.location.line}"
    if node.type.kind == "selection":
        return f"{at:>9}  {node.op:<10} {node.type}"
    flat = x.value.flatten()
    shown = ", ".join(f"{v:.4g}" for v in flat[:_SHOWN].tolist()) + (", ..." if len(flat) > _SHOWN else "")
    return f"{at:>9}  {node.op:<10} {node.type}  [{shown}]"


class _Builder(GraphBuilder):
    """Records a node and computes it."""

    def __init__(
        self, stage: Stage, geometry: Geometry, page_size: int, sources: Mapping[str, torch.Tensor]
    ) -> None:
        super().__init__(stage)
        self.values: dict[int, torch.Tensor] = {}
        self.writes: dict[str, int] = {}
        self._sources = sources
        self._evaluator = Evaluator(Graph(), geometry, page_size, torch.float64, contract=False)

    def emit(self, op: str, inputs: Any = (), location: Location | None = None, **attrs: Any) -> int:
        made = super().emit(op, inputs, location, **attrs)
        node = self.nodes[made]
        if node.type.kind != "selection":
            self._evaluator.graph = Graph(tuple(self.nodes))
            self.values[made] = self._evaluator.node(made, node, self.values, self._sources, None)
        return made

    def value(self, node: int) -> torch.Tensor | None:
        return self.values.get(node)

    def graph(self, writes: dict[str, int], result: int | None = None) -> Graph:
        self.writes = writes
        return super().graph(writes, result)


class _Sources(Mapping[str, torch.Tensor]):
    """Sources by name; states and learned values are made when first read."""

    def __init__(self, given: dict[str, torch.Tensor], session: _Session) -> None:
        self._given, self._session = given, session

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._given:
            kind, _, key = name.partition(":")
            made = {"load": self._session.state, "param": self._session.learned}.get(kind)
            self._given[name] = self._session.rotary() if made is None else made(key)
        return self._given[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)


class _Session:
    def __init__(
        self, cls: type[vFlow], data: _Data, knobs: Knobs | None, params: Mapping[str, Values]
    ) -> None:
        self.tracer = Tracer(cls, params, self.builder)
        self.data = data
        self.knobs = knobs if knobs is not None else cls.knobs
        self.complete = len(data.k) // self.knobs.page_size
        self.builders: dict[Stage, _Builder] = {}

    def builder(self, stage: Stage) -> _Builder:
        d, size = self.data, self.knobs.page_size
        cut = self.complete * size
        f64 = torch.float64
        if stage == "cache":
            missing = d.geometry.head_dim - d.geometry.value_dim
            given = {
                "k": d.k[:cut].to(f64).unflatten(0, (-1, size)),
                "v": torch.nn.functional.pad(d.v[:cut].to(f64), (0, missing)).unflatten(0, (-1, size)),
            }
        else:
            given = {
                "q": d.q.to(f64),
                "position": torch.arange(self.complete, dtype=f64),
                "pages": torch.tensor(float(self.complete), dtype=f64),
                "length": torch.tensor(float(len(d.k)), dtype=f64),
                "mass": d.mass.to(f64),
                "dense_mass": d.dense_mass.to(f64),
            }
        self.builders[stage] = _Builder(stage, d.geometry, size, _Sources(given, self))
        return self.builders[stage]

    def state(self, name: str) -> torch.Tensor:
        """A state as stored and read back, `[page, *dims]`, of a request's `[*dims]`."""
        decl = self.tracer.states[name]
        cache = self.builders["cache"]
        shape = tuple(e.resolve(cache._evaluator.sizes) for _, e in decl.dims)
        pages = torch.arange(self.complete)
        if decl.of_request:
            pages = torch.zeros(1, dtype=torch.int64)
        held = Field.allocate(decl, shape, 1, len(pages), torch.device("cpu"))
        if decl.carried:
            value = torch.full((len(pages), *shape), decl.init, dtype=torch.float64)
        else:
            value = cache.values[cache.writes[name]].expand(self.complete, *shape)
        held.write(slice(None), pages, value.unsqueeze(0))
        return held.read(0, pages[0] if decl.of_request else pages, torch.float64)

    def rotary(self) -> torch.Tensor:
        """The rotary frequencies by channel."""
        if not self.data.geometry.rotary:
            raise mistakes.NO_ROTARY.error()
        return torch.tensor(self.data.geometry.frequencies, dtype=torch.float64)

    def learned(self, name: str) -> torch.Tensor:
        """A learned parameter, of layer 0 and kv head 0."""
        decl = self.tracer.table.declared[name]
        found = param_values(Program((), Graph(), Graph(), (decl,)), torch.device("cpu"), torch.float64)
        return found[f"param:{name}"][0, 0]


@dataclass(frozen=True)
class _Data:
    k: torch.Tensor
    v: torch.Tensor
    q: torch.Tensor
    mass: torch.Tensor
    dense_mass: torch.Tensor
    geometry: Geometry


def run(
    flow: type[vFlow],
    k: torch.Tensor,
    v: torch.Tensor,
    q: torch.Tensor,
    *,
    knobs: Knobs | None = None,
    mass: torch.Tensor | None = None,
    dense_mass: torch.Tensor | None = None,
    rope_dim: int | None = None,
    rotary: Sequence[float] = (),
    params: Mapping[str, Values] | None = None,
) -> Run:
    """Run a flow's methods on one kv head.

    Args:
        flow: the class.
        k: keys `(token, dim)`; MLA: the latent.
        v: values `(token, dim)`; MLA: its first channels.
        q: queries `(head, dim)` of the query heads that share this kv head, after rotation.
        knobs: instead of the flow's own.
        mass: attention mass of the last step, `(page, head)` over complete pages; zero by default.
        dense_mass: that of this step in the dense layer before, alike.
        rope_dim: rotary channels, all by default.
        rotary: radians that each rotary pair turns a token, for flows that read `ops.rotary()`.
        params: learned values from beside the flow; only layer 0 and kv head 0 are used.

    Raises:
        VortexError: `VF027` for other shapes, or whatever is wrong with the flow.
    """
    chosen = knobs if knobs is not None else flow.knobs
    size = chosen.page_size
    if k.dim() != 2 or v.dim() != 2 or q.dim() != 2 or len(v) != len(k) or q.shape[1] != k.shape[1]:
        raise mistakes.BAD_EAGER.error(what=f"k {tuple(k.shape)}, v {tuple(v.shape)}, q {tuple(q.shape)}")
    if len(k) < size:
        raise mistakes.BAD_EAGER.error(what=f"{len(k)} tokens, fewer than one page of {size}")
    dim = k.shape[1]
    geometry = Geometry(1, 1, len(q), dim, dim if rope_dim is None else rope_dim, v.shape[1], tuple(rotary))
    complete = len(k) // size
    received = []
    for x in (mass, dense_mass):
        received.append(torch.zeros(complete, len(q)) if x is None else x)
        if (found := tuple(received[-1].shape)) != (complete, len(q)):
            raise mistakes.BAD_EAGER.error(what=f"mass {found} for {complete} pages, {len(q)} heads")
    session = _Session(flow, _Data(k, v, q, received[0], received[1], geometry), chosen, params or {})
    program, _ = session.tracer.program()
    check_shapes(program, geometry, size)
    return Run(
        _select(program, session),
        {s.name: session.state(s.name) for s in program.states},
        _values(session.builders["cache"]),
        _values(session.builders["index"]),
        program,
    )


def _values(builder: _Builder) -> list[vTensor]:
    return [vTensor(builder, i) for i in range(len(builder.nodes))]


def _select(program: Program, session: _Session) -> list[list[int]]:
    """The oracle's selection, from the whole program."""
    d, size = session.data, session.knobs.page_size
    total = -(-len(d.k) // size)
    pad = total * size - len(d.k)

    def paged(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(x, (0, 0, 0, pad)).unflatten(0, (total, size)).unsqueeze(0)

    oracle = OracleFlow(program, session.knobs, d.geometry)
    states = oracle.new_states(total, torch.device("cpu"))
    oracle.update(states, LayerKV(paged(d.k), paged(d.v)), torch.arange(session.complete), 0)
    if states.mass is not None:
        states.mass[0, : session.complete] = d.mass.to(states.mass.dtype)
    lengths = torch.tensor([len(d.k)])
    budgets = torch.tensor([session.knobs.pages(len(d.k))])
    view = BatchView(
        torch.arange(total).unsqueeze(0), lengths, budgets, len(d.k), dense_mass=d.dense_mass.T.unsqueeze(0)
    )
    found = oracle.select(d.q.unsqueeze(0), states, view, 0)
    return [found.page_ids[0, r, : int(found.counts[0, r])].tolist() for r in range(found.heads)]

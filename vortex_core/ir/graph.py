"""Graphs: typed nodes in topological order, and the builder that records them.

A graph is what one method of a flow computes. Everything is immutable; passes build new graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vortex_core.errors import Location, VortexError
from vortex_core.ir import mistakes
from vortex_core.ir.opset import OPS, OpSpec
from vortex_core.ir.types import LARGEST, Stage, Type

MAX_NODES = 400  # as written
MAX_CANONICAL = 2 * MAX_NODES  # the canonical form may repeat what the author shared
MAX_NUMBERS = 1 << 24  # of one value, per page, at the largest sizes of any model
MAX_LITERAL = 1 << 16  # of one value, per page, counted by dimensions of a written size alone
STAGE_METHOD: dict[Stage, str] = {"cache": "forward_cache", "index": "forward_indexer"}


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

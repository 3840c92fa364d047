"""Evaluation of IR nodes on torch tensors with any number of leading batch axes.

A value's tensor has shape `batch axes + dims`, the dims in the type's canonical order. Values in the `const`
domain may lack the batch axes; they broadcast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vortex_core.errors import VortexError
from vortex_core.geometry import Geometry
from vortex_core.ir import mistakes
from vortex_core.ir.graph import Graph, Node
from vortex_core.ir.opset import OPS
from vortex_core.ir.program import Program
from vortex_core.ir.types import PARAM_AXES, Extent

Names = tuple[str, ...]


def check_shapes(program: Program, geometry: Geometry, page_size: int) -> None:
    """Resolve every extent for a model and page size.

    Raises:
        VortexError: `VF013` or `VF064` at the first that does not fit, with the author's line where known.
    """
    sizes = geometry.symbols(page_size)
    if program.residual is not None and geometry.is_mla:
        raise mistakes.NO_RESIDUAL.error(why="one latent row is both key and value")
    for param in program.params:
        param.check_model(sizes, geometry.layers, geometry.kv_heads)
    for state in program.states:
        for _, extent in state.dims:
            extent.resolve(sizes)
    for graph in (program.cache, program.index):
        for node in graph.nodes:
            try:
                _check_node(graph, node, geometry, sizes)
            except VortexError as error:
                error.location = error.location or node.location
                raise


def _check_node(graph: Graph, node: Node, geometry: Geometry, sizes: Mapping[str, int]) -> None:
    if node.op == "channels":
        channel_range(node, geometry)
    if node.op == "slice":
        _, stop = slice_range(node, sizes)
        full = graph.nodes[node.inputs[0]].type.extent(node.attr["dim"]).resolve(sizes)
        if stop > full:
            raise mistakes.BAD_ATTRIBUTE.error(
                op="slice", name="stop", found=stop, want=f"at most {full} for this model"
            )
    for name, extent in node.type.dims:
        if name != "page":
            extent.resolve(sizes)


def param_values(program: Program, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Learned values by source name, `[layer, kv_head, *dims]`, with size 1 where they do not differ."""
    found = {}
    for p in program.params:
        names = [n for n, _ in p.axes]
        x = torch.tensor(p.values.numbers, dtype=dtype, device=device).view(p.values.shape)
        target = [n for n in PARAM_AXES if n in names] + [n for n, _ in p.dims]
        x = x.permute([names.index(n) for n in target])
        if "layer" not in names:
            x = x.unsqueeze(0)
        found[f"param:{p.name}"] = x if "kv_head" in names else x.unsqueeze(1)
    return found


def channel_range(node: Node, geometry: Geometry) -> tuple[int, int]:
    """First and last+1 channel of a `channels` node. MLA keeps rotary channels last, partial RoPE first."""
    rope, total = geometry.rope_dim, geometry.head_dim
    group = node.attr["group"]
    if group == "nope" and rope == total:
        raise mistakes.NO_CHANNELS.error(node.location, group=group, count=0)
    if geometry.is_mla:
        return (total - rope, total) if group == "rope" else (0, total - rope)
    return (0, rope) if group == "rope" else (rope, total)


def slice_range(node: Node, sizes: Mapping[str, int]) -> tuple[int, int]:
    """Concrete ends of a `slice` node."""
    start, stop = node.attr["start"], node.attr["stop"]
    return (0 if start == 0 else Extent.parse(start).resolve(sizes)), Extent.parse(stop).resolve(sizes)


def align(x: torch.Tensor, names: Names, target: Names) -> torch.Tensor:
    """View `x` with size-1 axes for the dims of `target` it lacks."""
    for position in range(1, len(target) + 1):
        name = target[-position]
        if name not in names:
            x = x.unsqueeze(-position) if x.dim() >= position - 1 else x
    return x


def reorder(x: torch.Tensor, names: Sequence[str], target: Sequence[str]) -> torch.Tensor:
    """Permute the trailing dims from one naming order to another."""
    lead = x.dim() - len(names)
    return x.permute(*range(lead), *(lead + list(names).index(n) for n in target))


class Evaluator:
    """Evaluates one graph for fixed extents.

    Args:
        graph: nodes in topological order.
        geometry: the model.
        page_size: tokens per page.
        dtype: computation dtype.
        contract: whether `sum(mul(...))` runs as one contraction instead of materialising the product.
    """

    def __init__(
        self, graph: Graph, geometry: Geometry, page_size: int, dtype: torch.dtype, contract: bool
    ) -> None:
        self.graph = graph
        self.geometry = geometry
        self.sizes = geometry.symbols(page_size)
        self.dtype = dtype
        self.uses = [0] * len(graph.nodes)
        for node in graph.nodes:
            for i in node.inputs:
                self.uses[i] += 1
        for i in [*(i for _, i in graph.writes), *([] if graph.result is None else [graph.result])]:
            self.uses[i] += 1
        self.contractions: dict[int, list[int]] = {}
        self._absorbed: set[int] = set()
        if contract:
            self._find_contractions()
        self._last_use = self._lifetimes()

    def _find_contractions(self) -> None:
        for i, node in enumerate(self.graph.nodes):
            if node.op != "sum" or "page" in node.attr["dims"]:
                continue
            factors: list[int] = []
            absorbed: list[int] = []
            stack = [node.inputs[0]]
            while stack:
                j = stack.pop()
                inner = self.graph.nodes[j]
                if inner.op == "mul" and self.uses[j] == 1:
                    absorbed.append(j)
                    stack += inner.inputs
                else:
                    factors.append(j)
            # A factor without a summed dimension would be applied to the sum: inf * (1 - 1) is not inf - inf.
            gone = set(node.attr["dims"])
            if len(factors) > 1 and all(gone <= set(self.graph.nodes[j].type.names) for j in factors):
                self.contractions[i] = factors
                self._absorbed.update(absorbed)

    def _lifetimes(self) -> dict[int, list[int]]:
        """Nodes whose value is last used at each position, to be freed there."""
        last: dict[int, int] = {}
        for i, node in enumerate(self.graph.nodes):
            for j in self.contractions.get(i, node.inputs):
                last[j] = i
        keep = {i for _, i in self.graph.writes}
        keep |= {j for n in self.graph.nodes if n.type.kind == "selection" for j in n.inputs}
        ends: dict[int, list[int]] = {}
        for j, i in last.items():
            if j not in keep:
                ends.setdefault(i, []).append(j)
        return ends

    def run(
        self, sources: Mapping[str, torch.Tensor], valid: torch.Tensor | None = None
    ) -> dict[int, torch.Tensor]:
        """Evaluate everything but selections.

        Args:
            sources: tensors by source: `q`, `k`, `v`, `position`, ... and `load:NAME`, with batch axes.
            valid: bool mask of real pages, batch axes + `[page]`; None if all are.

        Returns:
            Values of the written nodes and of the selections' scores, by node number.
        """
        values: dict[int, torch.Tensor] = {}
        for i, node in enumerate(self.graph.nodes):
            if i in self._absorbed or node.type.kind == "selection":
                continue
            values[i] = self.node(i, node, values, sources, valid)
            for j in self._last_use.get(i, ()):
                if self.graph.nodes[j].spec.group != "source":
                    values.pop(j, None)
        return values

    def node(
        self,
        i: int,
        node: Node,
        values: dict[int, torch.Tensor],
        sources: Mapping[str, torch.Tensor],
        valid: torch.Tensor | None,
    ) -> torch.Tensor:
        """The value of one node, given those before it."""
        if node.spec.group == "source":
            return self._source(node, sources)
        if i in self.contractions:
            return self._contract(node, self.contractions[i], values)
        types = [self.graph.nodes[j].type for j in node.inputs]
        args = [values[j] for j in node.inputs]
        names = types[0].names
        if node.op == "principal":
            at = {n: p - len(names) for p, n in enumerate(names)}
            found = OPS[node.op].math(torch, args, at, node.attr)  # type: ignore[misc]
            return reorder(found, (node.attr["into"], node.attr["dim"]), node.type.names)
        if node.op == "split":
            return self._split(node, args[0], names)
        if node.op == "concat":
            return self._concat(node, args, [t.names for t in types])
        if node.op == "rename":
            renamed = [node.attr["to"] if n == node.attr["dim"] else n for n in names]
            return reorder(args[0], renamed, node.type.names)
        attrs: dict[str, Any] = node.attr
        if node.op == "slice":
            start, stop = slice_range(node, self.sizes)
            attrs = {"dim": attrs["dim"], "start_": start, "stop_": stop}
        if node.op == "channels":
            start, stop = channel_range(node, self.geometry)
            attrs = {"dim": "dim", "start_": start, "stop_": stop}
        if valid is not None:
            args = [mask_pages(node, args[0], names, valid), *args[1:]]
        target = names if node.spec.group in ("reduce", "scan", "shape") else node.type.names
        aligned = [align(a, t.names, target) for a, t in zip(args, types, strict=True)]
        axes = {n: p - len(target) for p, n in enumerate(target)}
        math_ = OPS[node.op].math
        assert math_ is not None, node.op
        result: torch.Tensor = math_(torch, aligned, axes, attrs)
        return result

    def _source(self, node: Node, sources: Mapping[str, torch.Tensor]) -> torch.Tensor:
        match node.op:
            case "const":
                return torch.tensor(node.attr["value"], dtype=self.dtype)
            case "extent":
                return torch.tensor(
                    float(Extent.parse(node.attr["extent"]).resolve(self.sizes)), dtype=self.dtype
                )
            case "iota":
                return torch.arange(Extent.parse(node.attr["extent"]).resolve(self.sizes), dtype=self.dtype)
            case "load" | "param":
                return sources[f"{node.op}:{node.attr['name']}"]
        return sources[node.op]

    def _contract(self, node: Node, factors: list[int], values: dict[int, torch.Tensor]) -> torch.Tensor:
        # The smallest first: products are made from the left, and those with a large factor cost the most.
        factors = sorted(factors, key=lambda j: values[j].numel())
        letters: dict[str, str] = {}

        def term(names: Names) -> str:
            return "".join(letters.setdefault(n, chr(97 + len(letters))) for n in names)

        terms = [term(self.graph.nodes[j].type.names) for j in factors]
        equation = ",".join("..." + t for t in terms) + "->..." + term(node.type.names)
        return torch.einsum(equation, *(values[j] for j in factors))

    def _concat(self, node: Node, args: Sequence[torch.Tensor], names: Sequence[Names]) -> torch.Tensor:
        target = node.type.names
        axis = target.index(node.attr["dim"]) - len(target)
        aligned = [align(x, own, target) for x, own in zip(args, names, strict=True)]
        rank = max(x.dim() for x in aligned)
        aligned = [x[(None,) * (rank - x.dim())] for x in aligned]
        shapes = [[1 if n == rank + axis else s for n, s in enumerate(x.shape)] for x in aligned]
        common = torch.broadcast_shapes(*map(tuple, shapes))
        whole = [x.expand(*(-1 if n == rank + axis else s for n, s in enumerate(common))) for x in aligned]
        return torch.cat(whole, axis)

    def _split(self, node: Node, x: torch.Tensor, names: Names) -> torch.Tensor:
        dim, into = node.attr["dim"], node.attr["into"]
        parts = Extent.parse(node.attr["parts"]).resolve(self.sizes)
        axis = names.index(dim) - len(names)
        x = x.unflatten(axis, (parts, -1))
        expanded = [m for n in names for m in ((into, n) if n == dim else (n,))]
        return reorder(x, expanded, node.type.names)


def mask_pages(node: Node, x: torch.Tensor, names: Names, valid: torch.Tensor) -> torch.Tensor:
    """Fill padding pages with the operator's neutral element, where it looks across pages."""
    dims = node.attr.get("dims") or (node.attr.get("dim"),)
    neutral = node.spec.traits.neutral
    if "page" not in dims or neutral is None:
        return x
    mask = align(valid, ("page",), names)
    return torch.where(mask, x, neutral)

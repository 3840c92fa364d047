"""The decode step of a flow, layer by layer: page states, scores, selection, attention.

Both engines run this. They differ in where the batch comes from, which is what a subclass says: static buffers of the
embedded engine, or the request table of a serving engine.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch

from vortex_core.compiler.interface import BatchView, LayerKV
from vortex_core.kernels.decode.config import DecodeConfig
from vortex_core.kernels.decode.plan import PageMass
from vortex_core.page_list import PageList, one_list_a_sequence
from vortex_core.runtime.pool_flow import PoolFlow


class Attention(Protocol):
    """Decode attention over page lists: `AttentionPlan` on GPUs, `TorchAttention` elsewhere."""

    def run(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        pages: PageList,
        scale: float,
        *,
        config: DecodeConfig | None = None,
        out: torch.Tensor | None = None,
        mass: PageMass | None = None,
        lse: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `AttentionPlan.run`."""
        ...

    def page_mass(self, batch: int, columns: int, device: torch.device, *, summed: bool = True) -> PageMass:
        """See `AttentionPlan.page_mass`."""
        ...

    def sharing(self, page_size: int, *, even: bool) -> Attention:
        """See `AttentionPlan.sharing`."""
        ...


class FlowStep:
    """One decode step of a batch, or one captured step that is replayed.

    Args:
        flow: None: every layer attends to everything.
        dense: attention over all pages of a sequence.
        sparse: attention over the flow's lists.

    Attributes:
        lists: newest selections, by the layer that selected.
        dense_mass: what the newest dense layer attended to, see `BatchView`, where a later layer reads it.
    """

    def __init__(self, flow: PoolFlow | None, dense: Attention, sparse: Attention) -> None:
        self.flow, self.dense, self.sparse = flow, dense, sparse
        self.lists: dict[int, PageList] = {}
        self.dense_mass: torch.Tensor | None = None

    # ---- where the batch comes from

    def batch(self) -> BatchView:
        """All sequences. Its budgets are not read."""
        raise NotImplementedError

    def scored(self, budget_row: int) -> BatchView:
        """The sequences that select at this step, with their budgets; the others are of length 0."""
        raise NotImplementedError

    def all_pages(self) -> PageList:
        """Every page of each sequence, one list a sequence, of pages as large as the pool's layout allows."""
        raise NotImplementedError

    def kv(self, layer: int, page_size: int) -> LayerKV:
        """Keys and values of a layer, as pages of some size."""
        raise NotImplementedError

    # ---- what a layer does

    def attend_pages(self, layer: int, q: torch.Tensor, scale: float) -> torch.Tensor:
        """One layer of the step. The layer's K and V of the new tokens are in the pool.

        Args:
            q: `[batch, q_head, dim]`, rotated (MLA: absorbed).

        Returns:
            `[batch, q_head, value_dim]`.
        """
        flow = self.flow
        leader = None if flow is None else flow.plan.leader[layer]
        if flow is None or leader is None:
            if self.records_mass(layer):
                return self._attend_recording(layer, q, scale)
            pages = self.all_pages()
            return self.dense.run(q, *self.kv(layer, pages.page_size).by_page, pages, scale)
        pages = self.pages_of(layer, leader, q)
        k, v = self.kv(layer, flow.page_size).by_page
        config = flow.captured.attention_config(len(q), self.batch().block_table.shape[1], k.dtype)
        merges, observes = flow.compiled.program.residual is not None, flow.compiled.program.needs_mass
        if layer != leader or not (merges or observes):
            return self.sparse.run(q, k, v, pages, scale, config=config)
        mass = self.sparse.page_mass(len(q), pages.columns, q.device) if observes else None
        lse = torch.empty(q.shape[:2], device=q.device) if mass is None else mass.lse
        out = self.sparse.run(q, k, v, pages, scale, config=config, mass=mass, lse=lse)
        if merges:
            flow.check_scale(scale)
            out = flow.captured.merge_residual(out, lse, pages, flow.states[layer], self.batch())
        if mass is None:
            return out
        # Padding writes to the page behind the pool's.
        ids = torch.where(pages.lengths.unsqueeze(-1) > 0, pages.page_ids, flow.pages)
        flow.observe(layer, PageList(ids, pages.lengths, pages.page_size), mass.by_head())
        return out

    def records_mass(self, layer: int) -> bool:
        """Whether a layer that attends to everything keeps what each page receives, for layers after it."""
        return self.flow is not None and layer in self.flow.plan.mass_layers

    def _attend_recording(self, layer: int, q: torch.Tensor, scale: float) -> torch.Tensor:
        """Dense attention over pages of the flow's size, with the mass that each receives."""
        assert self.flow is not None
        view, size = self.batch(), self.flow.page_size
        pages = one_list_a_sequence(view.block_table, view.lengths, size)
        plan = self.dense.sharing(size, even=False)
        mass = plan.page_mass(len(q), pages.columns, q.device, summed=False)
        out = plan.run(q, *self.kv(layer, size).by_page, pages, scale, mass=mass)
        self.dense_mass = mass.by_head_in_place()
        return out

    def pages_of(self, layer: int, leader: int, q: torch.Tensor) -> PageList:
        """The lists that a sparse layer attends to: its own selection, or its leader's."""
        if layer == leader:
            self.complete_pages(layer)
            self.lists[layer] = self.select(layer, q)
        return self.lists[leader]

    def complete_pages(self, layer: int) -> None:
        """Compute the states of the pages that this step's tokens complete."""
        flow = self.flow
        assert flow is not None
        flow.captured.update_decode(flow.states[layer], flow.kv(layer), self.batch(), layer)

    def select(self, layer: int, q: torch.Tensor, lengths: torch.Tensor | None = None) -> PageList:
        """Score and select for a leader.

        Args:
            lengths: where the lists' token counts go, see `CapturedFlow.select_in_place`.
        """
        flow = self.flow
        assert flow is not None
        view = self.scored(flow.plan.budget_row(layer))
        if flow.compiled.program.reads_dense_mass:
            view = replace(view, dense_mass=self.dense_mass)
        return flow.captured.select_in_place(q, flow.states[layer], view, layer, lengths)

"""A flow of any backend behind the interface of captured ones, for engines on machines without a GPU."""

from __future__ import annotations

from dataclasses import replace

import torch

from vortex_core.compiler.interface import BatchView, CompiledFlow, LayerKV, StateStore
from vortex_core.kernels.decode.config import DecodeConfig
from vortex_core.page_list import PageList


class EagerFlow:
    """Asks the host for what a captured flow reads on the device, and copies its lists to where they are wanted."""

    def __init__(self, compiled: CompiledFlow) -> None:
        self.compiled = compiled
        self.program, self.knobs, self.geometry = compiled.program, compiled.knobs, compiled.geometry

    def new_states(self, pages: int, device: torch.device, seats: int = 1) -> StateStore:
        """See `CompiledFlow`."""
        return self.compiled.new_states(pages, device, seats)

    def update(self, states: StateStore, kv: LayerKV, pages: torch.Tensor, layer: int) -> None:
        """See `CompiledFlow`."""
        self.compiled.update(states, kv, pages, layer)

    def select(self, q: torch.Tensor, states: StateStore, view: BatchView, layer: int) -> PageList:
        """See `CompiledFlow`."""
        lengths = view.lengths.long()
        exact = BatchView(
            view.block_table.long(),
            lengths,
            view.budgets.long(),
            int(lengths.max()),
            view.longest_whole,
            dense_mass=view.dense_mass,
            seats=view.seats,
        )
        return self.compiled.select(q, states, exact, layer)

    def observe(self, states: StateStore, selected: PageList, mass: torch.Tensor, layer: int) -> None:
        """See `CompiledFlow`."""
        self.compiled.observe(states, selected, mass, layer)

    def prepare(self, batch: int, width: int, device: torch.device, longest_whole: int = 0) -> None:
        """Nothing is allocated ahead."""

    def list_capacity(self, width: int) -> int:
        """A list may hold every page."""
        return width

    def update_decode(self, states: StateStore, kv: LayerKV, view: BatchView, layer: int) -> None:
        """See `CapturedFlow`."""
        size, lengths = self.knobs.page_size, view.lengths.long()
        done = torch.nonzero((lengths % size == 0) & (lengths > 0)).flatten()
        if len(done):
            self.update(states, kv, view.block_table[done, lengths[done] // size - 1].long(), layer)

    def select_in_place(
        self,
        q: torch.Tensor,
        states: StateStore,
        view: BatchView,
        layer: int,
        lengths: torch.Tensor | None = None,
    ) -> PageList:
        """See `CapturedFlow`."""
        found = self.select(q, states, view, layer)
        if lengths is None:
            return found
        lengths.copy_(found.lengths.flatten())
        return replace(found, lengths=lengths.view_as(found.lengths))

    def merge_residual(
        self, out: torch.Tensor, lse: torch.Tensor, selected: PageList, states: StateStore, view: BatchView
    ) -> torch.Tensor:
        """See `CompiledFlow`."""
        return self.compiled.merge_residual(out, lse, selected, states, view)

    def attention_config(self, batch: int, width: int, kv_dtype: torch.dtype) -> DecodeConfig | None:
        """There is no launch to cut."""
        return None

"""What a backend is: a verified program and a geometry in, page lists out.

Tensor conventions, the same for every backend and engine:

- KV of one layer is `k, v: [kv_head, page, token, dim]` (any strides, `dim` contiguous). For MLA `k` is the
  latent `[1, page, token, kv_lora + rope]` and `v` is its first `kv_lora` channels.
- Physical pages are the rows of that pool; a *block table* `[batch, max_pages]` maps logical to physical pages.
- Query heads of kv head `h` are `h * group ... h * group + group - 1`.
- States of a flow live beside the KV: one `StateStore` per layer, `[kv_head, page, *dims]`.
- What a page's states keep of one request (carried state, attention mass) is stored by physical page as well, so a
  program that has any (`program.is_request_local`) must not share pages between sequences.
- States of requests (`program.request_states`) are `[kv_head, seat, *dims]`. A *seat* is the number under which a
  running request keeps them; no two that run have the same. Whoever gives a seat to a request calls
  `StateStore.begin` before its first step.
- A page is *complete* when all its tokens are written. Only complete pages have states and are scored; the
  trailing partial page is always selected.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch

if TYPE_CHECKING:
    from vortex_core.geometry import Geometry
    from vortex_core.ir.knobs import Knobs
    from vortex_core.ir.program import Program
    from vortex_core.kernels.decode.config import DecodeConfig
    from vortex_core.page_list import PageList


@dataclass(frozen=True)
class LayerKV:
    """Paged keys and values of one layer, `[kv_head, page, token, dim]`."""

    k: torch.Tensor
    v: torch.Tensor

    @cached_property
    def by_page(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The same as attention kernels address it, `[page, token, kv_head, dim]`; views."""
        return self.k.permute(1, 2, 0, 3), self.v.permute(1, 2, 0, 3)


@dataclass(frozen=True)
class BatchView:
    """The sequences of one decode step.

    Attributes:
        block_table: `[batch, max_pages]`, physical page of each logical page (padding: any valid page).
        lengths: `[batch]`, tokens in each sequence including the one being decoded; 0: a row that takes no part.
        budgets: `[batch]`, pages each row may attend (`Knobs.pages`). From `ir.crossover.EVERYTHING` on the row attends
            to every page, whatever ends its selection, and need not be scored.
        max_length: no sequence is longer; known on the host.
        longest_whole: no row that is given `EVERYTHING` is longer; known on the host.
        seats: `[batch]`, where each row's request keeps its states; read where the program has such states
            (`program.request_states`). None: row b sits on seat b. A row of length 0 writes to none.
        dense_mass: float32 `[batch, q_head, page]` over logical pages, the softmax probability that each complete page
            receives in the dense layer before, for programs that read it (`program.reads_dense_mass`); what stands
            past a row's complete pages has no meaning.

    Tensors are int64 for backends that run eagerly, int32 for those whose steps are captured.
    """

    block_table: torch.Tensor
    lengths: torch.Tensor
    budgets: torch.Tensor
    max_length: int
    longest_whole: int = 0
    dense_mass: torch.Tensor | None = None
    seats: torch.Tensor | None = None

    def seats_of(self, states: StateStore) -> torch.Tensor:
        """The rows' seats, int64 `[batch]`."""
        rows = self.block_table.shape[0]
        if self.seats is not None:
            return self.seats.long()
        assert rows <= states.seats, f"{rows} rows, states of {states.seats} requests"
        return torch.arange(rows, device=self.block_table.device)


class StateStore(Protocol):
    """The states of one layer.

    Attributes:
        seats: requests that have room for states of their own.
    """

    seats: int

    def begin(self, seats: torch.Tensor) -> None:
        """Requests begin on `seats` (int64 `[n]`): their states are the initial ones."""
        ...

    def hold(self, seats: int) -> bool:
        """Make room for so many requests; whether storage moved, so that captured steps address what is no more."""
        ...

    def bytes_of_requests(self) -> int:
        """Bytes of storage that states of requests hold."""
        ...

    def bytes_per_page(self) -> int:
        """Bytes of all states of one page, over all kv heads."""
        ...

    def nbytes(self) -> int:
        """Bytes of storage that the states of this layer hold."""
        ...


@runtime_checkable
class CompiledFlow(Protocol):
    """One program compiled for one geometry and one set of knobs. Stateless: states are passed in."""

    program: Program
    knobs: Knobs
    geometry: Geometry

    def new_states(self, pages: int, device: torch.device, seats: int = 1) -> StateStore:
        """States of one layer for a pool of `pages` physical pages, and for `seats` requests that run at once."""
        ...

    def update(self, states: StateStore, kv: LayerKV, pages: torch.Tensor, layer: int) -> None:
        """Run `forward_cache` for complete physical `pages` (int64 `[n]`), all kv heads."""
        ...

    def select(self, q: torch.Tensor, states: StateStore, view: BatchView, layer: int) -> PageList:
        """Run `forward_indexer` for one decode step. `q`: `[batch, q_head, dim]`, rotated (MLA: absorbed)."""
        ...

    def observe(self, states: StateStore, selected: PageList, mass: torch.Tensor, layer: int) -> None:
        """Store the attention mass that the selected pages received, for programs that read it.

        Called after attention where `program.needs_mass`. `mass`: float32 `[batch, q_head, max_selected]`,
        the softmax probability summed over each page's tokens.
        """
        ...

    def merge_residual(
        self, out: torch.Tensor, lse: torch.Tensor, selected: PageList, states: StateStore, view: BatchView
    ) -> torch.Tensor:
        """Attention over a selection merged with what stands for the pages left out, for programs with a residual.

        Called after attention where `program.residual`. `out`: `[batch, q_head, dim]`, may be overwritten; `lse`: fp32
        `[batch, q_head]`, natural log-sum-exp of its scores; `selected`: what `select` returned.
        """
        ...


@runtime_checkable
class CapturedFlow(CompiledFlow, Protocol):
    """A flow whose decode step is launches on device data alone, so that a CUDA graph can hold it.

    Lengths, budgets and page tables are read on the device, and buffers are the same at every call for a shape.
    """

    def prepare(self, batch: int, width: int, device: torch.device, longest_whole: int = 0) -> None:
        """Allocate what steps of `batch` sequences of up to `width` pages need, before the first is captured.

        Args:
            longest_whole: as in the steps' `BatchView`.
        """
        ...

    def list_capacity(self, width: int) -> int:
        """The most pages that a list of a sequence of up to `width` pages can hold."""
        ...

    def update_decode(self, states: StateStore, kv: LayerKV, view: BatchView, layer: int) -> None:
        """`update` for whichever pages the newest tokens of a batch completed."""
        ...

    def select_in_place(
        self,
        q: torch.Tensor,
        states: StateStore,
        view: BatchView,
        layer: int,
        lengths: torch.Tensor | None = None,
    ) -> PageList:
        """`select` into buffers that the next call of the same shape overwrites.

        Args:
            lengths: int32 `[batch * heads]`, where the lists' token counts go instead (unless the program selects
                everything).
        """
        ...

    def attention_config(self, batch: int, width: int, kv_dtype: torch.dtype) -> DecodeConfig | None:
        """How attention over this flow's lists is cut best, where that was measured."""
        ...


class Backend(Protocol):
    """A way to run programs. A backend never falls back to another one silently.

    Attributes:
        name: as in the registry.
        captures: whether its flows are `CapturedFlow`: engines then decode over static buffers, on a GPU from graphs.
    """

    name: str
    captures: bool

    def unfit(self, device: torch.device) -> str | None:
        """Why an engine cannot run on a device with it, in a few words; None if it can."""
        ...

    def compile(self, program: Program, knobs: Knobs, geometry: Geometry) -> CompiledFlow:
        """Compile, or raise a `VortexError` that names what the backend cannot do."""
        ...

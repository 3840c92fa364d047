"""What a backend is: a verified program and a geometry in, page lists out.

Tensor conventions, the same for every backend and engine:

- KV of one layer is `k, v: [kv_head, page, token, dim]` (any strides, `dim` contiguous). For MLA `k` is the
  latent `[1, page, token, kv_lora + rope]` and `v` is its first `kv_lora` channels.
- Physical pages are the rows of that pool; a *block table* `[batch, max_pages]` maps logical to physical pages.
- Query heads of kv head `h` are `h * group ... h * group + group - 1`.
- States of a flow live beside the KV: one `StateStore` per layer, `[kv_head, page, *dims]`.
- Request-local state (carried state, attention mass) is stored by physical page as well, so a program that has
  any (`program.is_request_local`) must not share pages between sequences.
- A page is *complete* when all its tokens are written. Only complete pages have states and are scored; the
  trailing partial page is always selected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from vortex_core.geometry import Geometry
    from vortex_core.ir.knobs import Knobs
    from vortex_core.ir.program import Program


@dataclass(frozen=True)
class LayerKV:
    """Paged keys and values of one layer, `[kv_head, page, token, dim]`."""

    k: torch.Tensor
    v: torch.Tensor


@dataclass(frozen=True)
class BatchView:
    """The sequences of one decode step.

    Attributes:
        block_table: int64 `[batch, max_pages]`, physical page of each logical page (padding: any valid page).
        lengths: int64 `[batch]`, tokens in each sequence including the one being decoded.
        budgets: int64 `[batch]`, pages each row may attend (`Knobs.pages`).
        max_length: the largest of `lengths`, known on the host.
    """

    block_table: torch.Tensor
    lengths: torch.Tensor
    budgets: torch.Tensor
    max_length: int


@dataclass(frozen=True)
class PageList:
    """Selected pages.

    Attributes:
        page_ids: int64 `[batch, heads, max_selected]` physical pages in logical order, so the sequence's last
            page, the only one that may be partial, is last; entries past a row's count are padding (any valid page).
        counts: int64 `[batch, heads]`, pages selected.
        lengths: int64 `[batch, heads]`, tokens along the list (all pages full but the last).
        heads: `kv_heads`, or query heads where each selects for itself.
    """

    page_ids: torch.Tensor
    counts: torch.Tensor
    lengths: torch.Tensor

    @property
    def heads(self) -> int:
        """Rows per sequence."""
        return self.page_ids.shape[1]


class StateStore(Protocol):
    """The page states of one layer."""

    def bytes_per_page(self) -> int:
        """Bytes of all states of one page, over all kv heads."""
        ...

    def nbytes(self) -> int:
        """Bytes held."""
        ...


class CompiledFlow(Protocol):
    """One program compiled for one geometry and one set of knobs. Stateless: states are passed in."""

    program: Program
    knobs: Knobs
    geometry: Geometry

    def new_states(self, pages: int, device: torch.device) -> StateStore:
        """States of one layer for a pool of `pages` physical pages."""
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


class Backend(Protocol):
    """A way to run programs. A backend never falls back to another one silently."""

    name: str

    def compile(self, program: Program, knobs: Knobs, geometry: Geometry) -> CompiledFlow:
        """Compile, or raise a `VortexError` that names what the backend cannot do."""
        ...

"""One flow on one foreign KV pool: page states beside the pool, and the decode step of each layer.

States are indexed by the physical page of the pool they describe. So whoever allocates, frees or shares a page
does the same to its states, and there is nothing to synchronise. What must hold is that the states of every
*complete* page are those of its content: pages that prefill completes are noted and computed before the next
step, pages that decode completes are computed in the step itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from vortex_core.compiler import backends
from vortex_core.compiler.interface import BatchView, CompiledFlow, LayerKV, StateStore
from vortex_core.compiler.triton.backend import TritonFlow
from vortex_core.geometry import Geometry
from vortex_core.ir.flow import Flow
from vortex_core.kernels import write_latent
from vortex_core.serving.attend import Attend, Lists, PoolLayer, TorchAttend, TritonAttend
from vortex_core.serving.plan import budget_table, layer_plan
from vortex_core.serving.step_view import StepView

UPDATE_PAGES = 4096  # pages per state update: bounds the memory of the torch backend


@dataclass(frozen=True)
class PoolShape:
    """What a decoder must know of a pool before its tensors exist.

    Attributes:
        pages: physical pages, of the flow's size.
        layers: first layer of this process and the one after its last.
        kv_dtype: storage of K and V.
        batch: the most sequences of a step.
        longest: the most tokens of a sequence.
    """

    pages: int
    layers: tuple[int, int]
    kv_dtype: torch.dtype
    batch: int
    longest: int


def compile_flow(bundle: Flow, geometry: Geometry, backend: str) -> CompiledFlow:
    """Compile for a model; raises what the backend finds."""
    return backends.get(backend).compile(bundle.program, bundle.knobs, geometry)


def state_bytes_per_page(compiled: CompiledFlow) -> int:
    """Bytes of one page's states in one layer, all kv heads; nothing is allocated."""
    return compiled.new_states(1, torch.device("meta")).nbytes()


def batch_bucket(batch: int, largest: int) -> int:
    """The size to which a batch outside a graph is padded: few sizes, so that few workspaces exist."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 32), *range(256, largest + 128, 128)]
    return min(largest, next(size for size in sizes if size >= batch))


class FlowDecoder:
    """Runs a flow at decode, for one rank of a serving engine.

    Args:
        bundle: the flow.
        geometry: the model as this rank sees it.
        pool: shape of the KV pool.
        layer: keys and values of a layer, `[slot, kv_head, dim]`; asked for once per layer.
        backend: `triton` or `torch`.
    """

    def __init__(
        self,
        bundle: Flow,
        geometry: Geometry,
        pool: PoolShape,
        layer: Callable[[int], tuple[torch.Tensor, torch.Tensor]],
        device: torch.device,
        backend: str,
    ) -> None:
        self.bundle, self.geometry, self.pool, self.device = bundle, geometry, pool, device
        self.page_size = bundle.knobs.page_size
        self.plan = layer_plan(bundle.program, bundle.knobs, geometry.layers)
        self.compiled = compile_flow(bundle, geometry, backend)
        self.kv = {i: self._paged(*layer(i)) for i in range(*pool.layers)}
        own = [i for i in self.plan.leaders if i in self.kv]
        self.states: dict[int, StateStore] = {i: self.compiled.new_states(pool.pages, device) for i in own}
        table = budget_table(self.plan, pool.longest) if own else []
        self.view = StepView(
            pool.batch, pool.longest, self.page_size, table or [[0] * (pool.longest + 1)], device
        )
        self.count = 0
        # Newest lists by rows of the step and leader; those of a captured step are rewritten at its replays.
        self._lists: dict[int, dict[int, Lists]] = {}
        self._pending: list[torch.Tensor] = []
        per_head = bundle.program.per_query_head
        self._dense: Attend
        self._sparse: Attend
        if backend == "triton":
            shape = (geometry, self.page_size, pool.kv_dtype, pool.batch, device)
            self._dense = TritonAttend(*shape, per_query_head=False)
            self._sparse = TritonAttend(*shape, per_query_head=True) if per_head else self._dense
        else:
            self._dense = self._sparse = TorchAttend(geometry)

    def _paged(self, k: torch.Tensor, v: torch.Tensor) -> PoolLayer:
        """`[slot, kv_head, dim]` as pages of the flow's size; a last slot run shorter than a page is left out."""
        pages = min(self.pool.pages, len(k) // self.page_size)
        assert pages == self.pool.pages, (pages, self.pool.pages)
        cut = (x[: pages * self.page_size].unflatten(0, (pages, self.page_size)) for x in (k, v))
        return PoolLayer(*cut)

    @property
    def state_bytes(self) -> int:
        """Bytes of all page states."""
        return sum(states.nbytes() for states in self.states.values())

    # ---- prefill -------------------------------------------------------------------------------------------

    def note_complete(self, pages: torch.Tensor) -> None:
        """Physical pages (any integer dtype, on the device) that the coming prefill step completes."""
        if len(pages) and self.states:
            self._pending.append(pages)

    def settle(self) -> None:
        """Compute the states of the noted pages. Call before every step: what prefill wrote is there by then."""
        if not self._pending:
            return
        pages = torch.cat(self._pending)
        self._pending.clear()
        for layer, states in self.states.items():
            for part in pages.split(UPDATE_PAGES):
                self.compiled.update(states, self._flow_kv(layer), part, layer)

    def _flow_kv(self, layer: int) -> LayerKV:
        kv = self.kv[layer]
        return LayerKV(kv.k.permute(2, 0, 1, 3), kv.v.permute(2, 0, 1, 3))

    # ---- decode --------------------------------------------------------------------------------------------

    def begin(
        self, slots: torch.Tensor, requests: torch.Tensor, lengths: torch.Tensor, *, padded: int | None = None
    ) -> None:
        """Read the batch of a decode step (see `StepView.fill`) and settle what prefill left.

        Args:
            padded: rows of the step where it is padded; the rows past the batch are sequences of one token.
        """
        self.settle()
        self.view.fill(slots, requests, lengths)
        self.count = len(requests)
        if padded is not None and padded > self.count:
            self.view.pad(self.count, padded)
            self.count = padded

    def prepare(self, batch: int) -> None:
        """Allocate what a step of `batch` sequences needs, before it is captured."""
        if isinstance(self.compiled, TritonFlow) and self.states:
            self.compiled.workspace(batch, self.view.width, self.device)

    @property
    def writes_latent(self) -> bool:
        """Whether `write_latent` is there: MLA with the Triton kernels."""
        return self.geometry.is_mla and isinstance(self._dense, TritonAttend)

    def write_latent(
        self,
        layer: int,
        slots: torch.Tensor,
        latent: torch.Tensor,
        rope: torch.Tensor,
        q_latent: torch.Tensor,
        q_rope: torch.Tensor,
    ) -> torch.Tensor:
        """Store a layer's latent rows of the step's tokens, and put their queries together: one launch for both.

        Args: as of `kernels.write_latent`, without the cache.

        Returns:
            `[batch, q_head, dim]`.
        """
        return write_latent(latent, rope, self.kv[layer].k[:, :, 0], slots, q_latent, q_rope)

    def attend(self, layer: int, q: torch.Tensor, scale: float) -> torch.Tensor:
        """One layer of the step. The layer's K and V of the new tokens are in the pool.

        Args:
            q: `[batch, q_head, dim]`, rotated (MLA: absorbed).

        Returns:
            `[batch, q_head, value_dim]`.
        """
        leader = self.plan.leader[layer]
        if leader is None:
            lists = Lists(self.view.table[: len(q)].unsqueeze(1), self.view.lengths[: len(q)].unsqueeze(1))
            return self._dense(q, self.kv[layer], lists, scale)
        found = self._lists.setdefault(len(q), {})
        if layer == leader:
            found[layer] = self._select(layer, q)
        config = None
        if isinstance(self.compiled, TritonFlow):
            config = self.compiled.attention_config(len(q), self.view.width, self.kv[layer].k.dtype)
        return self._sparse(q, self.kv[layer], found[leader], scale, config)

    def _select(self, layer: int, q: torch.Tensor) -> Lists:
        """Update the states of pages that this step completed, score, select."""
        batch, states, kv = len(q), self.states[layer], self._flow_kv(layer)
        view = BatchView(
            self.view.table[:batch],
            self.view.lengths[:batch],
            self.view.budgets[self.plan.budget_row(layer), :batch],
            self.view.width * self.page_size,
        )
        if isinstance(self.compiled, TritonFlow):
            self.compiled.update_decode(states, kv, view, layer)
            ids, lens = self.compiled.select_in_place(q, states, view, layer)
            return Lists(ids.view(batch, -1, ids.shape[-1]), lens.view(batch, -1))
        lengths = view.lengths.long()
        done = torch.nonzero(lengths % self.page_size == 0).flatten()
        if len(done):
            pages = view.block_table[done, lengths[done] // self.page_size - 1].long()
            self.compiled.update(states, kv, pages, layer)
        exact = BatchView(view.block_table.long(), lengths, view.budgets.long(), int(lengths.max()))
        found = self.compiled.select(q, states, exact, layer)
        return Lists(found.page_ids.to(torch.int32), found.lengths.to(torch.int32))

    def lists(self, batch: int) -> dict[int, Lists]:
        """Newest selections of steps of `batch` rows, by the layer that selected."""
        return self._lists.get(batch, {})

    # ---- proof of what ran ---------------------------------------------------------------------------------

    def attended(self) -> torch.Tensor | None:
        """Float64 `[2]` on the device: tokens that the newest selection attends, and tokens there are, summed
        over its rows and the sequences longer than one token. None where nothing has selected."""
        found = self.lists(self.count)
        if not found:
            return None
        lens = found[max(found)].lens
        lengths = self.view.lengths[: len(lens), None].expand_as(lens)
        real = (lengths > 1).double()
        return torch.stack([(lens * real).sum(), (lengths * real).sum()])

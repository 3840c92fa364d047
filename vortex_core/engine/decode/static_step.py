"""One decode step over buffers that never move: what a CUDA graph captures.

Everything here is a launch on device data. Lengths, page tables and tokens are read from the buffers, so the same
launches serve every later step; a row with length 0 is padding and touches nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from vortex_core.compiler.interface import BatchView, PageList
from vortex_core.compiler.states import TorchStates
from vortex_core.compiler.triton.backend import TritonFlow
from vortex_core.engine.decode.budget_table import BudgetTable
from vortex_core.engine.decode.selection import LoadedFlow
from vortex_core.engine.decode.step_kernels import begin_step
from vortex_core.engine.fused.kernels import keep_lists
from vortex_core.engine.kv.blocks import BLOCK_TOKENS
from vortex_core.engine.kv.pool import KVPool
from vortex_core.geometry import Geometry
from vortex_core.kernels.decode.config import DecodeConfig, decode_config
from vortex_core.kernels.decode.mla import mla_config, mla_decode, mla_decode_workspace, mla_rows
from vortex_core.kernels.decode.paged import paged_decode, paged_decode_workspace
from vortex_core.kernels.decode.split import SplitWorkspace
from vortex_core.kernels.pages import PageList as Rows
from vortex_core.kernels.pages import shared_page_list
from vortex_core.kernels.write.paged import write_kv

Observer = Callable[[int, torch.Tensor], None]


class StaticBuffers:
    """Inputs and outputs of decode steps for up to `rows` sequences of up to `blocks` blocks.

    Attributes:
        tokens: int64 `[rows]`, fed at the next step; a greedy step writes the next ones here.
        lengths: int32 `[rows]`, tokens with keys and values in the pool; a step begins by adding `active`.
        active: int32 `[rows]`, 1 for sequences, 0 for padding.
        ages: int32 `[rows]`, steps done.
        blocks: int32 `[rows, blocks]`, physical blocks of 128 tokens.
        pages: the same in the flow's pages.
        logits: float32 `[rows, vocab]` of the last step.
        logprobs: float32 `[rows]` of the tokens a greedy step chose.
        attended: int64 `[rows, heads]`, tokens listed so far, over sparse layers.
    """

    def __init__(
        self, rows: int, blocks: int, page_size: int, heads: int, vocab: int, device: torch.device
    ) -> None:
        def ints(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        self.rows, self.width = rows, blocks
        self.per_block = BLOCK_TOKENS // page_size
        self.tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        self.lengths, self.active, self.ages = ints(rows), ints(rows), ints(rows)
        self.blocks = ints(rows, blocks)
        self.pages = self.blocks if self.per_block == 1 else ints(rows, blocks * self.per_block)
        self.logits = torch.zeros(rows, vocab, device=device)
        self.logprobs = torch.zeros(rows, device=device)
        self.attended = torch.zeros(rows, heads, dtype=torch.int64, device=device)

    def state(self) -> list[torch.Tensor]:
        """What a step changes besides the pool."""
        return [
            self.tokens, self.lengths, self.active, self.ages, self.logits, self.logprobs, self.attended,
        ]  # fmt: skip


class AttentionSpace:
    """Scratch and configuration of the decode kernels for a geometry, for up to `rows` sequences."""

    def __init__(self, geometry: Geometry, dtype: torch.dtype, device: torch.device) -> None:
        self.geometry, self.dtype, self.device = geometry, dtype, device
        self._spaces: dict[tuple[int, int], SplitWorkspace] = {}

    def at(self, rows: int, lists: int) -> SplitWorkspace:
        """Scratch of a launch of `rows` sequences with `lists` lists each; the same one at every call."""
        g = self.geometry
        key = (rows, lists)
        if key not in self._spaces:
            if g.is_mla:
                config = mla_config(g.group, self.dtype, BLOCK_TOKENS)
                self._spaces[key] = mla_decode_workspace(rows, g.group, self.device, config, g.value_dim)
            else:
                group = g.kv_heads * g.group // lists
                config = decode_config(
                    g.head_dim, group, self.dtype, BLOCK_TOKENS, rows * lists, alone=rows == 1
                )
                self._spaces[key] = paged_decode_workspace(
                    rows, lists, group, g.value_dim, self.device, config
                )
        return self._spaces[key]


class StaticStep:
    """A step of the first `rows` rows with tables `blocks` wide. See `seam.Step` for `attend`.

    Args:
        selects: whether rows whose age is a multiple of `reuse_steps` select anew; without, all keep their lists.
        kept: lists carried from step to step, by leader; empty where every step selects.
        observer: called with layer and queries before attention, with the new K and V in place.
    """

    def __init__(
        self,
        buffers: StaticBuffers,
        pool: KVPool,
        flow: LoadedFlow | None,
        budgets: BudgetTable | None,
        space: AttentionSpace,
        rows: int,
        blocks: int,
        *,
        selects: bool = True,
        kept: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.pool, self.flow, self.budgets, self.space = pool, flow, budgets, space
        self.rows, self.selects, self.kept, self.observer = rows, selects, kept or {}, observer
        self.page_size = BLOCK_TOKENS if flow is None else flow.page_size
        self.buffers = buffers
        self.lengths, self.ages = buffers.lengths[:rows], buffers.ages[:rows]
        self.blocks = buffers.blocks[:rows, :blocks]
        self.pages = buffers.pages[:rows, : blocks * buffers.per_block]
        self.max_length = blocks * BLOCK_TOKENS
        self.attended = buffers.attended[:rows]
        self._list: tuple[torch.Tensor, torch.Tensor] | None = None
        self.counts = self._counts()
        self._begin()

    def _begin(self) -> None:
        """Make room for the tokens being decoded."""
        # Rows that keep their lists select nothing: to the indexer they are empty.
        self.slots, positions, self.selecting = begin_step(
            self.lengths, self.buffers.active[: self.rows], self.ages, self.blocks,
            period=1 if self.flow is None else self.flow.knobs.reuse_steps, block_tokens=BLOCK_TOKENS,
        )  # fmt: skip
        self.positions = positions[:, None]
        self._budgets: dict[int, torch.Tensor] = {}

    def _counts(self) -> torch.Tensor | None:
        """Where each leader's token counts go, `[leader, rows * heads]`, to be added up once a step.

        None where they must be added layer by layer: lists that are kept from step to step, and flows whose list is
        the page table itself.
        """
        flow = self.flow
        if flow is None or self.kept or not flow.plan.leaders or flow.compiled.program.selects_everything:
            return None
        return torch.zeros(
            len(flow.plan.leaders), self.attended.numel(), dtype=torch.int32, device=self.attended.device
        )

    def finish(self) -> None:
        """Count what the step attended."""
        if self.counts is None:
            return
        assert self.flow is not None
        size, last = (len(self.flow.plan.groups[self.flow.plan.leaders[i]]) for i in (0, -1))
        total = self.counts.sum(0, dtype=torch.int64)
        if size > 1:
            total *= size
        if last < size:  # of all groups, only the last may be smaller
            total -= self.counts[-1] * (size - last)
        self.attended.add_(total.view_as(self.attended))

    def view(self, layer: int) -> BatchView:
        """The batch as a leader's indexer sees it."""
        assert self.flow is not None and self.budgets is not None
        row = self.flow.plan.budget_row(layer)
        if row not in self._budgets:
            self._budgets[row] = self.budgets.table[row].index_select(0, self.lengths)
        return BatchView(self.pages, self.selecting, self._budgets[row], self.max_length)

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Store the new token, update states, select, attend."""
        self._write(layer, k[:, :, 0], v[:, :, 0])
        return self.attend_stored(layer, q, scale)

    def target(self, layer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Where the new tokens' keys and values belong, for those who store them and call `attend_stored`.

        `[kv_head, slot, dim]` of each (of the latent twice), and int64 slots `[batch]`, -1 for padding.
        """
        return *self.pool.layer(layer), self.slots

    def attend_stored(self, layer: int, q: torch.Tensor, scale: float) -> torch.Tensor:
        """`attend` for keys and values that are in the pool already."""
        q = q[:, :, 0]
        if self.observer is not None:
            self.observer(layer, q)
        leader = None if self.flow is None else self.flow.plan.leader[layer]
        if leader is None:
            out = self._attend(layer, q, self.blocks, self.lengths, scale, BLOCK_TOKENS)
        else:
            out = self._sparse(layer, leader, q, scale)
        return out[:, None]

    def _write(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """`k, v`: `[batch, kv_head, dim]`."""
        keys, values = self._cache(layer, BLOCK_TOKENS)
        if self.pool.geometry.is_mla:
            write_kv(k, None, keys, None, self.slots)
        else:
            write_kv(k, v, keys, values, self.slots)

    def _cache(self, layer: int, page_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`[page, token, kv_head, dim]`, as the kernels address it."""
        kv = self.pool.paged(layer, page_size)
        return kv.k.permute(1, 2, 0, 3), kv.v.permute(1, 2, 0, 3)

    def _sparse(self, layer: int, leader: int, q: torch.Tensor, scale: float) -> torch.Tensor:
        flow = self.flow
        assert flow is not None and isinstance(flow.compiled, TritonFlow)
        compiled, size = flow.compiled, flow.page_size
        if layer == leader:
            states = flow.states[layer]
            assert isinstance(states, TorchStates)
            whole = BatchView(self.pages, self.lengths, self.lengths, self.max_length)
            compiled.update_decode(states, self.pool.paged(layer, size), whole, layer)
            self._list = self._select(layer, q, compiled, states)
        assert self._list is not None
        ids, lens = self._list
        if self.counts is None:
            self.attended.add_(lens.view(self.rows, -1))
        want_mass = layer == leader and compiled.program.needs_mass
        return self._attend(layer, q, ids, lens, scale, size, per_head=True, want_mass=want_mass)

    def _select(
        self, layer: int, q: torch.Tensor, compiled: TritonFlow, states: TorchStates
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The lists of a leader's group: int32 `[batch * heads, columns]` and token counts."""
        assert self.flow is not None
        kept, flow_leaders = self.kept.get(layer), self.flow.plan.leaders
        counts = None if self.counts is None else self.counts[flow_leaders.index(layer)]
        new = compiled.select_in_place(q, states, self.view(layer), layer, counts) if self.selects else None
        if kept is None:
            assert new is not None
            return new[0].reshape(-1, new[0].shape[-1]), new[1].reshape(-1)
        ids, lens = (x[: self.rows * (x.shape[0] // self.buffers.rows)] for x in kept)
        keep_lists(
            ids, lens, new, self.pages, self.lengths, self.ages,
            period=self.flow.knobs.reuse_steps, page_size=self.page_size,
        )  # fmt: skip
        return ids, lens

    def _attend(
        self,
        layer: int,
        q: torch.Tensor,
        ids: torch.Tensor,
        lens: torch.Tensor,
        scale: float,
        page_size: int,
        *,
        per_head: bool = False,
        want_mass: bool = False,
    ) -> torch.Tensor:
        """Attention of `q` `[batch, q_head, dim]` over one list a sequence, or one a selecting head."""
        g = self.pool.geometry
        batch, q_heads = q.shape[:2]
        keys, values = self._cache(layer, page_size)
        out = torch.empty(batch, q_heads, g.value_dim, dtype=q.dtype, device=q.device)
        if g.is_mla:
            lists = mla_rows(q_heads)
            mass = self._mass_buffers(batch, q_heads, lists, ids.shape[-1], q.device) if want_mass else {}
            mla_decode(
                q, keys[:, :, 0], ids, lens, workspace=self.space.at(batch, 1),
                config=self._tuned(keys.dtype, per_head) or mla_config(q_heads, keys.dtype, page_size),
                sm_scale=scale, latent_dim=g.value_dim, out=out, **mass,
            )  # fmt: skip
        else:
            lists = ids.shape[0] // batch if per_head else g.kv_heads
            mass = self._mass_buffers(batch, q_heads, lists, ids.shape[-1], q.device) if want_mass else {}
            if per_head:
                pages = Rows(ids.view(batch, lists, -1), lens.view(batch, lists))
            else:
                pages = shared_page_list(ids, lens, lists)
            paged_decode(
                q, keys, values, pages, workspace=self.space.at(batch, lists),
                config=self._tuned(keys.dtype, per_head)
                or decode_config(
                    g.head_dim, q_heads // lists, keys.dtype, page_size, batch * lists,
                    even=per_head, alone=batch == 1,
                ),
                sm_scale=scale, kv_repeat=lists // g.kv_heads, out=out, **mass,
            )  # fmt: skip
        if want_mass:
            self._observe(layer, ids, lens, mass)
        return out

    def _tuned(self, kv_dtype: torch.dtype, per_head: bool) -> DecodeConfig | None:
        """What was measured best for attention over the flow's lists, where something was."""
        if not per_head:
            return None
        assert self.flow is not None and isinstance(self.flow.compiled, TritonFlow)
        return self.flow.compiled.attention_config(self.rows, self.pages.shape[1], kv_dtype)

    def _mass_buffers(
        self, batch: int, q_heads: int, lists: int, columns: int, device: torch.device
    ) -> dict[str, Any]:
        """Outputs of the attention kernel from which each head's attention mass follows."""
        rows = batch * lists
        return {
            "lse": torch.empty(batch, q_heads, device=device),
            "page_lse": torch.empty(rows, q_heads // lists, columns, device=device),
            "page_mass": torch.empty(rows, columns, device=device),
        }

    def _observe(self, layer: int, ids: torch.Tensor, lens: torch.Tensor, mass: dict[str, Any]) -> None:
        """Hand a leader's attention mass back, by query head. Padding writes to the page behind the pool's."""
        assert self.flow is not None
        ids = torch.where(lens.unsqueeze(1) > 0, ids, self.pool.slots // self.page_size)
        lse: torch.Tensor = mass["lse"]
        batch, q_heads = lse.shape
        by_page = mass["page_lse"].view(batch, q_heads, -1)  # in base 2
        share = torch.exp2(by_page - lse[..., None] * math.log2(math.e))
        lists = ids.shape[0] // batch
        counts = (lens + self.page_size - 1) // self.page_size
        selected = PageList(
            ids.view(batch, lists, -1), counts.view(batch, lists).long(), lens.view(batch, lists)
        )
        self.flow.observe(layer, selected, share)

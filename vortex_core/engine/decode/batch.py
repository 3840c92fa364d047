"""The sequences that decode together, and the two kinds of forward pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

import torch

from vortex_core.compiler.interface import BatchView, LayerKV
from vortex_core.engine.decode.selection import LoadedFlow, Selections
from vortex_core.engine.kv.blocks import BLOCK_TOKENS, runs_of
from vortex_core.engine.kv.cache import SequenceState
from vortex_core.engine.kv.pool import KVPool
from vortex_core.runtime.torch_attention import (
    causal_prefill,
    dense_decode,
    dense_page_mass,
    sparse_decode,
)

Recorder = Callable[[int, torch.Tensor, LayerKV, BatchView], None]


class DecodeBatch:
    """Sequences that take their decode steps together, with their tables on the device."""

    def __init__(self, sequences: Sequence[SequenceState], pool: KVPool, flow: LoadedFlow | None) -> None:
        self.sequences = list(sequences)
        self.pool = pool
        self.flow = flow
        self.selections = None if flow is None else Selections(flow)
        self.page_size = BLOCK_TOKENS if flow is None else flow.page_size
        self.attended = torch.zeros((), dtype=torch.int64, device=pool.k.device)  # pages, sparse layers
        self.attendable = 0
        self.attend_seconds = 0.0
        self._set_up()

    def _set_up(self) -> None:
        """Tables of the current members."""
        per_block = BLOCK_TOKENS // self.page_size
        width = max((len(s.blocks) for s in self.sequences), default=0)
        table = torch.tensor(
            [s.blocks + [0] * (width - len(s.blocks)) for s in self.sequences], dtype=torch.int64
        )
        pages = table.view(len(self.sequences), width, 1) * per_block + torch.arange(per_block)
        device = self.pool.k.device
        self.page_table = pages.view(len(self.sequences), width * per_block).to(device)
        self.lengths = torch.tensor([s.length for s in self.sequences], dtype=torch.int64, device=device)
        self.seats = torch.tensor([s.seat for s in self.sequences], dtype=torch.int64, device=device)
        self._blocks = [len(s.blocks) for s in self.sequences]

    def follow(self) -> None:
        """Take note of blocks that sequences got since the last step."""
        if self._blocks != [len(s.blocks) for s in self.sequences]:
            self._set_up()

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all sequences but these."""
        self.sequences = [self.sequences[i] for i in rows]
        if self.selections is not None:
            self.selections.keep(rows)
        self._set_up()

    def extend(self, sequences: Sequence[SequenceState]) -> None:
        """Add sequences to the batch."""
        self.sequences += sequences
        if self.selections is not None:
            self.selections.grow(len(sequences))
        self._set_up()

    @property
    def density(self) -> float:
        """Pages that a kv head reads of all pages, over sparse layers and steps so far; 1 where no layer is sparse."""
        if not self.attendable:
            return 1.0
        return int(self.attended) / self.attendable


class DecodeStep:
    """One token of every sequence of a batch."""

    def __init__(self, batch: DecodeBatch, recorder: Recorder | None = None) -> None:
        self.batch, self.pool, self.flow, self.recorder = batch, batch.pool, batch.flow, recorder
        device = self.pool.k.device
        sequences = batch.sequences
        batch.follow()
        for s in sequences:
            s.length += 1
        batch.lengths += 1
        self.decode_steps = [s.decode_steps for s in sequences]
        self.lengths = [s.length for s in sequences]
        at = [s.length - 1 for s in sequences]
        slots = [
            s.blocks[i // BLOCK_TOKENS] * BLOCK_TOKENS + i % BLOCK_TOKENS
            for s, i in zip(sequences, at, strict=True)
        ]
        self.slots = torch.tensor(slots, device=device)
        self.positions = (batch.lengths - 1)[:, None]
        self.tokens = torch.tensor([[s.next_token] for s in sequences], device=device)
        self.runs = [runs_of(s.blocks, s.length) for s in sequences]
        size = batch.page_size
        self.max_length = max(self.lengths)
        self.page_table = batch.page_table[:, : -(-self.max_length // size)]
        completed = [
            slot // size for slot, length in zip(slots, self.lengths, strict=True) if length % size == 0
        ]
        self.completed = torch.tensor(completed, device=device) if completed else None
        self._views: dict[int | None, BatchView] = {}
        self._dense_mass: torch.Tensor | None = None  # of the newest dense layer, where a later one reads it

    def view(self, layer: int) -> BatchView:
        """The batch as a layer's selection sees it."""
        dense = self.flow is None or self.flow.plan.leader[layer] is None
        row = None if dense or self.flow is None else self.flow.plan.budget_row(layer)
        if row not in self._views:
            if row is None or self.flow is None:
                budgets = [-(-length // self.batch.page_size) for length in self.lengths]
            else:
                budgets = self.flow.budgets(self.lengths, row)
            self._views[row] = BatchView(
                self.page_table,
                self.batch.lengths,
                torch.tensor(budgets, device=self.slots.device),
                self.max_length,
                0 if self.flow is None else self.flow.crossover.tokens(len(self.lengths)),
                seats=self.batch.seats,
            )
        return self._views[row]

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See `attention_hook.Step`; one row a sequence."""
        started = time.perf_counter()
        out = self._attend(layer, q, k, v, scale)
        self.batch.attend_seconds += time.perf_counter() - started
        return out

    def _attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        self.pool.write(layer, self.slots, k[:, :, 0].transpose(0, 1), v[:, :, 0].transpose(0, 1))
        q = q[:, :, 0]
        if self.recorder is not None:
            self.recorder(layer, q, self.pool.paged(layer, self.batch.page_size), self.view(layer))
        leader = None if self.flow is None else self.flow.plan.leader[layer]
        out = self._dense(layer, q, scale) if leader is None else self._sparse(layer, leader, q, scale)
        return out[:, None]

    @cached_property
    def _whole(self) -> bool:
        """Whether all sequences are shorter than the flow's crossover: the step is that of dense attention."""
        below = 0 if self.flow is None else self.flow.crossover.tokens(len(self.lengths))
        return all(length < below for length in self.lengths)

    def _dense(self, layer: int, q: torch.Tensor, scale: float) -> torch.Tensor:
        k, v = self.pool.layer(layer)
        rows = q.unflatten(1, (k.shape[0], -1)).unbind(0)
        outs = [dense_decode(row, k, v, runs, scale) for row, runs in zip(rows, self.runs, strict=True)]
        if self.flow is not None and layer in self.flow.plan.mass_layers:
            mass = q.new_zeros((*q.shape[:2], self.page_table.shape[1]), dtype=torch.float32)
            for b, (row, runs) in enumerate(zip(rows, self.runs, strict=True)):
                found = dense_page_mass(row, k, runs, scale, self.batch.page_size).flatten(0, 1)
                mass[b, :, : found.shape[-1]] = found
            self._dense_mass = mass
        return torch.stack(outs).flatten(1, 2)

    def _sparse(self, layer: int, leader: int, q: torch.Tensor, scale: float) -> torch.Tensor:
        flow, selections = self.flow, self.batch.selections
        assert flow is not None and selections is not None
        heads = self.pool.geometry.kv_heads
        there = sum(-(-n // flow.page_size) for n in self.lengths)
        if layer == leader and self.completed is not None:
            flow.complete_in(layer, self.completed)
        if self._whole:
            self.batch.attended += heads * there
            self.batch.attendable += heads * there
            return self._dense(layer, q, scale)
        if layer == leader:
            view = self.view(layer)
            if self._dense_mass is not None:
                view = replace(view, dense_mass=self._dense_mass)
            pages = selections.at(layer, q, view, self.decode_steps, self.lengths)
        else:
            pages = selections.lists[leader]
        read = pages.read_by(heads)
        self.batch.attended += read.sum()
        self.batch.attendable += read.shape[1] * there
        want_mass = layer == leader and flow.compiled.program.needs_mass
        merges = flow.compiled.program.residual is not None
        lse = torch.empty(q.shape[:2], device=q.device) if merges else None
        out, mass = sparse_decode(
            q, self.pool.paged(layer, flow.page_size), pages, scale, want_mass=want_mass, lse=lse
        )
        if lse is not None:
            flow.check_scale(scale)
            out = flow.compiled.merge_residual(out, lse, pages, flow.states[layer], self.view(layer))
        if mass is not None:
            flow.observe(layer, pages, mass)
        return out


class PrefillStep:
    """The forward pass of one chunk of one prompt, with dense causal attention."""

    def __init__(self, blocks: Sequence[int], token_ids: Sequence[int], start: int, pool: KVPool) -> None:
        device = pool.k.device
        self.pool = pool
        positions = torch.arange(start, start + len(token_ids))
        table = torch.tensor(blocks)
        slots = table[positions // BLOCK_TOKENS] * BLOCK_TOKENS + positions % BLOCK_TOKENS
        self.slots = slots.to(device)
        self.positions = positions[None].to(device)
        self.tokens = torch.tensor(token_ids, device=device)[None]
        self.runs = runs_of(blocks, start)

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See `attention_hook.Step`; the rows are the chunk's tokens."""
        self.pool.write(layer, self.slots, k[0], v[0])
        past_k, past_v = self.pool.layer(layer)
        out = causal_prefill(q[0], k[0], v[0], past_k, past_v, self.runs, scale)
        return out.transpose(0, 1)[None]

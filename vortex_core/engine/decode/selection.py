"""Running a compiled flow over the pool: page states, selections, and the knobs that reuse them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F

from vortex_core.compiler.interface import BatchView, CompiledFlow
from vortex_core.engine.kv.blocks import BLOCK_TOKENS
from vortex_core.engine.kv.pool import KVPool
from vortex_core.ir.crossover import EVERYTHING, NEVER, Crossover
from vortex_core.page_list import PageList
from vortex_core.runtime.pool_flow import PoolFlow


class LoadedFlow(PoolFlow):
    """A compiled flow on the engine's pool, which knows of which blocks the states are there.

    Args:
        crossover: below how many tokens sequences attend to everything; by default as measured for this machine.
    """

    def __init__(self, compiled: CompiledFlow, pool: KVPool, crossover: Crossover | None = None) -> None:
        size = compiled.knobs.page_size
        if crossover is None:
            crossover = _measured(compiled) if pool.k.device.type == "cuda" else NEVER
        super().__init__(
            compiled,
            lambda layer: pool.paged(layer, size),
            pool.slots // size,
            pool.k.device,
            None,
            crossover,
        )
        self.pages_per_block = BLOCK_TOKENS // size
        # Tokens of each block whose complete pages have states.
        self._covered = [0] * (pool.slots // BLOCK_TOKENS)
        self._budget = lru_cache(maxsize=65536)(self.plan.row_pages)

    def forget(self, blocks: Iterable[int]) -> None:
        """The content of `blocks` is about to change: their states no longer hold."""
        for block in blocks:
            self._covered[block] = 0
        if self._pending:
            gone = set(blocks)
            self._pending = [page for page in self._pending if page // self.pages_per_block not in gone]

    def cover(self, sequences: Iterable[tuple[Sequence[int], int]]) -> None:
        """Compute the states that are missing for `(blocks, tokens)` of some sequences, all layers."""
        pages: list[int] = []
        for blocks, tokens in sequences:
            for i, block in enumerate(blocks):
                complete = min(BLOCK_TOKENS, tokens - i * BLOCK_TOKENS) // self.page_size
                have = self._covered[block] // self.page_size
                if complete > have:
                    first = block * self.pages_per_block
                    pages += range(first + have, first + complete)
                    self._covered[block] = complete * self.page_size
        if pages and self.states:
            self.complete(torch.tensor(pages, device=self.device))

    def budgets(self, lengths: Sequence[int], row: int) -> list[int]:
        """Pages each sequence of a step may attend in the layers of a row of budgets."""
        below = self.crossover.tokens(len(lengths))
        return [EVERYTHING if length < below else self._budget(row, length) for length in lengths]

    def pages_ending(self, sequences: Iterable[tuple[Sequence[int], int]]) -> list[int]:
        """Physical pages that the newest tokens of `(blocks, length)` complete."""
        return [
            blocks[(length - 1) // BLOCK_TOKENS] * self.pages_per_block
            + (length - 1) % BLOCK_TOKENS // self.page_size
            for blocks, length in sequences
            if length % self.page_size == 0
        ]

    def select(self, layer: int, q: torch.Tensor, view: BatchView) -> PageList:
        """Run the flow's indexer for one leader."""
        return self.compiled.select(q, self.states[layer], view, layer)


def _measured(compiled: CompiledFlow) -> Crossover:
    from vortex_core.compiler.triton.tuning.crossover import stored_crossover

    return stored_crossover(compiled.program, compiled.knobs, compiled.geometry)


class Selections:
    """The latest page list of each leader, kept for `reuse_steps` steps of each sequence."""

    def __init__(self, flow: LoadedFlow) -> None:
        self.flow = flow
        self.lists: dict[int, PageList] = {}

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all sequences but these."""
        if self.flow.knobs.reuse_steps == 1:
            self.lists.clear()
            return
        index = torch.tensor(list(rows), dtype=torch.int64, device=self.flow.device)
        self.lists = {layer: pages.rows(index) for layer, pages in self.lists.items()}

    def grow(self, added: int) -> None:
        """Room for sequences that join; they select at their first step."""
        for layer, pages in self.lists.items():
            ids, lengths = (
                torch.cat([t, t.new_zeros((added, *t.shape[1:]))]) for t in (pages.page_ids, pages.lengths)
            )
            self.lists[layer] = PageList(ids, lengths, pages.page_size)

    def at(
        self, layer: int, q: torch.Tensor, view: BatchView, ages: Sequence[int], lengths: Sequence[int]
    ) -> PageList:
        """The pages that a leader's group attends this step.

        Args:
            ages: decode steps each sequence has done; it selects anew at multiples of `reuse_steps`.
            lengths: `view.lengths`, on the host.
        """
        period = self.flow.knobs.reuse_steps
        due = [i for i, age in enumerate(ages) if age % period == 0]
        if len(due) == len(ages):
            pages = self.flow.select(layer, q, view)
        else:
            size = self.flow.page_size
            begins = any(length % size == 1 for length in lengths)
            pages = with_newest_page(_widen(self.lists[layer], int(begins)), view, size)
            if due:
                rows = torch.tensor(due, device=q.device)
                mass = None if view.dense_mass is None else view.dense_mass[rows]
                seats = None if view.seats is None else view.seats[rows]
                part = BatchView(
                    view.block_table[rows],
                    view.lengths[rows],
                    view.budgets[rows],
                    view.max_length,
                    view.longest_whole,
                    dense_mass=mass,
                    seats=seats,
                )
                pages = _replace(pages, rows, self.flow.select(layer, q[rows], part))
        self.lists[layer] = pages
        return pages


def with_newest_page(pages: PageList, view: BatchView, page_size: int) -> PageList:
    """An earlier step's selection at this step: the page being written joins it if it is not there yet.

    A sequence that begins a page needs a free column.
    """
    last = (view.lengths - 1) // page_size
    newest = view.block_table.gather(1, last[:, None]).to(torch.int32)  # [batch, 1]
    counts = pages.counts.clamp_min(1).long()  # rows that never selected have none; the caller replaces them
    counts = counts + (pages.page_ids.gather(2, (counts - 1)[..., None])[..., 0] != newest)
    at = (counts - 1).clamp_max(pages.columns - 1)
    page_ids = pages.page_ids.scatter(2, at[..., None], newest.expand_as(counts)[..., None])
    lengths = (counts - 1) * page_size + ((view.lengths - 1) % page_size + 1)[:, None]
    return PageList(page_ids, lengths.to(torch.int32), page_size)


def _replace(pages: PageList, rows: torch.Tensor, new: PageList) -> PageList:
    """`pages` with some sequences' lists replaced; widths may differ."""
    width = max(pages.columns, new.columns)
    pages, new = (_widen(p, width - p.columns) for p in (pages, new))
    return PageList(
        pages.page_ids.index_copy(0, rows, new.page_ids),
        pages.lengths.index_copy(0, rows, new.lengths),
        pages.page_size,
    )


def _widen(pages: PageList, columns: int) -> PageList:
    """More padding."""
    if columns == 0:
        return pages
    return PageList(F.pad(pages.page_ids, (0, columns)), pages.lengths, pages.page_size)

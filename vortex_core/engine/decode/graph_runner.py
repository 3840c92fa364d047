"""Runs decode steps over static buffers, from CUDA graphs where there is a GPU.

A runner belongs to one flow (or to dense attention). It captures one graph for each batch bucket and table width it
meets, and for each of the two kinds of step of a flow that reuses selections.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from vortex_core.compiler.interface import BatchView
from vortex_core.device_errors import translate
from vortex_core.engine.decode.batch import Recorder
from vortex_core.engine.decode.selection import LoadedFlow
from vortex_core.engine.decode.static_step import StaticBuffers, StaticStep
from vortex_core.engine.decode.step_kernels import choose_greedy
from vortex_core.engine.errors import capture_failed
from vortex_core.engine.kv.blocks import BLOCK_TOKENS
from vortex_core.engine.kv.pool import KVPool
from vortex_core.kernels.compile_ahead import compiling_ahead
from vortex_core.kernels.decode.plan import AttentionPlan
from vortex_core.page_list import PageList
from vortex_core.runtime.budgets import BudgetTable

_MET: set[Any] = set()  # programs and shapes whose kernels were compiled
BUCKETS = (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64)


def bucket_of(rows: int) -> int:
    """Batch size that a step of `rows` sequences is padded to: the next of 1, 2, 4, 8, 16, 24, 32, ..."""
    return next((b for b in BUCKETS if rows <= b), -(-rows // 32) * 32)


def width_of(blocks: int) -> int:
    """Table width in blocks, in steps of an eighth of the next power of two, so that lengths share graphs."""
    step = max(8, (1 << max(0, blocks - 1).bit_length()) // 8)
    return -(-max(1, blocks) // step) * step


@dataclass(frozen=True)
class Shape:
    """What a captured step is specific to: rows, table width in blocks, and whether rows that are due select.

    whole: whether some sequences attend to everything, as their length lies below the flow's crossover. (Where all do,
        the step is that of dense attention's runner.)
    """

    rows: int
    blocks: int
    selects: bool
    whole: bool = False


@lru_cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Where steps run before they are captured. One for all: cuBLAS keeps 32 MiB for every stream that it has met."""
    return torch.cuda.Stream(device)


class DecodeRunner:
    """Static buffers of one flow and the graphs captured over them.

    Args:
        model: takes `input_ids`, `position_ids` and the step, returns logits.
        max_length: longest sequence, in tokens.
        graphs: capture steps; otherwise they run launch by launch (always so without a GPU).
    """

    def __init__(
        self, model: Any, pool: KVPool, flow: LoadedFlow | None, *, vocab: int, max_length: int, graphs: bool
    ) -> None:
        self.model, self.pool, self.flow = model, pool, flow
        self.device = pool.k.device
        self.graphs = graphs and self.device.type == "cuda"
        self.vocab = vocab
        self.max_blocks = width_of(-(-max_length // BLOCK_TOKENS))
        self.budgets = (
            None
            if flow is None or not flow.plan.leaders
            else BudgetTable(flow.plan, self.max_blocks * BLOCK_TOKENS, self.device)
        )
        self.heads = pool.geometry.kv_heads
        if flow is not None and flow.compiled.program.per_query_head:
            self.heads *= pool.geometry.group
        self.owner: object | None = None  # the batch whose rows are in the buffers
        self.capture_seconds = 0.0
        self.last_shape: Shape | None = None
        self._ran: Shape | None = None  # from a graph or launch by launch
        self._captured: dict[Shape, torch.cuda.CUDAGraph] = {}
        self.kept: dict[int, PageList] = {}  # lists carried over steps, by leader
        self._newest: dict[
            Shape, PageList
        ] = {}  # lists of the last selecting layer, in buffers of a shape's step
        self._allocate(BUCKETS[4])

    def _allocate(self, rows: int) -> None:
        """Buffers for a larger batch. Graphs captured over the old ones are of no use any more."""
        size = BLOCK_TOKENS if self.flow is None else self.flow.page_size
        self.forget()
        self.attention = self._plans(rows, size)
        self.buffers = StaticBuffers(rows, self.max_blocks, size, self.heads, self.vocab, self.device)
        if self.flow is not None and self.flow.knobs.reuse_steps > 1:
            columns = self._list_columns()
            for layer in self.flow.plan.leaders:
                ids = torch.zeros(rows, self.heads, columns, dtype=torch.int32, device=self.device)
                lens = torch.zeros(rows, self.heads, dtype=torch.int32, device=self.device)
                if layer in self.kept:  # lists outlive the buffers they were in
                    old = self.kept[layer]
                    ids[: old.batch], lens[: old.batch] = old.page_ids, old.lengths
                self.kept[layer] = PageList(ids, lens, size)

    def forget(self) -> None:
        """Drop all graphs; steps are captured anew."""
        self._captured.clear()
        self._newest.clear()
        # A pool whose graphs are all gone may not be captured into again.
        self._memory = torch.cuda.graph_pool_handle() if self.graphs else None

    def _plans(self, rows: int, page_size: int) -> tuple[AttentionPlan, AttentionPlan]:
        """Attention over all blocks, and over the flow's lists of pages, for up to `rows` sequences."""
        shape = self.pool.geometry, BLOCK_TOKENS, self.pool.k.dtype, rows, self.device
        dense = AttentionPlan.allocate(*shape)
        each = self.flow is not None and self.flow.compiled.program.per_query_head
        sparse = AttentionPlan.allocate(*shape, per_query_head=True) if each else dense
        return dense, sparse.sharing(page_size, even=True)

    def _list_columns(self) -> int:
        """Pages of the longest list, and of what joins it until the next selection."""
        flow = self.flow
        assert flow is not None
        width = self.max_blocks * self.buffers.per_block
        return flow.captured.list_capacity(width) + -(-flow.knobs.reuse_steps // flow.page_size) + 1

    def reserve(self, rows: int) -> bool:
        """Make the buffers hold `rows` sequences; whether they are new, their contents lost."""
        if rows <= self.buffers.rows:
            return False
        self._allocate(bucket_of(rows))
        return True

    @property
    def captured(self) -> int:
        """How many captured graphs are held."""
        return len(self._captured)

    def padded(self, rows: int) -> int:
        """Rows of a step of `rows` sequences."""
        return min(bucket_of(rows), self.buffers.rows)

    def run(
        self,
        rows: int,
        blocks: int,
        *,
        selects: bool,
        whole: bool = False,
        recorder: Recorder | None = None,
    ) -> None:
        """One step of the first `rows` rows; the next greedy tokens, logits and their logprobs are in the buffers.

        Args:
            whole: see `Shape`.
        """
        shape = Shape(self.padded(rows), min(width_of(blocks), self.max_blocks), selects, whole)
        self._ran = shape
        if recorder is not None:
            self._step(shape, rows, recorder)
        elif not self.graphs:
            self._step(shape, shape.rows)
        else:
            self.last_shape = shape
            self.ensure(shape)
            self._captured[shape].replay()

    def _step(self, shape: Shape, rows: int, recorder: Recorder | None = None) -> None:
        """The launches of one step. Only what is on the device decides what they do."""
        with torch.inference_mode():
            buffers, (dense, sparse) = self.buffers, self.attention
            below = 0
            if shape.whole:
                assert self.flow is not None
                below = self.flow.crossover.tokens(shape.rows)
                sparse = sparse.holding(below)
            step = StaticStep(
                buffers, self.pool, self.flow, self.budgets, (dense, sparse), rows, shape.blocks,
                selects=shape.selects, kept=self.kept, whole_below=below,
            )  # fmt: skip
            if recorder is not None:
                step.observer = self._observer(step, recorder)
            output = self.model(
                input_ids=buffers.tokens[:rows, None], position_ids=step.positions, use_cache=False,
                vortex_step=step,
            )  # fmt: skip
            step.finish()
            if step.lists:
                self._newest[shape] = step.lists[max(step.lists)]
            choose_greedy(
                output.logits[:, -1], buffers.logits[:rows], buffers.tokens[:rows], buffers.logprobs[:rows],
                buffers.ages[:rows], buffers.active[:rows],
            )  # fmt: skip

    def lists_read(self) -> float:
        """As many lists as a kv head's query heads have between them, what they share counted once; 0 before the first
        step. Of the last selecting layer of the newest step."""
        kv_heads = self.pool.geometry.kv_heads
        lists = None if self._ran is None else self._newest.get(self._ran)
        if lists is None or not int(lists.counts.sum()):
            return 0.0
        if lists.heads <= kv_heads:
            return 1.0
        return int(lists.read_by(kv_heads).sum()) / int(lists.counts.sum()) * lists.heads / kv_heads

    def _observer(self, step: StaticStep, recorder: Recorder) -> Callable[[int, torch.Tensor], None]:
        """A recorder sees the batch as `engine.decode` documents it."""

        def observe(layer: int, q: torch.Tensor) -> None:
            lengths = step.lengths.long()
            longest = int(lengths.max())
            if self.budgets is None or self.flow is None or self.flow.plan.leader[layer] is None:
                budgets = (lengths + step.page_size - 1) // step.page_size
            else:
                budgets = step.scored(self.flow.plan.budget_row(layer)).budgets.long()
            table = step.pages[:, : -(-longest // step.page_size)].long()
            view = BatchView(table, lengths, budgets, longest)
            recorder(layer, q, self.pool.paged(layer, step.page_size), view)

        return observe

    def ensure(self, shape: Shape) -> float:
        """Capture a shape unless it is; seconds that took."""
        if not self.graphs or shape in self._captured:
            return 0.0
        before = self.capture_seconds
        self.capture(shape)
        return self.capture_seconds - before

    def capture(self, shape: Shape) -> None:
        """Record one shape. The rows in the buffers stay as they are.

        Raises:
            VortexError: `VE017` where the model does something a graph cannot hold.
        """
        assert self.graphs
        started = time.perf_counter()
        kept = [lists.lengths for lists in self.kept.values()]
        saved = [x.clone() for x in (*self.buffers.state(), *kept)]
        # Every row is padding now: the warm-up compiles and allocates, and touches no sequence.
        for tensor in (self.buffers.lengths, self.buffers.active, *kept):
            tensor.zero_()
        stream = _side_stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(stream):
                self._compile(shape)
                self._step(shape, shape.rows)
            torch.cuda.current_stream(self.device).wait_stream(stream)
            with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
                self._step(shape, shape.rows)
        except Exception as error:
            sparse = self.flow is not None and not self.flow.compiled.program.selects_everything
            found = translate(error, "compiling a decode step", flow=sparse)
            if found is None and isinstance(error, RuntimeError):
                found = capture_failed(type(self.model).__name__, str(error))
            if found is None or found is error:
                raise
            raise found from error
        finally:
            for tensor, value in zip((*self.buffers.state(), *kept), saved, strict=True):
                tensor.copy_(value)
        self._captured[shape] = graph
        self.capture_seconds += time.perf_counter() - started

    def _compile(self, shape: Shape) -> None:
        """Compile a shape's kernels side by side, unless this process has met them."""
        flow = self.flow
        # Attention mass goes back to the states through torch, with whatever stands in the outputs of kernels.
        if flow is not None and flow.compiled.program.needs_mass:
            return
        met = (
            None if flow is None else (flow.compiled.program.ir_hash, flow.page_size),
            id(self.model),
            shape,
        )
        if met in _MET:
            return
        _MET.add(met)
        with compiling_ahead():
            self._step(shape, shape.rows)

    def close(self) -> None:
        """Drop graphs and buffers; their memory goes back to the allocator."""
        self._captured.clear()
        self.owner = None
        self.kept.clear()
        del self.buffers

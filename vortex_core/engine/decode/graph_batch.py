"""The sequences that decode together on a runner's static buffers."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch

from vortex_core.engine.decode.batch import Recorder
from vortex_core.engine.decode.graph_runner import DecodeRunner
from vortex_core.engine.decode.sampling import Sampler, choose, token_logprobs
from vortex_core.engine.kv.blocks import BLOCK_TOKENS, blocks_for
from vortex_core.engine.kv.cache import SequenceState


@dataclass(frozen=True)
class StepResult:
    """What one step chose for each sequence, and how long it took."""

    tokens: list[int]
    logprobs: list[float]
    seconds: float


class GraphBatch:
    """A live batch on a `DecodeRunner`; the same interface as `batch.DecodeBatch`.

    The device tables follow the sequences' blocks: rows are written when sequences join or move and when one grows.

    Args:
        runner: of the flow, or of dense attention.
        dense: dense attention's, for steps in which all sequences are shorter than the flow's crossover.

    Attributes:
        runner: the one in whose buffers the sequences are.
    """

    def __init__(
        self,
        sequences: Sequence[SequenceState],
        runner: DecodeRunner,
        dense: DecodeRunner | None = None,
    ) -> None:
        self.sequences = list(sequences)
        self.runner = self._own = runner
        self._dense = dense
        self.attendable = 0  # pages, sparse layers
        self._tokens = 0  # listed so far, as last read from the device
        self._padding = 0  # empty slots of the lists' last pages
        self._attended = 0  # pages, in steps that attended to everything without lists
        self._read = 1.0  # lists of a kv head that have nothing in common with another
        self._blocks: list[int] = []  # blocks of each row that the device knows
        self._load(range(len(self.sequences)))

    # ---- membership

    def _load(self, rows: Sequence[int]) -> None:
        """Take the buffers over and write `rows` of them."""
        runner = self.runner
        if runner.owner is not self:
            reuse = runner.flow is not None and runner.flow.knobs.reuse_steps > 1
            assert runner.owner is None or not reuse or all(s.decode_steps == 0 for s in self.sequences), (
                "two batches take turns on a flow that keeps selections from step to step"
            )
            if isinstance(runner.owner, GraphBatch):
                runner.owner._collect()
            runner.buffers.attended.zero_()
            runner.owner = self
            rows = range(len(self.sequences))
        self._collect()
        if runner.reserve(len(self.sequences)):
            rows = range(len(self.sequences))
        b = runner.buffers
        count = len(self.sequences)
        b.active.zero_()
        b.active[:count] = 1
        b.lengths[count:] = 0
        self._blocks += [0] * (count - len(self._blocks))
        if len(rows):
            members = [self.sequences[i] for i in rows]
            index = torch.tensor(list(rows), device=runner.device)

            def put(target: torch.Tensor, values: list[int]) -> None:
                target[index] = torch.tensor(values, dtype=target.dtype).to(runner.device)

            put(b.tokens, [s.next_token for s in members])
            put(b.lengths, [s.length for s in members])
            put(b.ages, [s.decode_steps for s in members])
            put(b.seats, [s.seat for s in members])
            b.attended[index] = 0
            for i in rows:
                self._blocks[i] = 0
        self._grow()

    def _grow(self) -> None:
        """Tell the device of blocks that sequences got, and look up the budgets of the lengths they will reach."""
        runner, b = self.runner, self.runner.buffers
        for row, s in enumerate(self.sequences):
            if self._blocks[row] == len(s.blocks):
                continue
            table = torch.tensor(s.blocks, dtype=torch.int32)
            b.blocks[row, : len(s.blocks)] = table.to(runner.device)
            if b.per_block > 1:
                pages = (
                    table[:, None] * b.per_block + torch.arange(b.per_block, dtype=torch.int32)
                ).flatten()
                b.pages[row, : len(pages)] = pages.to(runner.device)
            if runner.budgets is not None:
                runner.budgets.cover(s.length, len(s.blocks) * BLOCK_TOKENS)
            self._blocks[row] = len(s.blocks)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all sequences but these."""
        if self.runner.owner is self:
            runner, b, count = self.runner, self.runner.buffers, len(rows)
            self._collect()
            index = torch.tensor(list(rows), dtype=torch.int64, device=runner.device)
            tables = (b.blocks, *([b.pages] if b.per_block > 1 else []))
            for tensor in (b.tokens, b.lengths, b.ages, b.seats, *tables):
                tensor[:count] = tensor[index]
            for lists in runner.kept.values():
                for tensor in (lists.page_ids, lists.lengths):
                    tensor[:count] = tensor[index]
                lists.lengths[count:] = 0
        self.sequences = [self.sequences[i] for i in rows]
        self._blocks = [self._blocks[i] for i in rows]
        self._load([])

    def extend(self, sequences: Sequence[SequenceState]) -> None:
        """Add sequences to the batch."""
        first = len(self.sequences)
        self.sequences += sequences
        self._load(range(first, len(self.sequences)))

    # ---- stepping

    def advance(
        self, sampler: Sampler, forced: Sequence[int | None] | None = None, recorder: Recorder | None = None
    ) -> StepResult:
        """One token for every sequence: forced ones, greedy ones of the graph, or drawn from its logits."""
        started = time.perf_counter()
        self._launch(recorder)
        count, b = len(self.sequences), self.runner.buffers
        if forced is None and sampler.greedy:
            chosen, logprobs = b.tokens[:count], b.logprobs[:count]
        else:
            logits = b.logits[:count]
            chosen = choose(sampler, logits, forced)
            logprobs = token_logprobs(logits, chosen)
            b.tokens[:count] = chosen
        tokens, values = chosen.tolist(), logprobs.tolist()
        self._record([tokens], [values])
        return StepResult(tokens, values, time.perf_counter() - started)

    def run_ahead(self, steps: int, stop_ids: Collection[int] = ()) -> list[float]:
        """Several greedy steps, launched before their tokens are known; seconds of each, by the device's clock.

        Sequences get their tokens at the end. Tokens are looked at a step late for `stop_ids`, and the first of these
        ends the call: what a stopped sequence produced in the step that ran meanwhile is dropped.
        """
        count, device = len(self.sequences), self.runner.device
        pinned = device.type == "cuda"  # else a copy to the host waits for it
        tokens = torch.empty(steps, count, dtype=torch.int64, pin_memory=pinned)
        logprobs = torch.empty(steps, count, pin_memory=pinned)
        clock = _Clock(device, steps)
        done = 0
        stopped: list[int] = []
        while done < steps and not stopped:
            self._launch(None)
            b = self.runner.buffers
            tokens[done].copy_(b.tokens[:count], non_blocking=True)
            logprobs[done].copy_(b.logprobs[:count], non_blocking=True)
            clock.tick()
            done += 1
            if stop_ids and done > 1:
                clock.wait(done - 1)
                stopped = [row for row, token in enumerate(tokens[done - 2].tolist()) if token in stop_ids]
        seconds = clock.seconds()
        self._record(tokens[:done].tolist(), logprobs[:done].tolist())
        for sequence in (self.sequences[row] for row in stopped):
            del sequence.tokens[-1], sequence.logprobs[-1]
            sequence.next_token = sequence.tokens[-1]
            sequence.length -= 1
            sequence.decode_steps -= 1
        return seconds

    def _launch(self, recorder: Recorder | None) -> None:
        """One step on the device; the host's view of lengths follows."""
        if self.runner.owner is not self:
            self._load([])
        whole = self._whole(recorder)
        self._move(self._dense if whole == "all" and self._dense else self._own)
        self._grow()
        flow, longest = self._own.flow, 0
        for s in self.sequences:
            s.length += 1
            longest = max(longest, s.length)
            assert len(s.blocks) * BLOCK_TOKENS >= s.length, "a sequence outgrew its blocks"
        if flow is not None:
            lists = self._own.heads * flow.plan.sparse_layers
            there = lists * sum(-(-s.length // flow.page_size) for s in self.sequences)
            self.attendable += there
            if whole == "all":
                self._attended += there
                flow.note_complete(flow.pages_ending((s.blocks, s.length) for s in self.sequences))
            else:
                flow.settle()
                self._padding += lists * sum(-s.length % flow.page_size for s in self.sequences)
        period = 1 if flow is None else flow.knobs.reuse_steps
        selects = any(s.decode_steps % period == 0 for s in self.sequences)
        self.runner.run(
            len(self.sequences),
            blocks_for(longest),
            selects=selects,
            whole=whole == "some",
            recorder=recorder,
        )
        for s in self.sequences:
            s.decode_steps += 1

    def _whole(self, recorder: Recorder | None) -> Literal["none", "some", "all"]:
        """Which sequences attend to everything in the step to come."""
        flow = self._own.flow
        if flow is None:
            return "none"
        below = flow.crossover.tokens(self._own.padded(len(self.sequences)))
        short = sum(s.length + 1 < below for s in self.sequences)
        if not short:
            return "none"
        # A recorder is shown the flow's own step.
        if short < len(self.sequences) or recorder is not None or self._dense is None:
            return "some"
        return "all"

    def _move(self, runner: DecodeRunner) -> None:
        """Go on in another runner's buffers, from where the sequences are."""
        if runner is self.runner:
            return
        with torch.inference_mode(False):  # buffers are changed outside of steps, too
            self._collect()
            tokens = self.runner.buffers.tokens[
                : len(self.sequences)
            ].clone()  # the host may not know them yet
            self.runner.owner = None
            self.runner = runner
            self._load([])
            runner.buffers.tokens[: len(tokens)] = tokens

    def _record(self, tokens: Sequence[Sequence[int]], logprobs: Sequence[Sequence[float]]) -> None:
        for chosen, values in zip(tokens, logprobs, strict=True):
            for sequence, token, logprob in zip(self.sequences, chosen, values, strict=True):
                sequence.next_token = token
                sequence.tokens.append(token)
                sequence.logprobs.append(logprob)

    # ---- proof of what ran

    def _collect(self) -> None:
        """Read the device's count of listed tokens."""
        attended = self.runner.buffers.attended
        if self.runner is self._own and self.runner.flow is not None and self.attendable:
            self._tokens += int(attended.sum())
            self._read = self.runner.lists_read() or self._read
        attended.zero_()

    @property
    def density(self) -> float:
        """Pages that a kv head reads of all pages, over sparse layers and steps so far; 1 where no layer is sparse.

        Where query heads select apart, what their lists have in common is looked at in one layer of the newest step:
        counting it in each would be work that is timed.
        """
        if not self.attendable:
            return 1.0
        if self.runner.owner is self:
            self._collect()
        assert self._own.flow is not None
        listed = self._read * (self._tokens + self._padding) / self._own.flow.page_size
        return (listed + self._attended) / self.attendable


class _Clock:
    """Seconds between ticks on a device's own time line."""

    def __init__(self, device: torch.device, ticks: int) -> None:
        self.cuda = device.type == "cuda"
        self._ticks = 0
        if self.cuda:
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(ticks + 1)]
            self._events[0].record()
        else:
            self._times = [time.perf_counter()]

    def tick(self) -> None:
        """Take the time at which the device reaches this point: a step was launched."""
        self._ticks += 1
        if self.cuda:
            self._events[self._ticks].record()
        else:
            self._times.append(time.perf_counter())

    def wait(self, tick: int) -> None:
        """Wait until the device has passed a tick, counted from 1."""
        if self.cuda:
            self._events[tick].synchronize()

    def seconds(self) -> list[float]:
        """Seconds between consecutive ticks; waits for the last."""
        if not self.cuda:
            return [b - a for a, b in zip(self._times, self._times[1:], strict=False)]
        events = self._events[: self._ticks + 1]
        events[-1].synchronize()
        return [a.elapsed_time(b) / 1e3 for a, b in pairwise(events)]

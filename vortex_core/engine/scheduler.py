"""Continuous batching: requests join the running batch as blocks become free and leave it as they finish.

Blocks are taken as sequences grow. When none are left, the youngest request gives its own back and waits at the head
of the queue; what it produced is kept and fed again, token by token, so that its output goes on as if nothing had
happened: a prefill of those tokens would give the dense attention's keys and values, not the flow's.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vortex_core.engine.decode.sampling import Sampler
from vortex_core.engine.errors import bad_call, out_of_memory
from vortex_core.engine.kv.blocks import BLOCK_TOKENS, blocks_for
from vortex_core.engine.kv.cache import Prompt, SequenceState
from vortex_core.engine.requests import Finish, Request, RequestOutput, Token
from vortex_core.engine.text_stream import TextStream

if TYPE_CHECKING:
    from vortex_core.engine.engine import Engine

__all__ = ["RequestOutput", "Request", "Scheduler", "Token"]


@dataclass(eq=False)
class _Job:
    """A request on its way through the scheduler.

    Attributes:
        request_id: counts submissions, so the youngest request has the greatest.
        produced: tokens given out so far; after a preemption they are fed again.
    """

    request_id: int
    request: Request
    submitted: float
    stream: TextStream | None
    produced: list[int] = field(default_factory=list)
    first_token: float = 0.0
    preemptions: int = 0
    sequence: SequenceState | None = None

    @property
    def cached(self) -> int:
        """Tokens that its prefill computes."""
        return len(self.request.token_ids) - 1


class Scheduler:
    """Admits requests first come first served, prefills them chunk by chunk between the steps of those that run.

    Args:
        max_batch: sequences that run at once.

    Attributes:
        preemptions: requests that had to give their blocks back, so far.
    """

    def __init__(self, engine: Engine, max_batch: int = 64) -> None:
        self.engine = engine
        self.max_batch = max_batch
        self.waiting: deque[_Job] = deque()
        self.running: list[_Job] = []
        self.finished: dict[int, RequestOutput] = {}
        self.preemptions = 0
        self._prefilling: tuple[_Job, Prompt, int] | None = None
        self._batch = engine.new_batch([])
        self._sampler = Sampler([])
        self._next_id = 0

    def submit(self, request: Request) -> int:
        """Queue a request; returns its request id, the key of its result in `finished`.

        Raises:
            VortexError: `VE010` if it would not fit an otherwise idle engine, `VE011` for a bad prompt, `VE016`
                for no new tokens, or for stop strings without a tokenizer.
        """
        if request.max_new_tokens < 1:
            raise bad_call(f"max_new_tokens is {request.max_new_tokens}", "ask for at least one new token")
        tokenizer = self.engine.tokenizer
        if request.stop_strings and tokenizer is None:
            raise bad_call("stop strings without a tokenizer", "give the engine one, or use stop_ids")
        self.engine.prompts.check(tuple(request.token_ids))
        self._check_fits(request, self.engine.cache.unpinned)
        stream = None if tokenizer is None else TextStream(tokenizer, request.stop_strings)
        self.waiting.append(_Job(self._next_id, request, time.perf_counter(), stream))
        self._next_id += 1
        return self._next_id - 1

    def step(self) -> list[Token]:
        """One chunk of prefill at most while others run, then one token for every running sequence.

        Returns:
            What was produced, except tokens that were produced before a preemption.

        Raises:
            VortexError: `VE010` where prompts pinned since submission leave no room; nothing is lost.
        """
        self._admit()
        self._make_room()
        if not self.running:
            return []
        sequences = [self._sequence(job) for job in self.running]
        known = [
            job.produced[len(s.tokens)] if len(s.tokens) < len(job.produced) else None
            for job, s in zip(self.running, sequences, strict=True)
        ]
        self.engine.step(self._batch, self._sampler, known if any(t is not None for t in known) else None)
        now = time.perf_counter()
        events: list[Token] = []
        going: list[int] = []
        for row, (job, sequence, replayed) in enumerate(zip(self.running, sequences, known, strict=True)):
            if replayed is not None:
                going.append(row)
                continue
            event = self._emit(job, sequence, now)
            events.append(event)
            if event.finish is None:
                going.append(row)
            else:
                self._finish(job, sequence, event.finish, now)
        self._keep(going)
        return events

    def run(self, requests: Sequence[Request]) -> Iterator[Token]:
        """Submit requests and step until they are done; drops what is left when the iterator is closed."""
        try:
            request_ids = [self.submit(request) for request in requests]
            while not all(request_id in self.finished for request_id in request_ids):
                yield from self.step()
        finally:
            self.abort()

    def abort(self) -> None:
        """Drop everything that waits or runs and give back its blocks."""
        self.waiting.clear()
        self._drop_prefill()
        self.waiting.clear()
        self.engine.cache.join([self._sequence(job) for job in self.running])
        self._keep([])

    @property
    def density(self) -> float:
        """Pages attended of all pages so far."""
        return self._batch.density

    # ---- producing

    def _emit(self, job: _Job, sequence: SequenceState, now: float) -> Token:
        """Give out a sequence's newest token."""
        token = sequence.tokens[-1]
        job.produced.append(token)
        if len(job.produced) == 1:
            job.first_token = now
        finish: Finish | None = None
        if token in job.request.stop_ids:
            finish = "stop"
        elif len(job.produced) == job.request.max_new_tokens:
            finish = "length"
        text = ""
        if job.stream is not None:
            text = job.stream.add(token, last=finish is not None)
            if job.stream.stopped:
                finish = "stop"
        return Token(job.request_id, token, sequence.logprobs[-1], text, finish)

    def _finish(self, job: _Job, sequence: SequenceState, finish: Finish, now: float) -> None:
        self.finished[job.request_id] = RequestOutput(
            sequence.tokens,
            sequence.logprobs,
            finish,
            job.first_token - job.submitted,
            now - job.submitted,
            None if job.stream is None else job.stream.text,
            job.preemptions,
        )
        self.engine.cache.join([sequence])

    def _keep(self, rows: Sequence[int]) -> None:
        if len(rows) < len(self.running):
            self.running = [self.running[row] for row in rows]
            self._batch.keep(rows)
            self._sampler.keep(rows)

    @staticmethod
    def _sequence(job: _Job) -> SequenceState:
        assert job.sequence is not None
        return job.sequence

    # ---- memory

    def _needs(self, request: Request) -> int:
        """Blocks that a request may take, at most."""
        cached = len(request.token_ids) - 1
        total = blocks_for(cached + request.max_new_tokens)
        if self.engine.private_pages:
            return blocks_for(cached) + total
        return total + 1  # one more where its prompt's partial last block serves another sequence already

    def _check_fits(self, request: Request, most: int) -> None:
        needed = self._needs(request)
        if needed > most:
            raise out_of_memory("request", needed * BLOCK_TOKENS, most * BLOCK_TOKENS)

    def _make_room(self) -> None:
        """A slot for the next token of every running sequence; the youngest gives way where there is none."""
        for job in list(self.running):
            while job.sequence is not None and not self.engine.cache.grow(job.sequence):
                if self._prefilling is not None:
                    self._drop_prefill()
                elif len(self.running) > 1:
                    self._preempt(max(range(len(self.running)), key=lambda row: self.running[row].request_id))
                else:
                    self._preempt(0)  # prompts were pinned since it began: it goes on when they are released
                    self._check_fits(job.request, self.engine.cache.blocks.available)

    def _preempt(self, row: int) -> None:
        """Back to the head of the queue; its blocks go to the others."""
        job = self.running[row]
        self.engine.cache.join([self._sequence(job)])
        job.sequence = None
        job.preemptions += 1
        self.preemptions += 1
        self.waiting.appendleft(job)
        self._keep([i for i in range(len(self.running)) if i != row])

    # ---- admission

    def _admit(self) -> None:
        """Begin or go on with prefills. While sequences run they are given one chunk a step, else whole prompts."""
        joining: list[_Job] = []
        while True:
            if self._prefilling is None and not self._open(len(joining)):
                break
            assert self._prefilling is not None
            job, prompt, start = self._prefilling
            if start < prompt.cached:
                start = self.engine.prompts.compute(prompt, start)
                self._prefilling = (job, prompt, start)
            if start < prompt.cached:
                if self.running:
                    break
                continue
            self._prefilling = None
            computed = self.engine.prompts.seal(prompt)
            if not self._join(job):
                break
            joining.append(job)
            if computed and self.running:
                break
        if joining:
            self.running += joining
            self._batch.extend([self._sequence(job) for job in joining])
            self._sampler.extend([job.request.sampling for job in joining])
        elif self.waiting and not self.running and self._prefilling is None:
            # Room was taken by others (prompts pinned since then): waiting would never end.
            self._check_fits(self.waiting[0].request, self.engine.cache.blocks.available)

    def _open(self, joining: int) -> bool:
        """Take the next request out of the queue, if there is room for its prompt and its first token."""
        others = len(self.running) + joining
        if not self.waiting or others >= self.max_batch:
            return False
        job = self.waiting[0]
        needed = blocks_for(job.cached + 1) + (blocks_for(job.cached) if self.engine.private_pages else 1)
        alone = self._needs(job.request)
        # Beside others it leaves each a block to grow into; by itself it must fit with all it may produce.
        if self.engine.cache.blocks.available < (needed + others if others else alone):
            return False
        self.waiting.popleft()
        prompt, start = self.engine.prompts.open(tuple(job.request.token_ids))
        self._prefilling = (job, prompt, start)
        return True

    def _join(self, job: _Job) -> bool:
        """A prefilled request becomes a sequence. False where others grew into its room: it waits again."""
        pinned = self.engine.cache.prompts[tuple(job.request.token_ids)]
        fits = self.engine.cache.fits([pinned], [1], private=self.engine.private_pages)
        if fits:
            (job.sequence,) = self.engine.fork([pinned], [1])
        else:
            self.waiting.appendleft(job)
        self.engine.release(pinned)
        return fits

    def _drop_prefill(self) -> None:
        """Give up a prefill that is under way; the request waits again, first in line."""
        if self._prefilling is not None:
            job, prompt, _ = self._prefilling
            self._prefilling = None
            self.engine.prompts.close(prompt)
            self.waiting.appendleft(job)

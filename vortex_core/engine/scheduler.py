"""Continuous batching: requests join the running batch as blocks become free and leave it as they finish."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vortex_core.engine.batch import DecodeBatch
from vortex_core.engine.blocks import BLOCK_TOKENS, blocks_for
from vortex_core.engine.cache import SequenceState
from vortex_core.engine.errors import bad_call, out_of_memory
from vortex_core.engine.sampling import GREEDY, Sampler, Sampling

if TYPE_CHECKING:
    from vortex_core.engine.engine import Engine


@dataclass(frozen=True)
class Request:
    """A prompt to continue. `sampling` is greedy by default."""

    token_ids: Sequence[int]
    max_new_tokens: int
    stop_ids: Sequence[int] = ()
    sampling: Sampling = GREEDY


@dataclass(frozen=True)
class Generation:
    """A finished request.

    Attributes:
        tokens: what it produced, a final stop id included.
        logprobs: of each of them.
        finish: `stop` where it ended with a stop id, else `length`.
        first_token_seconds: from submission to the first token (TTFT).
        seconds: from submission to the end.
    """

    tokens: list[int]
    logprobs: list[float]
    finish: Literal["stop", "length"]
    first_token_seconds: float
    seconds: float


@dataclass(eq=False)
class _Running:
    ticket: int
    request: Request
    submitted: float
    sequence: SequenceState
    first_token: float = 0.0


class Scheduler:
    """Admits requests first come first served, and steps all that are running together.

    A request is admitted when the blocks of its whole life are free, so it never has to be preempted.

    Args:
        max_batch: sequences that run at once.
    """

    def __init__(self, engine: Engine, max_batch: int = 64) -> None:
        self.engine = engine
        self.max_batch = max_batch
        self.waiting: deque[tuple[int, Request, float]] = deque()
        self.running: list[_Running] = []
        self.finished: dict[int, Generation] = {}
        self._batch = DecodeBatch([], engine.cache.pool, engine.flow)
        self._sampler = Sampler([])
        self._tickets = 0

    def submit(self, request: Request) -> int:
        """Queue a request; returns the key of its result in `finished`.

        Raises:
            VortexError: `VE010` if it would not fit an otherwise idle engine, `VE011` for a bad prompt,
                `VE016` for no new tokens.
        """
        if request.max_new_tokens < 1:
            raise bad_call(f"max_new_tokens is {request.max_new_tokens}", "ask for at least one new token")
        self.engine.check_prompt(tuple(request.token_ids))
        self._check_fits(request, self.engine.cache.unpinned)
        self.waiting.append((self._tickets, request, time.perf_counter()))
        self._tickets += 1
        return self._tickets - 1

    def step(self) -> None:
        """Admit what fits, then one token for every running sequence."""
        self._admit()
        if not self.running:
            return
        self.engine.step(self._batch, self._sampler)
        now = time.perf_counter()
        going: list[int] = []
        for row, run in enumerate(self.running):
            tokens = run.sequence.tokens
            if len(tokens) == 1:
                run.first_token = now
            stopped = tokens[-1] in run.request.stop_ids
            if stopped or len(tokens) == run.request.max_new_tokens:
                self.finished[run.ticket] = Generation(
                    tokens,
                    run.sequence.logprobs,
                    "stop" if stopped else "length",
                    run.first_token - run.submitted,
                    now - run.submitted,
                )
                self.engine.cache.join([run.sequence])
            else:
                going.append(row)
        if len(going) < len(self.running):
            self.running = [self.running[row] for row in going]
            self._batch.keep(going)
            self._sampler.keep(going)

    def abort(self) -> None:
        """Drop everything that waits or runs and give back its blocks."""
        self.waiting.clear()
        self.engine.cache.join([run.sequence for run in self.running])
        self.running = []
        self._batch.keep([])
        self._sampler.keep([])

    @property
    def density(self) -> float:
        """Pages attended of all pages so far."""
        return self._batch.density

    def _needs(self, request: Request) -> int:
        """Blocks that a request may take, at most."""
        cached = len(request.token_ids) - 1
        total = blocks_for(cached + request.max_new_tokens)
        if self.engine.private_pages:
            return blocks_for(cached) + total
        return total + 1  # one more where its prompt's partial block is lent already

    def _check_fits(self, request: Request, most: int) -> None:
        needed = self._needs(request)
        if needed > most:
            raise out_of_memory("request", needed * BLOCK_TOKENS, most * BLOCK_TOKENS)

    def _admit(self) -> None:
        joining: list[_Running] = []
        while self.waiting and len(self.running) + len(joining) < self.max_batch:
            ticket, request, submitted = self.waiting[0]
            if self._needs(request) > self.engine.cache.blocks.available:
                break
            self.waiting.popleft()
            prompt = self.engine.prefill(request.token_ids)
            (sequence,) = self.engine.fork([prompt], [request.max_new_tokens])
            self.engine.release(prompt)
            joining.append(_Running(ticket, request, submitted, sequence))
        if joining:
            self.running += joining
            self._batch.extend([run.sequence for run in joining])
            self._sampler.extend([run.request.sampling for run in joining])
        elif self.waiting and not self.running:
            # Room was taken by others (prompts pinned since then): waiting would never end.
            self._check_fits(self.waiting[0][1], self.engine.cache.blocks.available)

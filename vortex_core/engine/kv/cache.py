"""The KV cache: which prompts are pinned, which sequences are decoding, and the blocks they hold."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from vortex_core.engine.errors import out_of_memory, released_prompt
from vortex_core.engine.kv.blocks import BLOCK_TOKENS, BlockPool, blocks_for, digests_of
from vortex_core.engine.kv.pool import KVPool
from vortex_core.geometry import Geometry


@dataclass(eq=False)
class Prompt:
    """Keys and values of all tokens but the last, pinned until released.

    The last token is left to the first decode step, so that even the first answer token comes from the flow.

    Attributes:
        token_ids: the whole prompt.
        blocks: physical blocks of the first `length - 1` tokens; full ones may be shared with other prompts.
        pins: calls of `prefill` not yet released.
        tail_in_use: whether a decoding sequence writes to the free end of the last block.
        prefill_seconds: time spent computing them.
        synthetic: whether keys and values are random numbers and not those of the tokens.
    """

    token_ids: tuple[int, ...]
    blocks: list[int] = field(default_factory=list, repr=False)
    pins: int = 1
    tail_in_use: bool = field(default=False, repr=False)
    prefill_seconds: float = 0.0
    synthetic: bool = False

    @property
    def length(self) -> int:
        """Tokens, the last one included."""
        return len(self.token_ids)

    @property
    def cached(self) -> int:
        """Tokens whose keys and values are in the pool."""
        return len(self.token_ids) - 1


@dataclass(eq=False)
class SequenceState:
    """One sequence while it decodes.

    Attributes:
        blocks: physical blocks, reserved for its whole life.
        length: tokens with keys and values in the pool.
        next_token: fed at the next step.
        decode_steps: decode steps it has taken, since it was forked from its prompt.
        seat: where it keeps states of its own; no two sequences that decode have the same.
        tail_of: the prompt whose partial last block this sequence writes to.
        tokens: what it produced.
        logprobs: of each of them.
    """

    blocks: list[int]
    length: int
    next_token: int
    decode_steps: int = 0
    seat: int = 0
    tail_of: Prompt | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class KVCache:
    """The pool and everyone who owns a part of it.

    Args:
        on_reuse: called with blocks whose content is about to change.
    """

    def __init__(
        self,
        geometry: Geometry,
        max_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        on_reuse: Callable[[Sequence[int]], None],
    ) -> None:
        self.blocks = BlockPool(blocks_for(max_tokens))
        self.pool = KVPool(geometry, self.blocks.total, dtype, device)
        self.prompts: dict[tuple[int, ...], Prompt] = {}
        self.sequences: list[SequenceState] = []
        self._free_seats: list[int] = []  # a heap of those that were given back
        self._seats = 0  # given out so far, at once
        self.opened: list[Prompt] = []  # their keys and values are being computed
        self._on_reuse = on_reuse

    # ---- prompts

    def open(self, ids: tuple[int, ...]) -> tuple[Prompt, int]:
        """Blocks for a new prompt, and how many leading tokens they hold. Follow with `seal` or `close`.

        Full blocks of a known prefix are shared; of the block after them, the pages that agree are copied.

        Raises:
            VortexError: `VE010` where the pool has no room; then nothing was taken.
        """
        prompt = Prompt(ids)
        digests = digests_of(ids[: prompt.cached])
        shared = self.blocks.find(digests)
        held = len(shared) * BLOCK_TOKENS
        source, same = self.blocks.continuing(
            digests[len(shared) - 1] if shared else b"", ids[held : min(held + BLOCK_TOKENS, prompt.cached)]
        )
        missing = blocks_for(prompt.cached) - len(shared)
        self.blocks.share(shared)  # before allocating, which could evict them
        kept = [source] if same else []
        self.blocks.share(kept)
        if missing > self.blocks.available and kept:
            self.blocks.release(kept)
            kept, same = [], 0
        if missing > self.blocks.available:
            fits = (len(shared) + self.blocks.available) * BLOCK_TOKENS + 1
            self.blocks.release(shared)
            raise out_of_memory("prompt", prompt.length, fits)
        prompt.blocks = shared + self._allocate(missing, shared)
        if kept:
            self.pool.copy_tokens(source, prompt.blocks[len(shared)], same)
            self.blocks.release(kept)
        self.opened.append(prompt)
        return prompt, held + same

    def open_synthetic(self, ids: tuple[int, ...]) -> Prompt:
        """A pinned prompt whose blocks are its own and stay unknown to others; the caller fills them.

        Raises:
            VortexError: `VE010` where the pool has no room.
        """
        prompt = Prompt(ids, synthetic=True)
        count = blocks_for(prompt.cached)
        if count > self.blocks.available:
            raise out_of_memory("prompt", prompt.length, self.blocks.available * BLOCK_TOKENS + 1)
        prompt.blocks = self._allocate(count, [])
        self.prompts[ids] = prompt
        return prompt

    def seal(self, prompt: Prompt) -> None:
        """The prompt's keys and values are written: pin it, and let others share its full blocks."""
        parent = b""
        for i, digest in enumerate(digests_of(prompt.token_ids[: prompt.cached])):
            tokens = prompt.token_ids[i * BLOCK_TOKENS : (i + 1) * BLOCK_TOKENS]
            self.blocks.publish(prompt.blocks[i], digest, parent, tokens)
            parent = digest
        assert prompt.token_ids not in self.prompts, "this prompt is pinned already"
        self.opened.remove(prompt)
        self.prompts[prompt.token_ids] = prompt

    def close(self, prompt: Prompt) -> None:
        """Give back the blocks of a prompt that is no longer pinned, or will not be."""
        if prompt in self.opened:
            self.opened.remove(prompt)
        else:
            del self.prompts[prompt.token_ids]
        self.blocks.release(prompt.blocks)

    def check_pinned(self, prompts: Sequence[Prompt]) -> None:
        """Raises `VE015` for a prompt that was released."""
        for prompt in prompts:
            if self.prompts.get(prompt.token_ids) is not prompt:
                raise released_prompt(prompt.length)

    @property
    def unpinned(self) -> int:
        """Blocks that no pinned prompt holds: what requests can ever get."""
        return self.blocks.total - len({block for p in self.prompts.values() for block in p.blocks})

    # ---- sequences

    def fork(
        self, prompts: Sequence[Prompt], new_tokens: Sequence[int], *, private: bool
    ) -> list[SequenceState]:
        """Sequences that continue prompts, with room reserved for their new tokens. End them with `join`.

        Full blocks are shared. The partial last block (the tail) serves one sequence at a time, which writes behind
        the prompt's tokens; a second one gets a copy. Blocks that sequences fill are never shared: their keys
        and values come from sparse attention, a prefill of the same tokens would give others.

        Args:
            private: copy everything, because page states depend on the request.

        Raises:
            VortexError: `VE010`; then nothing was taken.
        """
        needed = self._missing(prompts, new_tokens, private)
        if needed > self.blocks.available:
            fits = self.blocks.available * BLOCK_TOKENS
            raise out_of_memory(f"decoding {len(prompts)} prompts", needed * BLOCK_TOKENS, fits)
        return [self._fork(p, new, private) for p, new in zip(prompts, new_tokens, strict=True)]

    def fits(self, prompts: Sequence[Prompt], new_tokens: Sequence[int], *, private: bool) -> bool:
        """Whether `fork` would find room for these prompts and new tokens."""
        return self._missing(prompts, new_tokens, private) <= self.blocks.available

    def _missing(self, prompts: Sequence[Prompt], new_tokens: Sequence[int], private: bool) -> int:
        """Blocks that `fork` would take."""
        needed = 0
        tail_taken: set[int] = set()
        for prompt, new in zip(prompts, new_tokens, strict=True):
            needed += blocks_for(prompt.cached + new) - self._inherited(
                prompt, private, id(prompt) in tail_taken
            )
            tail_taken.add(id(prompt))
        return needed

    def _inherited(self, prompt: Prompt, private: bool, tail_taken: bool) -> int:
        """Leading blocks of a prompt that its next sequence uses in place."""
        if private:
            return 0
        full, rest = divmod(prompt.cached, BLOCK_TOKENS)
        return full + bool(rest and not prompt.tail_in_use and not tail_taken)

    def _fork(self, prompt: Prompt, new_tokens: int, private: bool) -> SequenceState:
        inherited = self._inherited(prompt, private, False)
        tail_of = prompt if inherited * BLOCK_TOKENS > prompt.cached else None
        if tail_of is not None:
            tail_of.tail_in_use = True
        blocks = prompt.blocks[:inherited]
        self.blocks.share(blocks)
        blocks += self._allocate(blocks_for(prompt.cached + new_tokens) - inherited, blocks)
        for i in range(inherited, len(prompt.blocks)):
            tokens = min(BLOCK_TOKENS, prompt.cached - i * BLOCK_TOKENS)
            self.pool.copy_tokens(prompt.blocks[i], blocks[i], tokens)
        sequence = SequenceState(blocks, prompt.cached, prompt.token_ids[-1], 0, self._seat(), tail_of)
        self.sequences.append(sequence)
        return sequence

    def _seat(self) -> int:
        """The lowest seat that is free: there are as many as sequences ever decoded at once."""
        if self._free_seats:
            return heapq.heappop(self._free_seats)
        self._seats += 1
        return self._seats - 1

    def grow(self, sequence: SequenceState) -> bool:
        """Room for a sequence's next token; False where no block is left."""
        if sequence.length < len(sequence.blocks) * BLOCK_TOKENS:
            return True
        if not self.blocks.available:
            return False
        sequence.blocks += self._allocate(1, sequence.blocks)
        return True

    def join(self, sequences: Sequence[SequenceState]) -> None:
        """End sequences: give back their blocks and seats."""
        for sequence in sequences:
            heapq.heappush(self._free_seats, sequence.seat)
            if sequence.tail_of is not None:
                sequence.tail_of.tail_in_use = False
            self.blocks.release(sequence.blocks)
            self.sequences.remove(sequence)

    def _allocate(self, count: int, before: Sequence[int]) -> list[int]:
        """Blocks for new content, continuing `before` where possible."""
        blocks = self.blocks.allocate(count, before[-1] if before else None)
        self._on_reuse(blocks)
        return blocks

    def check_integrity(self) -> None:
        """Assert that every block and seat is accounted for."""
        assert sorted([*self._free_seats, *(s.seat for s in self.sequences)]) == list(range(self._seats))
        prompts = [*self.prompts.values(), *self.opened]
        owners = [p.blocks for p in prompts] + [s.blocks for s in self.sequences]
        self.blocks.check_integrity(owners)

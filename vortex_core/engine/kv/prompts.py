"""From token ids to pinned keys and values: prompts are opened, computed chunk by chunk, sealed and released."""

from __future__ import annotations

from typing import Any

import torch

from vortex_core.engine.decode.batch import PrefillStep
from vortex_core.engine.errors import bad_prompt
from vortex_core.engine.kv.cache import KVCache, Prompt
from vortex_core.specs import ModelSpec

# Tokens: larger chunks gain nothing on a CPU and hold more activations; a GPU wants full matrices.
PREFILL_CHUNK = {"cpu": 1024, "cuda": 4096}


class Prompts:
    """The prompts of one engine. `Engine.prefill` takes all steps at once, a scheduler one after the other.

    Args:
        model: an adapted transformers model; its steps write to the pool of `cache`.
    """

    def __init__(self, model: Any, spec: ModelSpec, cache: KVCache) -> None:
        self.model, self.spec, self.cache = model, spec, cache

    def open(self, ids: tuple[int, ...]) -> tuple[Prompt, int]:
        """Blocks for a prompt, and the token its prefill begins at: its end where it is pinned already.

        Go on with `compute`, end with `seal` or `close`.
        """
        if ids in self.cache.prompts:
            prompt = self.cache.prompts[ids]
            if prompt.synthetic:
                raise bad_prompt("holds random keys and values", "release it first")
            prompt.pins += 1
            return prompt, prompt.cached
        self.check(ids)
        return self.cache.open(ids)

    def seal(self, prompt: Prompt) -> bool:
        """An opened prompt is computed: pin it. False where another of the same tokens is pinned, which counts then."""
        pinned = self.cache.prompts.get(prompt.token_ids)
        if pinned is None:
            self.cache.seal(prompt)
            return True
        if pinned is not prompt:
            pinned.pins += 1
            self.cache.close(prompt)
        return False

    def close(self, prompt: Prompt) -> None:
        """Give up a prompt that was opened: its blocks go back to the pool unless others hold it."""
        if prompt in self.cache.opened:
            self.cache.close(prompt)
        else:
            self.release(prompt)

    def compute(self, prompt: Prompt, begin: int) -> int:
        """Compute one chunk of an opened prompt, from token `begin`; returns where the next one begins."""
        end = min(begin + PREFILL_CHUNK[self.cache.pool.k.device.type], prompt.cached)
        with torch.inference_mode():
            step = PrefillStep(prompt.blocks, prompt.token_ids[begin:end], begin, self.cache.pool)
            self.model.base_model(
                input_ids=step.tokens, position_ids=step.positions, use_cache=False, vortex_step=step
            )
        return end

    def release(self, prompt: Prompt) -> None:
        """Undo one pin. After the last, the blocks may be taken for other prompts."""
        self.cache.check_pinned([prompt])
        prompt.pins -= 1
        if prompt.pins == 0:
            self.cache.close(prompt)

    def check(self, ids: tuple[int, ...]) -> None:
        """Raises `VE011` for token ids that cannot be a prompt of this model."""
        if not ids:
            raise bad_prompt("is empty", "give at least one token")
        if len(ids) > self.spec.max_context:
            raise bad_prompt(
                f"has {len(ids)} tokens, {self.spec.name} was made for {self.spec.max_context}", "shorten it"
            )
        if not 0 <= min(ids) <= max(ids) < self.spec.vocab:
            bad = next(token for token in ids if not 0 <= token < self.spec.vocab)
            raise bad_prompt(
                f"has token id {bad}, the vocabulary has {self.spec.vocab}", "use the model's tokenizer"
            )

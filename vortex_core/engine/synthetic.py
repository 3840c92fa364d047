"""Prompts whose keys and values are random numbers: for measuring speed where no one reads the text.

Filling the pool takes seconds where a prefill of sixteen prompts of 32k tokens takes a minute. Never shared with
other prompts, and what decodes from them means nothing.
"""

from __future__ import annotations

import torch

from vortex_core.engine.kv.blocks import runs_of
from vortex_core.engine.kv.cache import KVCache, Prompt


def random_prompt(cache: KVCache, length: int, vocab: int, seed: int) -> Prompt:
    """A pinned prompt of `length` random token ids with keys and values from a standard normal distribution.

    Raises:
        VortexError: `VE010` where the pool has no room.
    """
    ids = torch.randint(0, vocab, (length,), generator=torch.Generator().manual_seed(seed))
    prompt = cache.open_synthetic(tuple(ids.tolist()))
    pool = cache.pool
    generator = torch.Generator(pool.k.device).manual_seed(seed)
    for start, tokens in runs_of(prompt.blocks, prompt.cached):
        for layer in range(pool.geometry.layers):
            k, v = pool.layer(layer)
            for target in (k,) if pool.geometry.is_mla else (k, v):
                _fill(target[:, start : start + tokens], generator)
    return prompt


def _fill(target: torch.Tensor, generator: torch.Generator) -> None:
    """Standard normal numbers, which torch does not draw in fp8."""
    if target.dtype.itemsize > 1:
        target.normal_(generator=generator)
    else:
        wide = torch.empty(target.shape, dtype=torch.bfloat16, device=target.device)
        target.copy_(wide.normal_(generator=generator))

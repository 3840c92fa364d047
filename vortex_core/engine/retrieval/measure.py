"""Accuracy of a retrieval model on fresh texts, in transformers' own forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vortex_core.engine.retrieval.alphabet import (
    BOS,
    COUNT,
    FIRST_KEY,
    FIRST_NOISE,
    FIRST_NUMBER,
    FIRST_VALUE,
    HOP,
    KEYS,
    MOST,
    VOCAB,
)
from vortex_core.engine.retrieval.stories import SKILLS
from vortex_core.engine.retrieval.task import noise_texts

FRESH_SEED = 2_000_003
LENGTHS = (256, 512, 1024, 2048, 4096)
LONG_LENGTHS = {512: 8, 2048: 4, 8192: 2, 32768: 1}  # tokens, and texts of that many
MORE_TEXTS = {512: 16, 1024: 16, 2048: 16, 4096: 16, 8192: 16, 32768: 4}  # for a GPU
_BF16_LENGTHS = 2048  # CPUs are slow in bf16
PAIRS = 32


@torch.no_grad()
def accuracy(
    model: Any, length: int, *, pairs: int = PAIRS, texts: int = 32, questions: int = 16, batch: int = 4
) -> float:
    """Share of questions in fresh texts that a model answers rightly, where all are look-ups."""
    generator = torch.Generator(model.device).manual_seed(FRESH_SEED + length)
    right = 0
    for _ in range(0, texts, batch):
        made = noise_texts(batch, length, pairs, questions, generator)
        logits = model(input_ids=made.ids, use_cache=False).logits[:, made.asked]
        right += int((logits.argmax(-1) == made.answers).sum())
    return right / (texts * questions)


def lookup_by_length(model: Any) -> dict[str, float]:
    """Share right by the length of texts."""
    return {str(length): round(accuracy(model, length), 4) for length in LENGTHS}


def skills_by_length(model: Any, lengths: Mapping[int, int] = LONG_LENGTHS) -> dict[str, dict[str, float]]:
    """Share right by skill and length of real texts, consecutive positions and all noise there; short ones in bf16.

    Args:
        lengths: tokens, and texts of that many.
    """
    found: dict[str, dict[str, float]] = {skill: {} for skill in SKILLS}
    for length, texts in lengths.items():
        if model.dtype == torch.bfloat16 and length > _BF16_LENGTHS:
            continue
        for skill, share in skill_accuracy(model, length, texts=texts).items():
            found[skill][str(length)] = round(share, 4)
    return found


@torch.no_grad()
def skill_accuracy(
    model: Any, length: int, *, pairs: int = PAIRS, texts: int = 32, questions: int = 16
) -> dict[str, float]:
    """Share of questions of each skill that a model answers rightly in real texts of a length.

    The text is read once; every question continues it alone, as the end of a prompt would.
    """
    from transformers import DynamicCache

    generator = torch.Generator().manual_seed(FRESH_SEED + length)
    right = dict.fromkeys(SKILLS, 0)
    for _ in range(texts):
        story, questions_of = real_story(length - 2, pairs, questions, generator)
        cache = DynamicCache(config=model.config)
        model.model(input_ids=story[None].to(model.device), past_key_values=cache, use_cache=True)
        for skill, (asked, wanted) in questions_of.items():
            repeated = DynamicCache(config=model.config)
            for layer, kept in enumerate(cache.layers):
                keys, values = (t.expand(questions, -1, -1, -1) for t in (kept.keys, kept.values))
                repeated.update(keys, values, layer)
            logits = model(input_ids=asked.to(model.device), past_key_values=repeated, use_cache=True).logits[
                :, -1
            ]
            right[skill] += int((logits.argmax(-1).cpu() == wanted).sum())
    return {skill: count / (texts * questions) for skill, count in right.items()}


def real_story(
    length: int, pairs: int, questions: int, generator: torch.Generator
) -> tuple[torch.Tensor, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """A closed story of noise, `[length]`, and by skill the two tokens of each question and its answer.

    A quarter of the pairs is written one to `MOST` times, and only those are counted.
    """
    ids = torch.randint(FIRST_NOISE, VOCAB, (length,), generator=generator)
    ids[0] = BOS
    keys = torch.randperm(KEYS, generator=generator)[:pairs]
    values = keys.roll(-1)
    counted = pairs // 4
    written = torch.ones(pairs, dtype=torch.long)
    written[:counted] = torch.randint(1, MOST + 1, (counted,), generator=generator)
    of = torch.repeat_interleave(torch.arange(pairs), written)
    of = of[torch.randperm(len(of), generator=generator)]
    places = torch.randperm(length - 1 - len(of), generator=generator)[: len(of)].sort().values
    places = places + 1 + torch.arange(len(of))
    ids[places], ids[places + 1] = keys[of] + FIRST_KEY, values[of] + FIRST_VALUE
    which = torch.randint(pairs, (2, questions), generator=generator)
    times = torch.randint(counted, (questions,), generator=generator)
    noise = torch.full((questions,), FIRST_NOISE)

    def asked(marker: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
        return torch.stack([marker, keys[of] + FIRST_KEY], 1)

    return ids, {
        "lookup": (asked(noise, which[0]), values[which[0]] + FIRST_VALUE),
        "hop": (asked(torch.full_like(noise, HOP), which[1]), values[(which[1] + 1) % pairs] + FIRST_VALUE),
        "count": (asked(torch.full_like(noise, COUNT), times), written[times] - 1 + FIRST_NUMBER),
    }

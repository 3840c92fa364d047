"""The synthetic retrieval task and the training of the small model on it."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from vortex_core.engine.engine import Engine
from vortex_core.engine.models.retrieval import (
    ASK,
    FIRST_KEY,
    FIRST_NOISE,
    FIRST_VALUE,
    VOCAB,
    make_texts,
    retrieval_accuracy,
    save_tokenizer,
    tokenizer_words,
)
from vortex_core.engine.models.train_retrieval import Stage, new_model, retrieval_config, train


@settings(max_examples=15)
@given(
    seed=st.integers(0, 1000),
    pairs=st.integers(1, 20),
    questions=st.integers(1, 20),
    noise=st.integers(0, 60),
    spread=st.integers(0, 500),
)
def test_every_question_is_answered_in_the_text(
    seed: int, pairs: int, questions: int, noise: int, spread: int
) -> None:
    length = 1 + 2 * pairs + noise + 3 * questions
    generator = torch.Generator().manual_seed(seed)
    texts = make_texts(2, length, pairs, questions, generator, reach=length + spread)
    assert texts.ids.shape == texts.positions.shape == (2, length)
    start = length - 3 * questions
    for ids, positions in zip(texts.ids.tolist(), texts.positions.tolist(), strict=True):
        body = ids[:start]
        at = [i for i, token in enumerate(body) if FIRST_KEY <= token < FIRST_VALUE]
        assert len(at) == pairs
        pair = {body[i]: body[i + 1] for i in at}
        assert len(pair) == pairs, "keys differ"
        assert all(FIRST_VALUE <= value < FIRST_NOISE for value in pair.values())
        assert sum(token >= FIRST_NOISE for token in body) == noise
        for i in texts.answers.tolist():
            assert (ids[i - 1], ids[i + 1]) == (ASK, pair[ids[i]])
        assert all(positions[i + 1] == positions[i] + 1 for i in at), "pairs stay together"
        assert all(a < b for a, b in pairwise(positions))
        assert positions[-1] < length + spread


def test_texts_differ_and_the_seed_decides() -> None:
    a, b = (make_texts(4, 60, 5, 5, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(a.ids, b.ids)
    assert len(a.ids.unique(dim=0)) == 4


class _Reader:
    """Answers right where the key is among the last `reach` tokens, as an engine would."""

    def __init__(self, reach: int) -> None:
        self.reach = reach

    def prefill(self, ids: list[int]) -> list[int]:
        return ids

    def release(self, prompt: list[int]) -> None:
        pass

    def decode(self, prompts: list[list[int]], *, max_new_tokens: int) -> Any:
        answers = []
        for ids in prompts:
            seen = ids[-self.reach : -2]
            found = [b for a, b in pairwise(seen) if a == ids[-1]]
            answers.append([found[0] if found else 0])
        return SimpleNamespace(tokens=answers)


def test_accuracy_is_the_share_of_right_answers() -> None:
    def accuracy(reader: Any) -> float:
        return retrieval_accuracy(reader, length=200, pairs=10, items=40, seed=0)

    assert accuracy(_Reader(200)) == 1.0
    assert accuracy(_Reader(2)) == 0.0
    assert 0.3 < accuracy(_Reader(100)) < 0.7


def test_the_tokenizer_knows_every_token(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    words = tokenizer_words()
    assert len(words) == len(set(words)) == VOCAB
    assert tokenizer(" ".join(words)).input_ids == list(range(VOCAB))


def test_training_teaches_which_tokens_answer(tiny: Any, single_thread: None) -> None:
    """A stage is run, and the loss falls from `log(vocabulary)` for answers are values."""
    model = tiny("glm4_moe_lite", vocab_size=VOCAB, initializer_range=0.05).train()
    stage = Stage(steps=40, length=12, pairs=1, questions=3, batch=16, reach=12, enough=1.1)
    history = train(model, curriculum=(stage,), say=lambda _: None)
    losses = [loss for loss, _ in history]
    assert len(losses) == 40
    assert losses[0] == pytest.approx(math.log(VOCAB), abs=0.5)
    assert sum(losses[-5:]) / 5 < losses[0] - 0.6


def test_the_cache_row_is_that_of_the_real_model() -> None:
    config = retrieval_config()
    assert (config.kv_lora_rank, config.qk_rope_head_dim) == (512, 64)
    geometry = Engine(new_model(), max_tokens=128).geometry
    assert (geometry.is_mla, geometry.head_dim, geometry.value_dim) == (True, 576, 512)


def test_too_many_pairs_are_a_mistake() -> None:
    with pytest.raises(AssertionError, match="no room"):
        make_texts(1, 20, 9, 2, torch.Generator())

"""Tiny random models: real transformers classes, float32, built in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from vortex_core.engine.engine import Engine


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny_model(
    architecture: str = "llama", *, layers: int = 3, kv_heads: int = 2, group: int = 3, seed: int = 0
) -> Any:
    """A random causal LM with head_dim 16 and a vocabulary of 128."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        architecture,
        hidden_size=48,
        num_hidden_layers=layers,
        num_attention_heads=kv_heads * group,
        num_key_value_heads=kv_heads,
        head_dim=16,
        intermediate_size=96,
        vocab_size=128,
        max_position_embeddings=4096,
        # Attention that looks far and a large spread of logits: mistakes in K, V or positions change tokens.
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def make_engine() -> Callable[..., Engine]:
    """Engines over tiny models."""

    def make(max_tokens: int = 8192, **options: Any) -> Engine:
        return Engine(tiny_model(**options), max_tokens=max_tokens)

    return make


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """The same models as transformers runs them."""
    return tiny_model


def random_ids(length: int, seed: int) -> list[int]:
    """Token ids that are no special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, 128, (length,), generator=generator).tolist()


@pytest.fixture(scope="session")
def ids() -> Callable[[int, int], list[int]]:
    """Random prompts: `ids(length, seed)`."""
    return random_ids

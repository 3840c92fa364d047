"""A model whose classes no stand-in is known for says so when it is loaded; one of known classes says nothing."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Olmo2Config, Olmo2ForCausalLM

from vortex_core.engine.fused.modules import fuse, left_as_written
from vortex_core.engine.models.adapt import adapt

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def test_known_classes_are_replaced_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = adapt(LlamaForCausalLM(LlamaConfig(**SIZES)))
    assert left_as_written(model) == (
        "LlamaAttention",
        "LlamaDecoderLayer",
        "LlamaMLP",
        "LlamaRMSNorm",
        "LlamaRotaryEmbedding",
    )
    with caplog.at_level(logging.WARNING):
        found = fuse(model)
    assert (found.attentions, found.layers, found.left) == (2, 2, ())
    assert caplog.messages == []


def test_unknown_classes_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = adapt(Olmo2ForCausalLM(Olmo2Config(**SIZES, eos_token_id=1, pad_token_id=0)))
    with caplog.at_level(logging.WARNING):
        found = fuse(model)
    assert "Olmo2Attention" in found.left
    (note,) = caplog.messages
    assert "Olmo2ForCausalLM: " in note
    assert all(name in note for name in found.left)
    assert "many small launches" in note


def test_attention_that_rotates_in_part_is_left_as_written() -> None:
    torch.manual_seed(0)
    model = adapt(LlamaForCausalLM(LlamaConfig(**SIZES, partial_rotary_factor=0.5)))
    assert fuse(model).attentions == 0

"""Tiny random models of every architecture the engine names."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

_COMMON: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "intermediate_size": 96,
    "vocab_size": 131,  # odd, so that it divides over no number of ranks
    "max_position_embeddings": 4096,
    # Attention that looks far and a large spread of logits: mistakes in K, V or positions change tokens.
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}
_GROUPED: dict[str, Any] = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16}
_LATENT: dict[str, Any] = {
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 40,
}
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "qwen3": _GROUPED | {"tie_word_embeddings": True},
    "qwen3_moe": _GROUPED | _EXPERTS | {"num_experts": 8, "norm_topk_prob": True},
    "glm4_moe_lite": _LATENT | _EXPERTS | {"n_routed_experts": 8, "n_shared_experts": 1},
    "deepseek_v3": _LATENT
    | _EXPERTS
    | {"n_routed_experts": 8, "n_shared_experts": 1, "n_group": 2, "topk_group": 1, "q_lora_rank": None}
    | {"first_k_dense_replace": 1},
    "minimax_m2": _GROUPED | {"num_experts_per_tok": 2, "num_local_experts": 8, "rotary_dim": 8},
}


def tiny(architecture: str, **changes: Any) -> Any:
    """A random float32 causal LM, the same at every call."""
    config = AutoConfig.for_model(architecture, **(_COMMON | ARCHITECTURES[architecture] | changes))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("correction_bias"):  # zero as it is made, and then mistakes in it do not show
            buffer.normal_(0.0, 0.1)
    return model


@pytest.fixture(scope="session", name="tiny")
def tiny_fixture() -> Callable[..., Any]:
    """`tiny(architecture, **changes)`."""
    return tiny

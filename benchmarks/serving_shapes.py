"""Models that SGLang serves with dummy weights, by their published dimensions (configs/models says where from)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_QWEN: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    "torch_dtype": "bfloat16", "hidden_act": "silu", "attention_bias": False, "bos_token_id": 1,
    "eos_token_id": 2, "use_cache": True, "sliding_window": None, "use_sliding_window": False,
    "attention_dropout": 0.0, "vocab_size": 151936, "max_position_embeddings": 40960,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        **_QWEN, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 256, "tie_word_embeddings": True,
    },
    "qwen3-1.7b": {
        **_QWEN, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
    },
    "qwen3-8b": {
        **_QWEN, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False,
    },
    "llama-3.1-8b": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5, "rope_theta": 5e5, "torch_dtype": "bfloat16", "hidden_act": "silu",
        "attention_bias": False, "mlp_bias": False, "bos_token_id": 1, "eos_token_id": 2, "use_cache": True,
        "tie_word_embeddings": False,
    },
    # Eight of 62 layers: the whole model in bf16 is 457 GB. Steps are eight layers and the vocabulary's.
    "minimax-m2-layers": {
        "architectures": ["MiniMaxM2ForCausalLM"], "model_type": "minimax_m2", "hidden_size": 3072,
        "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 48,
        "num_key_value_heads": 8, "head_dim": 128, "rotary_dim": 64, "num_local_experts": 256,
        "num_experts_per_tok": 8, "scoring_func": "sigmoid", "use_routing_bias": True, "use_qk_norm": True,
        "qk_norm_type": "per_layer", "vocab_size": 200064, "max_position_embeddings": 196608,
        "rms_norm_eps": 1e-6, "rope_parameters": {"rope_theta": 5e6, "rope_type": "default"},
        "torch_dtype": "bfloat16", "hidden_act": "silu", "use_cache": True, "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 2,
    },
}  # fmt: skip
GLM = "glm-4.7-flash"  # transformers' defaults, and what SGLang reads beside them
_GLM_REST = {
    "architectures": ["Glm4MoeLiteForCausalLM"], "torch_dtype": "bfloat16", "first_k_dense_replace": 1,
    "moe_layer_freq": 1, "topk_method": "noaux_tc", "scoring_func": "sigmoid", "num_nextn_predict_layers": 1,
}  # fmt: skip
MODELS = (*SHAPES, GLM)
# Environment of an SGLang that runs without a GPU.
CPU_VARIABLES = {"SGLANG_USE_CPU_ENGINE": "1", "TRITON_INTERPRET": "1"}
MIXTURES = (GLM, "minimax-m2-layers")
NOTES = {"minimax-m2-layers": ("eight of the model's 62 layers",)}


def write_config(model: str, folder: Path, context: int) -> Path:
    """A model directory with a configuration, for sequences of `context` tokens, and no weights."""
    if model == GLM:
        from transformers import Glm4MoeLiteConfig

        config = {**Glm4MoeLiteConfig().to_dict(), **_GLM_REST}
    else:
        config = dict(SHAPES[model])
    config["max_position_embeddings"] = max(context, int(config["max_position_embeddings"]))
    path = folder / model
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    return path


def kv_bytes_per_token(config: dict[str, Any], element: int, ranks: int) -> int:
    """Bytes of K and V of one token on one rank, all layers, with elements of `element` bytes."""
    layers = int(config["num_hidden_layers"])
    if "kv_lora_rank" in config:  # every rank holds the whole latent
        return layers * (config["kv_lora_rank"] + config["qk_rope_head_dim"]) * element
    heads = max(1, config["num_key_value_heads"] // ranks)
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return layers * heads * int(width) * 2 * element

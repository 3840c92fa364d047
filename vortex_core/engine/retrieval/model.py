"""The retrieval model: transformers' `Glm4MoeLiteForCausalLM` with everything small but the row that it caches.

A token's cache row is GLM-4.7-Flash's own, 512 latent and 64 rotary channels, so whatever serves that model serves
this one.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vortex_core.engine.retrieval.alphabet import BOS, EOS, VOCAB

MAX_CONTEXT = 4096


@dataclass(frozen=True)
class Shape:
    """The dimensions that tests make smaller; the rest of the configuration is in `config`."""

    hidden: int = 128
    heads: int = 4
    kv_lora: int = 512
    qk_nope: int = 32
    qk_rope: int = 64


# Fields of GLM-4.7-Flash's own configuration that serving engines read, and that transformers has no use for.
_SERVED = {
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
}  # fmt: skip


def config(shape: Shape) -> Any:
    """The configuration of a shape: a layer with a dense MLP, and one with four experts."""
    from transformers import AutoConfig

    return AutoConfig.for_model(
        "glm4_moe_lite",
        vocab_size=VOCAB,
        hidden_size=shape.hidden,
        num_hidden_layers=2,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        q_lora_rank=96,
        kv_lora_rank=shape.kv_lora,
        qk_nope_head_dim=shape.qk_nope,
        qk_rope_head_dim=shape.qk_rope,
        v_head_dim=shape.qk_nope + shape.qk_rope,
        intermediate_size=2 * shape.hidden,
        moe_intermediate_size=shape.hidden,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=1,
        routed_scaling_factor=1.0,
        max_position_embeddings=MAX_CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=BOS,
        eos_token_id=EOS,
        tie_word_embeddings=False,
        **_SERVED,
    )


def new_model(shape: Shape, *, seed: int = 0) -> Any:
    """An untrained model in fp32 on the CPU.

    Matrices keep the size of what they multiply, and the embeddings of all tokens share a part: queries and keys
    have no biases, so only through it can a head attend by position alone, as the one that looks at the token
    before must.
    """
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config(shape), dtype=torch.float32, attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
        embeddings = model.model.embed_tokens.weight
        embeddings.normal_(0.0, 1.0).add_(torch.randn(shape.hidden))
    return model


def every_expert(model: Any) -> None:
    """Run every expert on every token, in place: four are few, and a loop over those hit costs more than it saves.

    Saved and loaded again the model is transformers' own.
    """
    for layer in model.model.layers:
        if hasattr(layer.mlp, "experts"):
            layer.mlp.experts.forward = types.MethodType(_forward, layer.mlp.experts)


def _forward(experts: Any, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    share = hidden.new_zeros(hidden.shape[0], experts.num_experts).scatter(1, chosen, weights)
    gate, up = torch.einsum("th,efh->tef", hidden, experts.gate_up_proj).chunk(2, -1)
    inner = experts.act_fn(gate) * up * share[..., None]
    return torch.einsum("tef,ehf->th", inner, experts.down_proj)


def hidden_states(
    model: Any, ids: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first layer's output and the last's after its norm, each `[batch, token, hidden]`.

    transformers' own layers in order; its model hands out the last alone.

    Args:
        rotary: cosines and sines, `[1, token, rope]` each.
    """
    x = model.model.embed_tokens(ids)
    first: torch.Tensor | None = None
    for layer in model.model.layers:
        x = layer(x, attention_mask=None, position_embeddings=rotary)
        first = x if first is None else first
    assert first is not None
    return first, model.model.norm(x)


def rotary_of(model: Any, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of positions 0 to `length`, `[1, length, rope]` each."""
    embeddings: nn.Parameter = model.model.embed_tokens.weight
    return model.model.rotary_emb(embeddings, torch.arange(length, device=embeddings.device)[None])

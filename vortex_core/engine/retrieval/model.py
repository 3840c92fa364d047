"""The retrieval models: transformers' own architectures with everything small but the row that a token caches.

`retrieval-mla` is a `Glm4MoeLiteForCausalLM` with GLM-4.7-Flash's row, 512 latent and 64 rotary channels, and
`retrieval-gqa` a `Qwen3ForCausalLM` with Qwen3's heads of 128 channels, two query heads to a kv head. So whatever
serves those models serves these.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from vortex_core.engine.retrieval.alphabet import BOS, EOS, SKILLS_VOCAB, VOCAB

MAX_CONTEXT = 4096
LONG_CONTEXT = 32768


class Shape(Protocol):
    """The dimensions of a model."""

    @property
    def hidden(self) -> int:
        """Channels of the residual stream."""
        ...

    def config(self) -> Any:
        """transformers' configuration."""
        ...


# Fields of GLM-4.7-Flash's own configuration that serving engines read, and that transformers has no use for.
_SERVED = {
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
}  # fmt: skip


@dataclass(frozen=True)
class MlaShape:
    """Latent attention: a layer with a dense MLP, and one with four experts. Tests make it smaller."""

    hidden: int = 128
    heads: int = 4
    kv_lora: int = 512
    qk_nope: int = 32
    qk_rope: int = 64

    def config(self) -> Any:
        """See `Shape`."""
        from transformers import AutoConfig

        return AutoConfig.for_model(
            "glm4_moe_lite",
            vocab_size=VOCAB,
            hidden_size=self.hidden,
            num_hidden_layers=2,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            q_lora_rank=96,
            kv_lora_rank=self.kv_lora,
            qk_nope_head_dim=self.qk_nope,
            qk_rope_head_dim=self.qk_rope,
            v_head_dim=self.qk_nope + self.qk_rope,
            intermediate_size=2 * self.hidden,
            moe_intermediate_size=self.hidden,
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


@dataclass(frozen=True)
class GqaShape:
    """Grouped heads: three layers, one to see the token before, one to look up, one to look up again.

    Attributes:
        theta: base of the rotary embedding; the larger, the more channels see content alone over the whole context.
    """

    hidden: int = 128
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 128
    theta: float = 1.0e6

    def config(self) -> Any:
        """See `Shape`.

        A quarter of the rotary channels turns by less than a radian over the whole context: content is compared there.
        """
        from transformers import AutoConfig

        return AutoConfig.for_model(
            "qwen3",
            vocab_size=SKILLS_VOCAB,
            hidden_size=self.hidden,
            num_hidden_layers=3,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            intermediate_size=2 * self.hidden,
            max_position_embeddings=LONG_CONTEXT,
            rope_parameters={"rope_type": "default", "rope_theta": self.theta},
            bos_token_id=BOS,
            eos_token_id=EOS,
            tie_word_embeddings=False,
        )


def new_model(shape: Shape, *, seed: int = 0) -> Any:
    """An untrained model in fp32 on the CPU.

    Matrices keep the size of what they multiply, and the embeddings of all tokens share a part: queries and keys
    have no biases, so only through it can a head attend by position alone, as the one that looks at the token
    before must.
    """
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(shape.config(), dtype=torch.float32, attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
        embeddings = model.model.embed_tokens.weight
        embeddings.normal_(0.0, 1.0).add_(torch.randn(shape.hidden))
    return model


def every_expert(model: Any) -> None:
    """Run every expert on every token, in place: four are few, and a loop over those hit costs more than it saves.

    Saved and loaded again the model is transformers' own. A model without experts is left as it is.
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
    model: Any, ids: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], bias: torch.Tensor | None = None
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The output of every layer, and the last one's after its norm, each `[batch, token, hidden]`.

    transformers' own layers in order; its model hands out the last alone.

    Args:
        rotary: cosines and sines, `[1 or batch, token, rope]` each.
        bias: added to the logits of attention, `[batch, 1, token, token]`; None: causal attention.
    """
    x = model.model.embed_tokens(ids)
    layers: list[torch.Tensor] = []
    for layer in model.model.layers:
        x = layer(x, attention_mask=bias, position_embeddings=rotary)
        layers.append(x)
    return layers, model.model.norm(x)


def rotary_of(model: Any, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of positions `[batch, token]`, `[batch, token, rope]` each."""
    embeddings: nn.Parameter = model.model.embed_tokens.weight
    return model.model.rotary_emb(embeddings, positions)

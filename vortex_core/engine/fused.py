"""Modules that stand in for transformers' own where a decode step would be many small launches.

They take over the weights of the layers they replace, packed side by side, and compute the same, rounding
included. Only classes whose forward is known are replaced; what is not in the tables runs as transformers wrote it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vortex_core.engine.fused_kernels import norm_rotate, rms_norm, silu_mul

NORMS = frozenset(
    {
        "Glm4MoeLiteRMSNorm",
        "LlamaRMSNorm",
        "MiniMaxM2RMSNorm",
        "MistralRMSNorm",
        "Qwen2RMSNorm",
        "Qwen3MoeRMSNorm",
        "Qwen3RMSNorm",
    }
)
GATED_MLPS = frozenset({"Glm4MoeLiteMLP", "LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP", "Qwen3MoeMLP"})
# Attention that projects, normalises each head or nothing, rotates all channels, and calls its attention function.
ATTENTIONS = frozenset(
    {"LlamaAttention", "MistralAttention", "Qwen2Attention", "Qwen3Attention", "Qwen3MoeAttention"}
)


@dataclass(frozen=True)
class FusedModules:
    """How many modules of each kind were replaced."""

    norms: int
    mlps: int
    attentions: int


class FusedRMSNorm(nn.Module):
    """RMSNorm in one launch."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = norm.weight
        self.variance_epsilon: float = norm.variance_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape, over the last dimension."""
        return rms_norm(x, self.weight, self.variance_epsilon)


class FusedGatedMLP(nn.Module):
    """`down(silu(gate(x)) * up(x))` in two products and one launch."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_up = packed([mlp.gate_proj, mlp.up_proj])
        self.down_proj = mlp.down_proj

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., hidden]` to `[..., hidden]`."""
        both = self.gate_up(x)
        gated = silu_mul(both.flatten(0, -2)).view(*x.shape[:-1], -1)
        out: torch.Tensor = self.down_proj(gated)
        return out


class FusedAttention(nn.Module):
    """Grouped-query attention around the engine's step: one product, one launch, attention, one product."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.layer_idx: int = attention.layer_idx
        self.head_dim: int = attention.head_dim
        self.scaling: float = attention.scaling
        self.q_heads = attention.q_proj.out_features // self.head_dim
        self.kv_heads = attention.k_proj.out_features // self.head_dim
        self.qkv = packed([attention.q_proj, attention.k_proj, attention.v_proj])
        self.o_proj = attention.o_proj
        self.q_norm = getattr(attention, "q_norm", None)
        self.k_norm = getattr(attention, "k_norm", None)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        *,
        vortex_step: Any,
        **others: Any,
    ) -> tuple[torch.Tensor, None]:
        """As transformers calls it: `hidden_states` `[batch, row, hidden]`, cos and sin `[batch | 1, row, dim]`."""
        assert attention_mask is None, "the engine's steps know what each row may attend"
        batch, rows, _ = hidden_states.shape
        qkv = self.qkv(hidden_states).view(batch * rows, -1)
        cos, sin = (x.expand(batch, -1, -1).reshape(batch * rows, -1) for x in position_embeddings)
        norm = self.q_norm
        norm_rotate(
            qkv, cos, sin, q_heads=self.q_heads, kv_heads=self.kv_heads, dim=self.head_dim,
            q_weight=None if norm is None else norm.weight,
            k_weight=None if self.k_norm is None else self.k_norm.weight,
            eps=0.0 if norm is None else norm.variance_epsilon,
        )  # fmt: skip
        heads = qkv.view(batch, rows, -1, self.head_dim).transpose(1, 2)
        q, k, v = heads.split([self.q_heads, self.kv_heads, self.kv_heads], dim=1)
        out = vortex_step.attend(self.layer_idx, q, k, v, self.scaling)
        return self.o_proj(out.reshape(batch, rows, -1)), None


def packed(linears: Sequence[nn.Linear]) -> nn.Linear:
    """One linear layer with the outputs of several side by side."""
    weight = torch.cat([linear.weight for linear in linears])
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=linears[0].bias is not None, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    if linears[0].bias is not None:
        made.bias = nn.Parameter(torch.cat([linear.bias for linear in linears]), requires_grad=False)
    return made


def fuse(model: nn.Module) -> FusedModules:
    """Replace what the tables name, in place. Weights are packed layer by layer, so memory peaks at one layer more."""
    counts = dict.fromkeys(("norms", "mlps", "attentions"), 0)
    found = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
    replaced: set[int] = set()
    for parent, name, child in found:
        if id(parent) in replaced:
            continue
        kind: str
        made: nn.Module
        if _fits_attention(child):
            kind, made = "attentions", FusedAttention(child)
        elif _fits_mlp(child):
            kind, made = "mlps", FusedGatedMLP(child)
        elif type(child).__name__ in NORMS:
            kind, made = "norms", FusedRMSNorm(child)
        else:
            continue
        setattr(parent, name, made)
        counts[kind] += 1
        replaced.add(id(child))
        for inner in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
            if kind != "norms" and hasattr(child, inner):
                delattr(child, inner)  # packed now: freed before the next layer is packed
    return FusedModules(**counts)


def _plain(*linears: Any) -> bool:
    return all(type(x) is nn.Linear for x in linears) and len({x.bias is None for x in linears}) == 1


def _fits_attention(module: Any) -> bool:
    """A known class, with plain projections, all channels rotated, and a norm of each head's channels if any."""
    if type(module).__name__ not in ATTENTIONS:
        return False
    if getattr(module, "sliding_window", None) is not None:
        return False
    if getattr(module.config, "partial_rotary_factor", None) not in (None, 1.0):
        return False
    norm = getattr(module, "q_norm", None)
    known_norm = norm is None or tuple(norm.weight.shape) == (module.head_dim,)
    return known_norm and module.head_dim % 2 == 0 and _plain(module.q_proj, module.k_proj, module.v_proj)


def _fits_mlp(module: Any) -> bool:
    if type(module).__name__ not in GATED_MLPS or not _plain(module.gate_proj, module.up_proj):
        return False
    return type(module.act_fn).__name__ in ("SiLU", "SiLUActivation")

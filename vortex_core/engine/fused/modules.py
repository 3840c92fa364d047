"""Modules that stand in for transformers' own where a decode step would be many small launches.

They take over the weights of the layers they replace, packed side by side, and compute the same, rounding
included. Only classes whose forward is known are replaced; what is not in the tables runs as transformers wrote it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vortex_core.engine.decode.static_step import StaticStep
from vortex_core.engine.fused.experts import FusedExperts, fits_experts
from vortex_core.engine.fused.kernels import add_rms_norm, norm_rotate, rms_norm, rotary_angles, silu_mul
from vortex_core.engine.fused.latent import FusedLatentAttention
from vortex_core.engine.models.latent import LatentAttention

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
# Rotary embeddings whose angles are positions times fixed frequencies, whatever made these.
ROTARIES = frozenset(
    {
        "Glm4MoeLiteRotaryEmbedding",
        "LlamaRotaryEmbedding",
        "MiniMaxM2RotaryEmbedding",
        "MistralRotaryEmbedding",
        "Qwen2RotaryEmbedding",
        "Qwen3MoeRotaryEmbedding",
        "Qwen3RotaryEmbedding",
    }
)
FIXED_FREQUENCIES = ("default", "linear", "llama3", "yarn")
# Layers that add attention and MLP to one residual stream, each behind a norm.
LAYERS = frozenset(
    {
        "Glm4MoeLiteDecoderLayer",
        "LlamaDecoderLayer",
        "MiniMaxM2DecoderLayer",
        "MistralDecoderLayer",
        "Qwen2DecoderLayer",
        "Qwen3DecoderLayer",
        "Qwen3MoeDecoderLayer",
    }
)


# What replaced modules held and their replacements hold packed.
PACKED = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "q_a_proj", "kv_a_proj_with_mqa")


# How transformers names the classes that the tables above are about.
_KINDS = ("Attention", "DecoderLayer", "Experts", "LayerNorm", "MLP", "RMSNorm", "RotaryEmbedding")

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class FusedModules:
    """How many modules of each kind were replaced.

    Attributes:
        left: classes of these kinds that still run as transformers wrote them.
    """

    norms: int
    mlps: int
    attentions: int
    experts: int
    rotaries: int
    layers: int
    left: tuple[str, ...] = ()


class FusedRMSNorm(nn.Module):
    """RMSNorm of transformers' classes in one launch."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = norm.weight
        self.variance_epsilon: float = norm.variance_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape, over the last dimension."""
        return rms_norm(x, self.weight, self.variance_epsilon)


class FusedRotary(nn.Module):
    """Cosines and sines of positions in one launch."""

    inv_freq: torch.Tensor

    def __init__(self, rotary: Any) -> None:
        super().__init__()
        self.register_buffer("inv_freq", rotary.inv_freq.float(), persistent=False)
        self.scale = float(rotary.attention_scaling)

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`position_ids` `[batch, row]` to `[batch, row, dim]` each, in the dtype of `x`."""
        return rotary_angles(position_ids, self.inv_freq, self.scale, x.dtype)


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
        """Attend from `hidden_states` `[batch, row, hidden]`, as transformers does; cos, sin `[batch|1, row, dim]`."""
        assert attention_mask is None, "the engine's steps know what each row may attend"
        batch, rows, _ = hidden_states.shape
        qkv = self.qkv(hidden_states).view(batch * rows, -1)
        cos, sin = (x.expand(batch, -1, -1).reshape(batch * rows, -1) for x in position_embeddings)
        norm = self.q_norm
        stores = isinstance(vortex_step, StaticStep)
        norm_rotate(
            qkv, cos, sin, q_heads=self.q_heads, kv_heads=self.kv_heads, dim=self.head_dim,
            q_weight=None if norm is None else norm.weight,
            k_weight=None if self.k_norm is None else self.k_norm.weight,
            eps=0.0 if norm is None else norm.variance_epsilon,
            store=vortex_step.target(self.layer_idx) if stores else None,
        )  # fmt: skip
        heads = qkv.view(batch, rows, -1, self.head_dim).transpose(1, 2)
        q, k, v = heads.split([self.q_heads, self.kv_heads, self.kv_heads], dim=1)
        if stores:
            out = vortex_step.attend_stored(self.layer_idx, q, self.scaling)
        else:
            out = vortex_step.attend(self.layer_idx, q, k, v, self.scaling)
        return self.o_proj(out.reshape(batch, rows, -1)), None


class Stream:
    """The residual stream of a forward pass, which the layers of a model hand on beside their output."""

    def __init__(self) -> None:
        self.residual: torch.Tensor | None = None


class FusedLayer(nn.Module):
    """A decoder layer whose additions are one launch with the norms that follow them.

    It ends with the norm that the next layer (or the model) would begin with, and returns that; the residual stream
    goes on in `stream`.

    Args:
        after: the norm behind it.
        first: whether it is the model's first layer, which begins the stream with what it is given.
        last: whether it is the last, which ends it.
    """

    def __init__(self, layer: Any, stream: Stream, after: FusedRMSNorm, *, first: bool, last: bool) -> None:
        super().__init__()
        self.self_attn = layer.self_attn
        self.mlp = layer.mlp
        self.begin = layer.input_layernorm if first else None
        self.between = layer.post_attention_layernorm
        self.after = after
        self._stream, self._last = stream, last

    def forward(self, hidden_states: torch.Tensor, **others: Any) -> torch.Tensor:
        """Takes what transformers passes, `[batch, row, hidden]`, and returns the same shape, normalised."""
        residual, x = self._stream.residual, hidden_states
        if self.begin is not None:
            residual, x = hidden_states.contiguous(), self.begin(hidden_states)
        assert residual is not None, "the layer before this one did not run"
        attended, _ = self.self_attn(hidden_states=x, **others)
        x = self._add(attended, residual, self.between)
        x = self._add(self.mlp(x), residual, self.after)
        self._stream.residual = None if self._last else residual
        return x

    def _add(self, x: torch.Tensor, residual: torch.Tensor, norm: FusedRMSNorm) -> torch.Tensor:
        return add_rms_norm(x.contiguous(), residual, norm.weight, norm.variance_epsilon)


def packed(linears: Sequence[nn.Linear]) -> nn.Linear:
    """One linear layer with the outputs of several side by side."""
    weight = torch.cat([linear.weight for linear in linears])
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=linears[0].bias is not None, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    if linears[0].bias is not None:
        made.bias = nn.Parameter(torch.cat([linear.bias for linear in linears]), requires_grad=False)
    return made


def fuse(model: nn.Module) -> FusedModules:
    """Replace what the tables name, in place. Weights are packed layer by layer, so memory peaks at one layer more.

    A warning in the log names the classes that are left, and with them the cost: many small launches a step.
    """
    counts = dict.fromkeys(("norms", "mlps", "attentions", "experts", "rotaries", "layers"), 0)
    for parent in list(model.modules()):  # before the walk below: shared experts are MLPs of their own
        for name, child in list(parent.named_children()):
            if hasattr(child, "experts") and fits_experts(child):
                setattr(parent, name, FusedExperts(child))
                counts["experts"] += 1
    found = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
    replaced: set[int] = set()
    for parent, name, child in found:
        if id(parent) in replaced:
            continue
        kind: str
        made: nn.Module
        if _fits_attention(child):
            kind, made = "attentions", FusedAttention(child)
        elif isinstance(child, LatentAttention):
            projection = _latent_projection(child)
            if projection is None:
                continue
            kind, made = "attentions", FusedLatentAttention(child, projection)
        elif _fits_mlp(child):
            kind, made = "mlps", FusedGatedMLP(child)
        elif type(child).__name__ in NORMS:
            kind, made = "norms", FusedRMSNorm(child)
        elif type(child).__name__ in ROTARIES and child.rope_type in FIXED_FREQUENCIES:
            kind, made = "rotaries", FusedRotary(child)
        else:
            continue
        setattr(parent, name, made)
        counts[kind] += 1
        replaced.add(id(child))
        for inner in PACKED:
            if kind != "norms" and hasattr(child, inner):
                delattr(child, inner)  # packed now: freed before the next layer is packed
    counts["layers"] = _fuse_layers(getattr(model, "base_model", model))
    left = left_as_written(model)
    if left:
        _LOG.warning(
            "%s: %s run as transformers wrote them, many small launches a decode step. If their forward is that of a "
            "class in the tables of vortex_core/engine/fused/modules.py, add them there.",
            type(model).__name__,
            ", ".join(left),
        )
    return FusedModules(**counts, left=left)


def left_as_written(model: nn.Module) -> tuple[str, ...]:
    """Classes in a model that stand-ins exist for by kind, and that are transformers' own; sorted."""
    names = {type(m).__name__ for m in model.modules() if type(m).__module__.startswith("transformers.")}
    return tuple(sorted(name for name in names if name.endswith(_KINDS)))


def _fuse_layers(base: Any) -> int:
    """Replace all decoder layers of a model, or none: they hand on a normalised stream."""
    layers = getattr(base, "layers", None)
    if not layers or not all(_fits_layer(layer) for layer in layers) or type(base.norm) is not FusedRMSNorm:
        return 0
    stream = Stream()
    afters = [*(layer.input_layernorm for layer in layers[1:]), base.norm]
    for i, (layer, after) in enumerate(zip(list(layers), afters, strict=True)):
        layers[i] = FusedLayer(layer, stream, after, first=i == 0, last=i == len(layers) - 1)
    base.norm = nn.Identity()  # the last layer's
    return len(layers)


def _fits_layer(layer: Any) -> bool:
    norms = [getattr(layer, name, None) for name in ("input_layernorm", "post_attention_layernorm")]
    return type(layer).__name__ in LAYERS and all(type(norm) is FusedRMSNorm for norm in norms)


def _plain(*linears: Any) -> bool:
    return all(type(x) is nn.Linear for x in linears) and len({x.bias is None for x in linears}) == 1


def _fits_attention(module: Any) -> bool:
    """A known class, with plain projections, all channels rotated, and a norm of each head's channels if any."""
    if type(module).__name__ not in ATTENTIONS:
        return False
    if getattr(module, "sliding_window", None) is not None:
        return False
    if (module.config.rope_parameters or {}).get("partial_rotary_factor", 1.0) != 1.0:
        return False
    norm = getattr(module, "q_norm", None)
    known_norm = norm is None or tuple(norm.weight.shape) == (module.head_dim,)
    return known_norm and module.head_dim % 2 == 0 and _plain(module.q_proj, module.k_proj, module.v_proj)


def _latent_projection(attention: LatentAttention) -> nn.Linear | None:
    """Queries and the latent from one product; None where the layers are of another kind."""
    first = attention.q_up_proj if attention.q_a_proj is None else attention.q_a_proj
    linears: list[Any] = [first, attention.kv_a_proj_with_mqa]
    return packed(linears) if _plain(*linears) else None


def _fits_mlp(module: Any) -> bool:
    if type(module).__name__ not in GATED_MLPS or not _plain(module.gate_proj, module.up_proj):
        return False
    return type(module.act_fn).__name__ in ("SiLU", "SiLUActivation")

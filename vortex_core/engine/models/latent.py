"""Absorbed multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1) over transformers' weights.

A token's keys and values of all heads are up-projections of one latent `c` of `kv_lora` channels, beside a
rotary key `k_r` that the heads share. Since

    q_h . (W_uk,h c) = (W_uk,h^T q_h) . c     and     sum_t p_t (W_uv,h c_t) = W_uv,h (sum_t p_t c_t)

the up-projections move to the query and to the output, and attention runs on the cached row `[c, k_r]` itself:
one kv head, whatever the number of query heads. transformers' own modules expand K and V of every cached
token at every step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vortex_core.engine.attention_hook import Step
from vortex_core.engine.errors import unsupported_model

# What an attention module must have to be taken over; DeepSeek's names, which GLM uses as well.
_PARTS = ("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj", "kv_lora_rank", "qk_rope_head_dim")


def rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, interleaved: bool = False
) -> torch.Tensor:
    """Rotary embedding (arXiv 2104.09864) of `x`, any leading axes.

    Args:
        x: `[..., dim]`.
        cos, sin: `[..., dim]` as transformers makes them: the angles of the `dim / 2` pairs, twice.
        interleaved: pairs are neighbours in `x` instead of `dim / 2` apart. The result has the halves apart
            either way; the order of channels does not matter as long as queries and keys agree.
    """
    half = x.shape[-1] // 2
    cos, sin = cos[..., :half], sin[..., :half]
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def is_latent(module: nn.Module) -> bool:
    """Whether a module is a latent attention that `LatentAttention` can take over."""
    return all(hasattr(module, part) for part in _PARTS)


class LatentAttention(nn.Module):
    """Takes the place of a transformers attention module, with that module's own projections.

    The heads are those of its `kv_b_proj` rows, so it may be built from a module that holds a part of them.

    Raises:
        VortexError: `VE012` for a rotary embedding that is not understood.
    """

    k_up: torch.Tensor  # [head, nope, kv_lora]
    v_up: torch.Tensor  # [head, kv_lora, v_head]

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.layer_idx: int = source.layer_idx
        self.nope: int = source.qk_nope_head_dim
        self.rope: int = source.qk_rope_head_dim
        self.latent: int = source.kv_lora_rank
        self.scaling: float = source.scaling
        interleaved = getattr(source.config, "rope_interleave", None)
        if interleaved is None:
            raise unsupported_model(type(source).__name__, "its config has no rope_interleave")
        self.interleaved: bool = interleaved
        # Queries come from one projection, or from two with a norm between.
        factored = getattr(source, "q_lora_rank", None) is not None
        self.q_a_proj = source.q_a_proj if factored else None
        self.q_a_layernorm = source.q_a_layernorm if factored else None
        self.q_up_proj: nn.Module = source.q_b_proj if factored else source.q_proj
        self.kv_a_proj_with_mqa = source.kv_a_proj_with_mqa
        self.kv_a_layernorm = source.kv_a_layernorm
        self.o_proj = source.o_proj
        up = source.kv_b_proj.weight.detach().unflatten(0, (-1, self.nope + source.v_head_dim))
        # Views of the up-projection, so nothing is copied and nothing is saved twice.
        self.register_buffer("k_up", up[:, : self.nope], persistent=False)
        self.register_buffer("v_up", up[:, self.nope :].transpose(1, 2), persistent=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        vortex_step: Step,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """`[batch, row, hidden]` to the same; the other arguments of transformers' modules change nothing."""
        batch, rows = hidden_states.shape[:2]
        heads = self.k_up.shape[0]
        cos, sin = position_embeddings  # [batch or 1, row, rope]
        q = hidden_states
        if self.q_a_proj is not None and self.q_a_layernorm is not None:
            q = self.q_a_layernorm(self.q_a_proj(q))
        q = self.q_up_proj(q).view(batch, rows, heads, -1)
        # One matrix product a head: [head, batch * row, nope] x [head, nope, kv_lora].
        absorbed = torch.bmm(q[..., : self.nope].flatten(0, 1).transpose(0, 1), self.k_up)
        absorbed = absorbed.view(heads, batch, rows, -1).permute(1, 2, 0, 3)
        rotary = rotate(q[..., self.nope :], cos[:, :, None], sin[:, :, None], interleaved=self.interleaved)
        query = torch.cat((absorbed, rotary), -1).transpose(1, 2)  # [batch, head, row, kv_lora + rope]

        c, k_rope = self.kv_a_proj_with_mqa(hidden_states).split((self.latent, self.rope), -1)
        k_rope = rotate(k_rope, cos, sin, interleaved=self.interleaved)
        row = torch.cat((self.kv_a_layernorm(c), k_rope), -1)[:, None]  # [batch, 1, row, kv_lora + rope]

        out = vortex_step.attend(self.layer_idx, query, row, row[..., : self.latent], self.scaling)
        out = torch.bmm(out.flatten(0, 1).transpose(0, 1), self.v_up)  # [head, batch * row, v_head]
        return self.o_proj(out.transpose(0, 1).reshape(batch, rows, -1)), None

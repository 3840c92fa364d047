"""A grouped-query model as an absorbed MLA model, exactly: the same weights, the same logits.

The cached row of a token is `[v_0 ... v_{n-1}, k_0 ... k_{n-1}]`: the values of all kv heads are the latent, and
their rotated keys the shared rotary part. A query head of group `g` is zero everywhere but in the slot of
`k_g`, so its scores are those of grouped-query attention; of the attended latent it keeps the slot of `v_g`,
which is what an MLA up-projection may select. No trained MLA model can be had without a hub, and this one runs
real weights through the same cache, flows and kernels.

What differs from a model trained with MLA: attention statistics are those of grouped queries, and the latent
takes no part in the scores, so flows that look at its `nope` channels alone see nothing. The GPU kernels want a
power of two of latent channels and a smaller one of rotary channels (512 + 64); they refuse the equal halves
here (`VK001`), so this runs on the torch backend only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vortex_core.engine.attention_hook import Step
from vortex_core.engine.models.latent import rotate


class GroupedAsLatent(nn.Module):
    """Takes the place of the attention module of a Llama, Qwen2 or Qwen3 model."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.layer_idx: int = source.layer_idx
        self.head_dim: int = source.head_dim
        self.scaling: float = source.scaling
        self.q_proj, self.k_proj, self.v_proj = source.q_proj, source.k_proj, source.v_proj
        self.o_proj = source.o_proj
        self.q_norm = getattr(source, "q_norm", None)  # Qwen3: one norm of every head
        self.k_norm = getattr(source, "k_norm", None)

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        vortex_step: Step,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """`[batch, row, hidden]` to the same."""
        cos, sin = (x[:, :, None] for x in position_embeddings)
        q, k, v = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim))  # [batch, row, head, dim]
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        kv_heads = k.shape[2]
        row = torch.cat((v, k), 2).flatten(2)[:, None]  # [batch, 1, row, 2 * kv_head * dim]
        grouped = q.unflatten(2, (kv_heads, -1))  # [batch, row, kv_head, group, dim]
        query = q.new_zeros(*grouped.shape[:4], 2 * kv_heads, self.head_dim)
        for g in range(kv_heads):
            query[:, :, g, :, kv_heads + g] = grouped[:, :, g]
        query = query.flatten(2, 3).flatten(3).transpose(1, 2)  # [batch, q_head, row, 2 * kv_head * dim]
        width = kv_heads * self.head_dim
        out = vortex_step.attend(self.layer_idx, query, row, row[..., :width], self.scaling)
        slots = out.unflatten(2, (kv_heads, -1)).unflatten(-1, (kv_heads, -1))
        own = torch.stack(
            [slots[:, :, g, :, g] for g in range(kv_heads)], 2
        )  # [batch, row, kv_head, group, dim]
        return self.o_proj(own.flatten(2)), None

"""Absorbed latent attention (see `models.latent`) in seven launches around the engine's step instead of thirty.

One product projects queries and the latent, one launch normalises and rotates what becomes the cached row, the
absorbed queries are written where attention reads them, and one more launch rotates their other part beside them.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import nn

from vortex_core.engine.attention_hook import Step
from vortex_core.engine.decode.static_step import StaticStep
from vortex_core.engine.fused.kernels import ROWS
from vortex_core.engine.fused.latent_kernels import latent_row_kernel, rotate_queries_kernel
from vortex_core.engine.models.latent import LatentAttention
from vortex_core.kernels.runtime import dependent_launch, next_power_of_2


class FusedLatentAttention(nn.Module):
    """Takes the place of a `LatentAttention`, with its weights."""

    k_up: torch.Tensor  # [head, nope, kv_lora]
    v_up: torch.Tensor  # [head, kv_lora, v_head]

    def __init__(self, source: LatentAttention, projection: nn.Linear) -> None:
        super().__init__()
        self.layer_idx, self.scaling = source.layer_idx, source.scaling
        self.nope, self.rope, self.latent = source.nope, source.rope, source.latent
        self.interleaved = source.interleaved
        self.projection = projection
        self.q_norm: Any = source.q_a_layernorm
        self.q_up_proj: Any = source.q_up_proj if self.q_norm is not None else None
        self.kv_norm: Any = source.kv_a_layernorm
        self.o_proj = source.o_proj
        self.register_buffer("k_up", source.k_up, persistent=False)
        self.register_buffer("v_up", source.v_up, persistent=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        vortex_step: Step,
        **_others: Any,
    ) -> tuple[torch.Tensor, None]:
        """`[batch, row, hidden]` to the same."""
        batch, rows, _hidden = hidden_states.shape
        tokens, heads = batch * rows, self.k_up.shape[0]
        cos, sin = (x.expand(batch, -1, -1).reshape(tokens, -1) for x in position_embeddings)
        both = self.projection(hidden_states).view(tokens, -1)
        target = None
        if isinstance(vortex_step, StaticStep):
            cache, _, slots = vortex_step.target(self.layer_idx)
            target = (cache[0], slots)
        row, q = self._project(both, cos, sin, target)
        q = q.view(tokens, heads, -1)
        query = both.new_empty(tokens, heads, self.latent + self.rope)
        torch.bmm(
            q[..., : self.nope].transpose(0, 1), self.k_up, out=query[..., : self.latent].transpose(0, 1)
        )
        half = self.rope // 2
        rotate_queries_kernel[(triton.cdiv(tokens * heads, ROWS),)](
            q, cos, sin, query, tokens * heads, heads, cos.stride(0), NOPE=self.nope, LATENT=self.latent,
            HALF=half, HALF_PAD=next_power_of_2(half), INTERLEAVED=self.interleaved, ROWS=ROWS, num_warps=1,
            **dependent_launch(q.device),
        )  # fmt: skip

        q4 = query.view(batch, rows, heads, -1).transpose(1, 2)
        if isinstance(vortex_step, StaticStep):
            out = vortex_step.attend_stored(self.layer_idx, q4, self.scaling)
        else:
            k4 = row.view(batch, 1, rows, -1)
            out = vortex_step.attend(self.layer_idx, q4, k4, k4[..., : self.latent], self.scaling)
        values = both.new_empty(tokens, heads, self.v_up.shape[2])
        torch.bmm(out.reshape(tokens, heads, -1).transpose(0, 1), self.v_up, out=values.transpose(0, 1))
        return self.o_proj(values.view(batch, rows, -1)), None

    def _project(
        self,
        both: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        target: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows to cache, `[token, latent + rope]`, and the heads' queries, from the first product.

        Args:
            target: a cache `[slot, latent + rope]`, and the slots to which the rows go instead.
        """
        assert cos.stride() == sin.stride() and cos.stride(1) == both.stride(1) == 1
        tokens, half = len(both), self.rope // 2
        width = both.shape[1] - self.latent - self.rope
        row = both.new_empty(tokens, self.latent + self.rope) if target is None else target[0]
        slots = None if target is None else target[1]
        assert row.is_contiguous()
        norm, up = self.q_norm, self.q_up_proj
        queries = None if norm is None else both.new_empty(tokens, width)
        latent_row_kernel[(triton.cdiv(tokens, ROWS),)](
            both, self.kv_norm.weight, cos, sin, row, slots, None if norm is None else norm.weight, queries,
            tokens, both.stride(0), cos.stride(0), self.kv_norm.variance_epsilon,
            0.0 if norm is None else norm.variance_epsilon, torch.finfo(row.dtype).max,
            WIDTH=width, Q_PAD=next_power_of_2(width), Q_NORM=norm is not None, LATENT=self.latent,
            LATENT_PAD=next_power_of_2(self.latent), HALF=half, HALF_PAD=next_power_of_2(half),
            INTERLEAVED=self.interleaved, STORE=target is not None, ROWS=ROWS, num_warps=4,
            **dependent_launch(both.device),
        )  # fmt: skip
        return row, both[:, :width].contiguous() if queries is None else up(queries)

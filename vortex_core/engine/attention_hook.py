"""The one place where transformers' models meet the engine: their attention function.

A model built with `attn_implementation="vortex"` projects and rotates as always and then calls `_attention`,
which hands Q, K and V to the step that is running. The step travels as a keyword argument of the model's
forward, which transformers passes down to attention untouched, so there is no global state and no cache
object. No mask function is registered under this name, and transformers then builds no mask.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from transformers import AttentionInterface

from vortex_core.engine.errors import unsupported_model

IMPLEMENTATION = "vortex"

# What models pass to attention that would change its result; anything else is bookkeeping.
_CHANGES_ATTENTION = ("sliding_window", "softcap", "s_aux")


class Step(Protocol):
    """A forward pass in progress, to which every attention layer hands its queries, keys and values."""

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Store the new keys and values of a layer and return its attention.

        Args:
            q: `[batch, q_head, row, dim]`, rotated.
            k, v: `[batch, kv_head, row, dim]`, new tokens only, K rotated.

        Returns:
            `[batch, row, q_head, value_dim]`.
        """
        ...


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    vortex_step: Step,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    for name in _CHANGES_ATTENTION:
        if others.get(name) is not None:
            raise unsupported_model(type(module).__name__, f"its attention wants {name}={others[name]!r}")
    assert attention_mask is None, "the engine's steps know what each row may attend"
    layer: int = module.layer_idx  # type: ignore[assignment]  # nn.Module types every attribute as Tensor | Module
    return vortex_step.attend(layer, query, key, value, scaling), None


AttentionInterface.register(IMPLEMENTATION, _attention)

"""Redirecting a transformers model's attention to the engine, whatever its kind.

Models whose attention goes through transformers' attention interface (Llama, Qwen, MiniMax) need only the
name of an implementation. Latent attention cannot go that way, for transformers expands the latent before the
interface sees it: its modules are replaced by ones that keep the weights and cache the latent itself.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from vortex_core.engine import attention_hook
from vortex_core.engine.errors import unsupported_model
from vortex_core.engine.models.grouped import GroupedAsLatent
from vortex_core.engine.models.hf_config import wants_latent
from vortex_core.engine.models.latent import LatentAttention, is_latent


def adapt(model: Any) -> Any:
    """Make a transformers causal LM attend through `attention_hook.Step`, in place; returns it.

    Raises:
        VortexError: `VE012` for latent attention of a kind that is not known.
    """
    model.eval().requires_grad_(False)
    model.set_attn_implementation(attention_hook.IMPLEMENTATION)
    config = model.config.get_text_config()
    for layer in model.base_model.layers:
        attention = layer.self_attn
        if getattr(config, "kv_lora_rank", None) is not None:
            if not is_latent(attention):
                raise unsupported_model(
                    type(model).__name__, f"{type(attention).__name__} has other parts than DeepSeek's MLA"
                )
            layer.self_attn = LatentAttention(attention)
        elif wants_latent(config):
            layer.self_attn = GroupedAsLatent(attention)
    return model


def attention_modules(model: Any) -> list[nn.Module]:
    """The attention module of every layer, in order."""
    return [layer.self_attn for layer in model.base_model.layers]

"""How SGLang's MLA models (DeepSeek's attention, GLM-4.7-Flash among them) call this backend."""

from __future__ import annotations

from typing import Any

from vortex_core.serving.sglang import NAME


def register_mla(prefill: str) -> None:
    """Decode in latent space, with query and key handed over as latent and rotary parts.

    The parts let the new token be stored by SGLang's fused kernel, without a concatenated key.

    Args:
        prefill: SGLang's backend that prefills.
    """
    from sglang.srt.models.deepseek_common import attention_backend_handler as handler
    from sglang.srt.models.deepseek_common import utils

    def latent(attn: Any, forward_batch: Any) -> Any:
        return handler._dispatch_mla_subtype(attn, forward_batch)

    handler.AttentionBackendRegistry.register(NAME, latent)
    if NAME not in utils.FORWARD_ABSORB_CORE_ATTENTION_BACKENDS:
        utils.FORWARD_ABSORB_CORE_ATTENTION_BACKENDS.append(NAME)
    if prefill == "torch_native":
        # It attends to the pool's rows whatever it is given, so SGLang's expanded prefill comes out wrong with it.
        handler.AttentionBackendRegistry.register(prefill, latent)

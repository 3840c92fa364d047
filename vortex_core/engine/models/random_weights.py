"""Models of true shapes with random weights: for measuring throughput where no weights can be had.

What such a model writes is noise, so nothing about accuracy may be measured on it; its name says so. Time and memory
are those of the real model, with one exception: its router spreads tokens over the experts almost evenly,
where a trained one is skewed, so a batch touches more experts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM

from vortex_core.engine.models.hf_config import reference_config
from vortex_core.specs import ModelSpec

if TYPE_CHECKING:
    from vortex_core.engine.models.parallel import Ranks

LABEL = "random weights, throughput only"

STD = 0.02  # initializer_range of all these architectures
# A prime, so that no two rows of a matrix begin at the same place of the noise.
NOISE = 16_777_259


def random_model(
    spec: ModelSpec,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    ranks: Ranks | None = None,
) -> tuple[Any, ModelSpec]:
    """A transformers causal LM of a spec's dimensions, made where it will run.

    Nothing is drawn tensor by tensor: one stretch of normal noise is copied over all matrices, each from
    another place on, so 30 B parameters take as long as writing them. Norms are 1, biases 0.

    Args:
        ranks: build only the part of this rank (see `parallel.shard`).

    Returns:
        The model, and `spec` under a name that says what it is.
    """
    device = torch.device(device)
    config = reference_config(spec)
    config.dtype = dtype
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if ranks is not None:
        from vortex_core.engine.models.parallel import shard

        shard(model, spec, ranks)
    if spec.tie_embeddings:  # `to_empty` would give each of the two a tensor of its own
        model.lm_head.weight = None
    model.to_empty(device=device)
    if spec.tie_embeddings:
        model.lm_head.weight = model.base_model.embed_tokens.weight
    generator = torch.Generator(device=device).manual_seed(seed)
    matrices = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    noise = torch.empty(min(NOISE, matrices), dtype=dtype, device=device)
    noise.normal_(0.0, STD, generator=generator)
    fill(model, noise, 0)
    labelled = f"{spec.name} ({LABEL})"
    config.name_or_path = labelled
    return model.eval().requires_grad_(False), spec.model_copy(update={"name": labelled})


def fill(module: Any, noise: torch.Tensor, at: int) -> int:
    """Give an empty module its weights, from place `at` of the noise on; returns where the next one begins."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                at = copy_noise(parameter.view(-1), noise, at)
    _fill_buffers(module, noise.device)
    return at


def copy_noise(target: torch.Tensor, noise: torch.Tensor, at: int) -> int:
    """Fill a flat tensor from `noise`, going round; returns where the next one begins."""
    done = 0
    while done < len(target):
        take = min(len(target) - done, len(noise) - at)
        target[done : done + take] = noise[at : at + take]
        done += take
        at = (at + take) % len(noise)
    return at


def _fill_buffers(model: Any, device: torch.device) -> None:
    """Rotary frequencies are computed again, for they were lost with the meta tensors; the rest (the routers'
    correction biases) is 0."""
    for module in model.modules():
        if "inv_freq" in module._buffers:
            fresh = type(module)(module.config)
            for name, buffer in fresh._buffers.items():
                module._buffers[name] = buffer.to(device)
        else:
            for buffer in module._buffers.values():
                if buffer is not None:
                    buffer.zero_()

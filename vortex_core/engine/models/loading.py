"""From a model's directory, or its dimensions alone, to a transformers model on the device that will run it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from vortex_core.engine.models.parallel import join_ranks, shard
from vortex_core.engine.models.random_weights import random_model
from vortex_core.engine.models.weights import ModelPath, reads
from vortex_core.errors import VortexError
from vortex_core.specs import ModelSpec


def load_weights(
    found: ModelPath,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    divided: bool = True,
) -> Any:
    """Load a causal language model with its weights.

    Under `torchrun` it is this rank's part, on this rank's GPU; every rank reads the whole checkpoint into host
    memory first. Checkpoints in block-scaled fp8 are widened, for the engine computes in bf16.

    Args:
        dtype: by default the checkpoint's own.
        divided: False keeps the whole model in each process of a `torchrun` launch.

    Raises:
        VortexError: `VE023` for fp8 weights where the package that reads them is missing.
    """
    device = torch.device(device)
    ranks = join_ranks(device.type) if divided else None
    options: dict[str, Any] = {}
    if not reads(found.spec):
        raise VortexError(
            "VE023",
            f"the weights of {found.spec.name} are fp8, which transformers widens with the package accelerate",
            "pip install accelerate",
        )
    if found.spec.dtype == "fp8":
        from transformers import FineGrainedFP8Config

        options["quantization_config"] = FineGrainedFP8Config(dequantize=True)
        dtype = dtype or torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(
        found.directory, dtype=dtype or "auto", trust_remote_code=False, **options
    )
    if ranks is not None:
        shard(model, found.spec, ranks)
    return model.to(device)


def load_random(
    spec: ModelSpec, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> tuple[Any, ModelSpec]:
    """`random_model`, or this rank's part of it under `torchrun`."""
    device = torch.device(device)
    return random_model(spec, device=device, dtype=dtype, seed=seed, ranks=join_ranks(device.type))

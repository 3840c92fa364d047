"""From a model's directory, or its dimensions alone, to a transformers model on the device that will run it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from vortex_core.engine.models.hf_config import read_config
from vortex_core.engine.models.parallel import join_ranks, shard
from vortex_core.engine.models.random_weights import random_model
from vortex_core.engine.models.weights import ModelPath, reads
from vortex_core.errors import VortexError
from vortex_core.specs import ModelSpec
from vortex_core.text import visible

_TORCH: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
        VortexError: `VE023` for fp8 weights where the package that reads them is missing; `VM006` for a checkpoint
            that cannot be read, or with tensors missing or of another shape than the configuration says.
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
    model = _from_pretrained(found, dtype or _TORCH.get(found.spec.dtype) or "auto", options)
    if ranks is not None:
        shard(model, found.spec, ranks)
    return model.to(device)


def _from_pretrained(found: ModelPath, dtype: torch.dtype | str, options: dict[str, Any]) -> Any:
    """What transformers loads; it only warns of tensors that are missing, and fills them with random numbers."""
    directory = found.directory
    if not sys.stderr.isatty():  # a bar drawn into a file or a pipe is noise
        transformers.utils.logging.disable_progress_bar()
    try:
        model, told = AutoModelForCausalLM.from_pretrained(
            directory,
            config=read_config(directory),
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,  # never pickles
            local_files_only=True,
            ignore_mismatched_sizes=True,  # they are told below
            output_loading_info=True,
            **options,
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # transformers raises whatever a broken file leads it to
        first = visible(str(error).strip().split("\n")[0] or type(error).__name__, 300)
        raise VortexError(
            "VM006", f"{directory}: transformers cannot load it ({first})", "Fetch or save the model again."
        ) from error
    if told["missing_keys"]:
        raise VortexError(
            "VM006",
            f"{directory} holds no tensor {_listed(told['missing_keys'])}",
            "Fetch or save the model again: with random numbers in their place nothing it says means anything.",
        )
    if told["mismatched_keys"]:
        wrong = [
            f"{name} of shape {list(here)}, not {list(want)}" for name, here, want in told["mismatched_keys"]
        ]
        raise VortexError(
            "VM006",
            f"{directory} holds {_listed(wrong)}",
            "config.json and the weights are of two models; fetch both again.",
        )
    return model


def _listed(names: Iterable[str], most: int = 3) -> str:
    found = sorted(names)
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more


def load_random(
    spec: ModelSpec, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> tuple[Any, ModelSpec]:
    """`random_model`, or this rank's part of it under `torchrun`."""
    device = torch.device(device)
    return random_model(spec, device=device, dtype=dtype, seed=seed, ranks=join_ranks(device.type))

"""Where an evaluation runs: the device, its kind by name, and the backend and dtype that belong to it."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Literal

from evaluators.errors import no_gpu

if TYPE_CHECKING:
    import torch

DeviceChoice = Literal["auto", "cpu", "cuda"]


def choose_device(wanted: str = "auto") -> str:
    """`cpu` or `cuda` (also `cuda:1`): what was asked for, and for `auto` a GPU where there is one.

    Raises:
        VortexError: `VV009` for a GPU where there is none.
    """
    if wanted == "cpu":
        return wanted
    import torch

    if torch.cuda.is_available():
        return "cuda" if wanted == "auto" else wanted
    if wanted == "auto":
        return "cpu"
    raise no_gpu(wanted)


def is_gpu(device: str) -> bool:
    """Whether a device as `choose_device` names it is a GPU."""
    return device.startswith("cuda")


def engine_backend(device: str) -> str:
    """The backend that an engine on this device runs."""
    return "triton" if is_gpu(device) else "torch"


def device_kind(device: torch.device) -> str:
    """What a result depends on of a device: a GPU's product name, or the processor's architecture."""
    if device.type != "cuda":
        return f"cpu {platform.machine()}"
    import torch

    return torch.cuda.get_device_name(device)

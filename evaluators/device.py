"""Where an evaluation runs: the device, its kind by name, and the backend and dtype that belong to it."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Literal

from evaluators.errors import backend_crashed, gpu_full, no_gpu, too_large_for_gpu
from vortex_core.errors import VortexError

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


def lost_or_full(error: BaseException) -> bool:
    """Whether an error is the device's and not the program's: its context is lost, or its memory is full."""
    import torch

    return isinstance(error, torch.AcceleratorError | torch.OutOfMemoryError)


def launch_failure(error: BaseException, backend: str, stage: str) -> VortexError | None:
    """A kernel that does not compile or fit, or a full GPU, as a typed error; None for anything else."""
    names = {kind.__name__ for kind in type(error).__mro__ if kind.__module__.startswith(("triton", "torch"))}
    why = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "OutOfResources" in names:
        return too_large_for_gpu(why)
    if "TritonError" in names:
        return backend_crashed(backend, why)
    if "OutOfMemoryError" in names:
        return gpu_full(stage, why)
    return None

"""What the kernels need to know about where they run: interpreter or device, and how many multiprocessors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton

# Kernels are turned into interpreted functions when they are decorated, so this is fixed at import.
INTERPRETED: bool = bool(triton.knobs.runtime.interpret)

# Enough programs to exercise splitting without making the interpreter crawl.
INTERPRETER_MULTIPROCESSORS = 3


# Environment variable; "0" launches every kernel only after the one before it has ended, for comparisons.
PDL_SWITCH = "VORTEX_PDL"


@dataclass(frozen=True)
class AbsentGPU:
    """What launches need to know of a GPU that kernels are compiled for and that need not be here.

    Attributes:
        capability: compute capability, `(9, 0)` for Hopper.
        multiprocessors: of the whole GPU.
    """

    capability: tuple[int, int]
    multiprocessors: int


_absent: ContextVar[AbsentGPU | None] = ContextVar("absent_gpu", default=None)


@contextmanager
def as_if_on(gpu: AbsentGPU) -> Iterator[None]:
    """Inside, tensors without storage (device `meta`) are taken to be on `gpu`: launches are cut as they would be."""
    token = _absent.set(gpu)
    try:
        yield
    finally:
        _absent.reset(token)


def absent_gpu(device: torch.device | None = None) -> AbsentGPU | None:
    """The GPU named with `as_if_on`, if one was and `device` is where its tensors are (None: wherever)."""
    return _absent.get() if device is None or device.type == "meta" else None


@lru_cache(maxsize=16)
def _has_dependent_launch(index: int) -> bool:
    return torch.cuda.get_device_capability(index) >= (9, 0)


def dependent_launch(device: torch.device, *, early: bool = False) -> dict[str, Any]:
    """Arguments of a launch that let the kernel start while the one before it ends (`dependent.py`).

    On for Hopper and later unless `VORTEX_PDL=0`, read at each launch. early: the next kernel may take its places
    at once, for a kernel that leaves it no room to crowd into.
    """
    absent = absent_gpu(device)
    if os.environ.get(PDL_SWITCH) == "0" or (device.type != "cuda" and absent is None):
        return {"PDL": 0}
    if absent is not None:
        able = absent.capability >= (9, 0)
    else:
        able = _has_dependent_launch(
            device.index if device.index is not None else torch.cuda.current_device()
        )
    if not able:
        return {"PDL": 0}
    return {"PDL": 1 if early else 2, "launch_pdl": True}


@lru_cache(maxsize=16)
def _device_multiprocessors(index: int) -> int:
    return int(torch.cuda.get_device_properties(index).multi_processor_count)


def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of `device`; a small constant under the interpreter."""
    if (absent := absent_gpu(device)) is not None:
        return absent.multiprocessors
    if device.type != "cuda":
        return INTERPRETER_MULTIPROCESSORS
    return _device_multiprocessors(device.index if device.index is not None else torch.cuda.current_device())


def next_power_of_2(n: int) -> int:
    """Smallest power of two that is at least `n` (1 for n <= 1)."""
    return 1 << max(0, n - 1).bit_length()


def split_dim(dim: int) -> tuple[int, int]:
    """Cuts a head dimension into at most two power-of-two blocks, `(first, second)`; second may be 0.

    96 = 64 + 32, 192 = 128 + 64, 576 = 512 + 64. A dimension that no two blocks of at least 16 cover
    exactly is padded to the next power of two and masked: 72 -> (128, 0).
    """
    if dim <= 0:
        raise ValueError(f"head dimension must be positive, got {dim}")
    low = 1 << (dim.bit_length() - 1)
    rest = dim - low
    if rest >= 16 and rest & (rest - 1) == 0 and low >= 16:
        return low, rest
    return max(16, next_power_of_2(dim)), 0

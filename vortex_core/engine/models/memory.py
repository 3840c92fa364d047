"""The memory of this machine that weights would go to."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Memory:
    """The memory that weights would go to: the first CUDA device, else what RAM is free.

    Attributes:
        others: further GPUs here that weights could be divided over.
    """

    device: str
    bytes: int
    others: int = 0


def memory_found() -> Memory:
    """The first CUDA device's total memory, or else the RAM this process may still take.

    In a process that `torchrun` started it is that of all its GPUs, which then hold a model together.
    """
    import torch

    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        together = int(os.environ.get("WORLD_SIZE", "1"))
        name = device.name if together == 1 else f"{together} x {device.name}"
        return Memory(name, together * device.total_memory, max(0, torch.cuda.device_count() - together))
    return ram_found()


def ram_found() -> Memory:
    """The RAM this process may still take."""
    return Memory("RAM", _bounded(psutil.virtual_memory().available))


def ram_total() -> int:
    """Bytes of RAM that there are for all processes here."""
    return _bounded(psutil.virtual_memory().total)


def _bounded(size: int) -> int:
    """Bytes as far as a container may take them: psutil sees the host's RAM."""
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        return min(size, int(text))
    return size


def gib(size: int) -> str:
    """Bytes as text in GiB, one decimal."""
    return f"{size / 2**30:.1f} GiB"

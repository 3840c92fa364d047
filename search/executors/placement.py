"""Where things run: which device, how many engines, GPUs and threads, from a campaign's wishes and what there is."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Literal

from search.config import Cluster
from search.errors import no_gpu, too_few_gpus

Device = Literal["cpu", "cuda"]
_MOST_CPU_TASKS = 8


@dataclass(frozen=True)
class Resources:
    """What a machine or a cluster has.

    Attributes:
        gpus: CUDA devices.
        cores: CPU cores.
        nodes: machines that could hold an engine.
        whose: in words, for messages.
    """

    gpus: int
    cores: int
    nodes: int = 1
    whose: str = "this machine"


@dataclass(frozen=True)
class Placement:
    """The resident workers of a campaign.

    Attributes:
        device: of the engines.
        engines: how many of them.
        ranks: processes that hold one engine together, each with a GPU of its own on `cuda`.
        threads: CPU threads of each rank.
        cpu_tasks: workers for what needs no engine.
    """

    device: Device
    engines: int
    ranks: int
    threads: int
    cpu_tasks: int

    @property
    def gpus(self) -> int:
        """GPUs held in all."""
        return self.engines * self.ranks if self.device == "cuda" else 0

    @property
    def cpus(self) -> int:
        """CPU slots that Ray must have: one for each process."""
        return self.engines * self.ranks + self.cpu_tasks

    def beside(self, screeners: int) -> int:
        """Of all workers that screen programs, those on the cores of one engine: on GPUs an engine waits for none."""
        return -(-screeners // self.engines) if self.device == "cpu" else 0

    def words(self) -> str:
        """For people."""
        if self.device == "cpu":
            return f"{self.engines} engine{'s' * (self.engines > 1)} on the CPU, {self.threads} threads each"
        each = (
            f" of {self.ranks} GPUs"
            if self.ranks > 1
            else " on a GPU each"
            if self.engines > 1
            else " on a GPU"
        )
        return f"{self.engines} engine{'s' * (self.engines > 1)}{each}, {self.cpu_tasks} CPU workers"


def resources_here() -> Resources:
    """This machine: the GPUs that CUDA shows this process, without starting CUDA on one, and the cores it may use."""
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Resources(torch.cuda.device_count() if torch.cuda.is_available() else 0, usable or 1)


def place(config: Cluster, found: Resources, *, growing: bool = False) -> Placement:
    """Decide. Nothing has been started yet.

    Args:
        growing: whether nodes may be added: engines that are named then count as there, and wait for their place.

    Raises:
        VortexError: `VS040` where GPUs are asked for and there is none, `VS041` where there are too few.
    """
    wanted = config.device
    named = (config.engines or 0) * config.tensor_parallel if growing and wanted == "cuda" else 0
    found = replace(found, gpus=max(found.gpus, named, config.gpus or 0 if named else 0))
    if wanted == "cpu" and config.gpus:
        raise too_few_gpus(
            f"{config.gpus} GPUs are asked for on device cpu", "leave out --gpus, or give --device cuda"
        )
    if found.gpus == 0 and (wanted == "cuda" or config.gpus):
        raise no_gpu(found.whose)
    device: Device = "cuda" if wanted == "cuda" or (wanted == "auto" and found.gpus) else "cpu"
    ranks = config.tensor_parallel
    if device == "cuda":
        gpus = found.gpus if config.gpus is None else config.gpus
        if gpus > found.gpus:
            raise too_few_gpus(f"{gpus} GPUs are asked for, {found.whose} has {found.gpus}", "lower --gpus")
        engines = gpus // ranks if config.engines is None else config.engines
        if engines * ranks > gpus or engines == 0:
            needed = max(1, engines) * ranks
            raise too_few_gpus(
                f"{max(1, engines)} engines of {ranks} GPUs need {needed}, {gpus} are there",
                "lower --tp or --engines",
            )
    else:
        engines = config.engines or 1
    here = -(-engines // found.nodes) * ranks  # processes of engines that share a machine
    threads = config.threads or max(1, found.cores // found.nodes // here)
    spare = found.cores - engines * ranks
    cpu_tasks = config.cpu_tasks or (max(1, min(_MOST_CPU_TASKS, spare)) if device == "cuda" else 1)
    return Placement(device, engines, ranks, threads, cpu_tasks)

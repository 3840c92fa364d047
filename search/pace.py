"""How fast this machine computes now, so that a campaign asks no more of it than its time allows."""

from __future__ import annotations

import os
import threading
import time
from typing import NamedTuple

QUIET_CORES = 2000.0
"""Rounds a second of two idle cores of an x86 server (torch 2.13): 950 to 1,060 a second of a core's time."""
FULL, LEAST = 0.75, 0.05
_SECONDS = 1.0


class Pace(NamedTuple):
    """How fast a machine computes now.

    Attributes:
        rate: work done in a second, all cores together, in units of two quiet cores.
        got: of the usable cores' time what this process was given; the rest went to others.
    """

    rate: float
    got: float

    def cores(self, usable: int) -> int:
        """Cores on which threads may wait for each other: all where they are idle, else no more than are to be had. A
        thread that was preempted makes all others wait, in every operator."""
        return usable if self.got >= FULL else max(1, int(self.got * usable))


def pace() -> Pace:
    """Measure it, for a second.

    A round is what decoding does most, in small: a projection, its transpose and the attention of a head. It runs on
    every usable core for a second, so other work on the machine, and this process's own priority, count.
    """
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    done = [0] * cores
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    weight, keys, x = torch.ones(576, 1536), torch.ones(1024, 64), torch.ones(8, 576)

    def work(place: int) -> None:
        ends = time.perf_counter() + _SECONDS
        while time.perf_counter() < ends:
            torch.nn.functional.silu(x @ weight) @ weight.T
            (x[:, :64] @ keys.T).softmax(-1) @ keys
            done[place] += 1

    try:
        spent = time.process_time()
        threads = [threading.Thread(target=work, args=(n,)) for n in range(cores)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - began
        return Pace(sum(done) / seconds / QUIET_CORES, (time.process_time() - spent) / seconds / cores)
    finally:
        torch.set_num_threads(before)


def share_of_items(found: float) -> float:
    """The share of a plan's items that a machine of this pace is asked: all from three quarters of the pace on, a
    twentieth at least."""
    return 1.0 if found >= FULL else max(LEAST, round(found, 2))

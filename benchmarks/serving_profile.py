"""Where a decode step's GPU time goes, by kernel, from a trace of SGLang's profiler.

A decode step is one replay of a captured graph, whose kernels share the correlation id of their launch. Kernels that
start early overlap the one before them: `exposed` counts every moment once, for the kernel that ends it.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Kernels that read the cache of all tokens: FA3, FlashMLA, FlashInfer, SGLang's Triton backend; their merges too.
ATTENTION = re.compile(
    r"flash|fmha|attn|attention|mla|decode_kernel|_fwd_|splitkv|merge|combine", re.IGNORECASE
)
_REPLAYS = 3  # fewer measure nothing


@dataclass(frozen=True)
class Kernel:
    """One kernel in a median step: how often it runs, its time and its exposed time, in microseconds."""

    name: str
    count: int
    us: float
    exposed_us: float


@dataclass(frozen=True)
class Step:
    """A median decode step. Times in microseconds.

    Attributes:
        replays: steps in the trace.
        period_us: from the start of one step to that of the next.
        busy_us: during which a kernel of the graph ran.
        outside: kernels a step launches beside its graph.
    """

    replays: int
    period_us: float
    busy_us: float
    outside: float
    kernels: tuple[Kernel, ...]

    def matching(self, pattern: re.Pattern[str]) -> float:
        """Exposed microseconds of the kernels whose names match."""
        return sum(kernel.exposed_us for kernel in self.kernels if pattern.search(kernel.name))


def read(traces: Sequence[Path]) -> Step:
    """The median step of the first rank.

    Raises:
        ValueError: if there is no trace, or it holds fewer than three replays of a graph.
    """
    if not traces:
        raise ValueError("the engine left no trace")
    with gzip.open(traces[0], "rt", encoding="utf-8") as file:
        return step_of(json.load(file)["traceEvents"])


def step_of(events: Sequence[dict[str, Any]]) -> Step:
    """See `read`."""
    launches: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "kernel":
            launches[event["args"]["correlation"]].append(event)
    sizes = Counter(len(kernels) for kernels in launches.values() if len(kernels) > 1)
    if not sizes:
        raise ValueError("the trace holds no captured graph")
    size = max(sizes, key=lambda n: n * sizes[n])  # the graph that most kernels belong to
    replays = sorted((k for k in launches.values() if len(k) == size), key=lambda k: min(e["ts"] for e in k))
    if len(replays) < _REPLAYS:
        raise ValueError(f"the trace holds {len(replays)} decode steps, of {_REPLAYS} at least")
    starts = [min(e["ts"] for e in kernels) for kernels in replays]
    by: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
    busy = []
    for kernels in replays:
        spent = _spent(kernels)
        busy.append(sum(exposed for _, _, exposed in spent.values()))
        for name, found in spent.items():
            by[name].append(found)
    singles = sum(len(k) == 1 and starts[0] <= k[0]["ts"] < starts[-1] for k in launches.values())
    medians = [
        Kernel(name, int(statistics.median(n for n, _, _ in found)),
               statistics.median(us for _, us, _ in found), statistics.median(us for _, _, us in found))
        for name, found in by.items()
    ]  # fmt: skip
    return Step(
        len(replays), statistics.median(b - a for a, b in itertools.pairwise(starts)),
        statistics.median(busy), singles / (len(replays) - 1),
        tuple(sorted(medians, key=lambda kernel: -kernel.exposed_us)),
    )  # fmt: skip


def _spent(kernels: Sequence[dict[str, Any]]) -> dict[str, tuple[int, float, float]]:
    """Count, time and exposed time by name, of one replay."""
    found: dict[str, tuple[int, float, float]] = {}
    end = 0.0
    for event in sorted(kernels, key=lambda e: e["ts"] + e["dur"]):
        start, stop = event["ts"], event["ts"] + event["dur"]
        count, us, exposed = found.get(event["name"], (0, 0.0, 0.0))
        found[event["name"]] = (count + 1, us + event["dur"], exposed + stop - max(start, end))
        end = max(end, stop)
    return found


def page(arm: str, batch: int, context: int, step: Step, rows: int = 24) -> str:
    """The step as a Markdown table of its longest kernels."""
    idle = step.period_us - step.busy_us
    about = (
        f"{step.replays} steps: {step.period_us / 1e3:.3f} ms from one to the next, of which no kernel of the graph "
        f"runs for {idle / 1e3:.3f} ms; {step.outside:.0f} kernels outside the graph. Attention: "
        f"{step.matching(ATTENTION) / 1e3:.3f} ms."
    )
    lines = [
        f"## {arm}, {batch} x {context:,}", "", about, "",
        "| kernel | a step | us each | us a step | exposed us a step |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for kernel in step.kernels[:rows]:
        lines.append(
            f"| `{kernel.name[:110].replace('|', ' ')}` | {kernel.count} | {kernel.us / kernel.count:.2f} "
            f"| {kernel.us:.1f} | {kernel.exposed_us:.1f} |"
        )
    return "\n".join([*lines, ""])

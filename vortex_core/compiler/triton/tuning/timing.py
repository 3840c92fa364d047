"""Timing of launches on a GPU: replays of CUDA graphs, medians."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

Launch = Callable[[], object]


def graph_time(launches: Sequence[Launch], *, replays: int = 15, replay_ms: float = 3.0) -> float:
    """Median microseconds of one launch, from replays of a CUDA graph that runs all `launches` in turn.

    Give several launches over different pages when one launch's bytes fit in the L2, so that it is flushed by
    the others. The graph repeats them until a replay lasts about `replay_ms`.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            for launch in launches:
                launch()
    torch.cuda.synchronize()
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for launch in launches:
        launch()
    stop.record()
    torch.cuda.synchronize()
    inner = max(1, min(50, int(replay_ms / max(start.elapsed_time(stop), 1e-3)) + 1))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(inner):
            for launch in launches:
                launch()
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(replays):
        start.record()
        graph.replay()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop))
    return statistics.median(times) * 1e3 / (inner * len(launches))


def relative_error(out: torch.Tensor, reference: torch.Tensor) -> float:
    """||out - reference|| / ||reference|| in float64; NaN stays NaN."""
    difference = (out.double() - reference.double()).norm()
    return float(difference / reference.double().norm().clamp_min(1e-300))

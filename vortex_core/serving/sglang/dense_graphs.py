"""A second graph of each captured decode step: the one in which every sequence attends to everything.

Below a flow's crossover choosing pages costs more than it saves. A step in which that holds of all sequences is then
SGLang's own step with the backend that prefills, captured under a key of its own beside the flow's and replayed in its
place: the host knows the lengths. SGLang's hooks (`HookRegistry`, its interface for plug-ins) see a graph being
captured and replayed; where a version has no such place, steps keep the flow's graph, in which short sequences attend
to everything too, at the cost of launches that do nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

CAPTURE = "sglang.srt.model_executor.runner_backend.full_cuda_graph_backend.FullCudaGraphBackend.capture_one"
REPLAY = "sglang.srt.model_executor.runner_backend.full_cuda_graph_backend.FullCudaGraphBackend.replay"
LABEL = "vortex-dense"


class TwoGraphs(Protocol):
    """What the hooks ask of the attention backend.

    Attributes:
        capturing: whether the next capture is of a decode step that may attend to everything.
        whole: whether the step being captured or replayed attends to everything.
        dense_sizes: batches that have the second graph.
    """

    capturing: bool
    whole: bool
    dense_sizes: set[int]


_active: list[TwoGraphs] = []


def activate(backend: TwoGraphs) -> None:
    """Make a backend's decode steps have two graphs; the last one built in this process."""
    _active[:] = [backend]


def register() -> None:
    """Place the hooks; SGLang applies them once all plug-ins are loaded."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(CAPTURE, capture_both, HookType.AROUND)
    HookRegistry.register(REPLAY, replay_one, HookType.AROUND)


def applied() -> bool:
    """Whether SGLang took the hooks."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    return {CAPTURE, REPLAY} <= set(HookRegistry._patched)


def capture_both(original: Any, graphs: Any, shape_key: Any, *args: Any, **named: Any) -> Any:
    """Around `capture_one`: the flow's graph first, then that of a step which attends to everything."""
    found = original(graphs, shape_key, *args, **named)
    for backend in _active:
        if backend.capturing:
            backend.capturing, backend.whole = False, True
            try:
                original(graphs, dense_key(shape_key), *args, **named)
                backend.dense_sizes.add(shape_key.size)
            finally:
                backend.whole = False
    return found


def replay_one(original: Any, graphs: Any, shape_key: Any, *args: Any, **named: Any) -> Any:
    """Around `replay`: the graph that the backend prepared for."""
    if any(backend.whole for backend in _active):
        shape_key = dense_key(shape_key)
    return original(graphs, shape_key, *args, **named)


def dense_key(shape_key: Any) -> Any:
    """The key of the second graph."""
    return replace(shape_key, variant_label=LABEL)

"""A captured step has two graphs where the flow has a crossover, and the one that was prepared for is replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from vortex_core.serving.sglang import dense_graphs


@dataclass(frozen=True)
class Key:
    """As SGLang's `ShapeKey`."""

    size: int
    stream_idx: int | None = None
    variant_label: str | None = None


@dataclass
class Attention:
    """As the plug-in's backend."""

    capturing: bool = False
    whole: bool = False
    dense_sizes: set[int] = field(default_factory=set)


@dataclass
class Graphs:
    """As SGLang's `FullCudaGraphBackend`: a graph is what its forward pass was when it was captured."""

    held: dict[Key, str] = field(default_factory=dict)

    def capture_one(self, shape_key: Key, forward_fn: Callable[[], str], dummies: Any = None) -> None:
        assert dummies is None
        self.held[shape_key] = forward_fn()

    def replay(self, shape_key: Key, batch: Any, **named: Any) -> str:
        return self.held[shape_key]


@pytest.fixture
def attention() -> Iterator[Attention]:
    found = Attention()
    dense_graphs.activate(found)
    yield found
    dense_graphs._active.clear()


def test_a_decode_step_is_captured_twice_and_replayed_as_prepared(attention: Attention) -> None:
    graphs = Graphs()

    def forward() -> str:
        return "dense" if attention.whole else "flow"

    for size in (1, 4):
        attention.capturing = True
        dense_graphs.capture_both(Graphs.capture_one, graphs, Key(size), forward, dummies=None)
        assert not attention.capturing and not attention.whole
    assert attention.dense_sizes == {1, 4}
    assert graphs.held == {
        Key(1): "flow", Key(4): "flow",
        dense_graphs.dense_key(Key(1)): "dense", dense_graphs.dense_key(Key(4)): "dense",
    }  # fmt: skip
    for whole in (False, True, False):
        attention.whole = whole
        ran = dense_graphs.replay_one(Graphs.replay, graphs, Key(4), object())
        assert ran == ("dense" if whole else "flow")


def test_other_captures_are_left_alone(attention: Attention) -> None:
    """A prefill's, and those of a server whose flow has no crossover."""
    graphs = Graphs()
    dense_graphs.capture_both(Graphs.capture_one, graphs, Key(8), lambda: "prefill")
    assert list(graphs.held) == [Key(8)]
    dense_graphs._active.clear()
    dense_graphs.capture_both(Graphs.capture_one, graphs, Key(9), lambda: "flow")
    assert list(graphs.held) == [Key(8), Key(9)]
    assert dense_graphs.replay_one(Graphs.replay, graphs, Key(9), object()) == "flow"


def test_a_capture_that_fails_leaves_no_step_dense(attention: Attention) -> None:
    def forward() -> str:
        if attention.whole:
            raise RuntimeError("out of memory")
        return "flow"

    attention.capturing = True
    with pytest.raises(RuntimeError):
        dense_graphs.capture_both(Graphs.capture_one, Graphs(), Key(1), forward)
    assert not attention.dense_sizes
    assert not attention.whole and not attention.capturing

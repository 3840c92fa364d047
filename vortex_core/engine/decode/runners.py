"""An engine's decode runners: one for dense attention, one for the loaded flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vortex_core.engine.decode.batch import DecodeBatch
from vortex_core.engine.decode.selection import LoadedFlow
from vortex_core.engine.kv.cache import SequenceState

if TYPE_CHECKING:
    from vortex_core.engine.decode.graph_batch import GraphBatch
    from vortex_core.engine.decode.graph_runner import DecodeRunner, Shape
    from vortex_core.engine.engine import Engine

    AnyBatch = DecodeBatch | GraphBatch


class Runners:
    """Makes runners as they are needed and drops a flow's when it is swapped out. Unused by the torch backend."""

    def __init__(self, engine: Engine, *, graphs: bool) -> None:
        self._engine = engine
        self._graphs = graphs
        self._of: dict[int | None, DecodeRunner] = {}

    def runner(self, flow: LoadedFlow | None) -> DecodeRunner:
        """The runner of the loaded flow, or of dense attention."""
        from vortex_core.engine.decode.graph_runner import DecodeRunner

        key = None if flow is None else id(flow)
        if key not in self._of:
            engine = self._engine
            self._of[key] = DecodeRunner(
                engine.model, engine.cache.pool, flow,
                vocab=engine.spec.vocab, max_length=engine.cache.pool.slots, graphs=self._graphs,
            )  # fmt: skip
        return self._of[key]

    def batch(self, flow: LoadedFlow | None, sequences: Sequence[SequenceState]) -> GraphBatch:
        """A live batch on the runner of a flow."""
        from vortex_core.engine.decode.graph_batch import GraphBatch

        short = flow is not None and flow.crossover.longest > 0
        return GraphBatch(sequences, self.runner(flow), self.runner(None) if short else None)

    def forget(self, flow: LoadedFlow) -> None:
        """The graphs of a flow's runner address storage that is no more."""
        if id(flow) in self._of:
            self._of[id(flow)].forget()

    def drop(self, flow: LoadedFlow | None) -> Shape | None:
        """Free the runner of a flow that goes; returns the shape it last ran. The dense one stays."""
        used = self._of.get(None if flow is None else id(flow))
        shape = None if used is None else used.last_shape
        if flow is not None and used is not None:
            del self._of[id(flow)]
            used.close()
        return shape

    def warm_up(self, shape: Shape | None) -> float:
        """Capture the shape that was in use for the flow that is now loaded; seconds.

        A step of the flow before may have kept all lists. The new flow's first one selects, and only a flow that reuses
        selections has any other.
        """
        if shape is None:
            return 0.0
        shape = replace(shape, selects=True, whole=False)
        runner = self.runner(self._engine.flow)
        runner.reserve(shape.rows)
        return runner.ensure(shape)

"""A compiled flow that writes down what an engine asks of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from vortex_core import library
from vortex_core.compiler import backends
from vortex_core.compiler.interface import BatchView, CompiledFlow, LayerKV, StateStore
from vortex_core.engine.engine import Engine
from vortex_core.ir.knobs import Knobs
from vortex_core.page_list import PageList


@dataclass
class Spy:
    """Passes everything on to a compiled flow and writes down what the engine asked."""

    inner: CompiledFlow
    updates: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    selects: list[tuple[int, int, tuple[int, ...]]] = field(default_factory=list)  # layer, length, budgets
    selected: list[PageList] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def update(self, states: StateStore, kv: LayerKV, pages: torch.Tensor, layer: int) -> None:
        self.updates.append((layer, tuple(pages.tolist())))
        self.inner.update(states, kv, pages, layer)

    def select(self, q: torch.Tensor, states: StateStore, view: BatchView, layer: int) -> PageList:
        self.selects.append((layer, view.max_length, tuple(view.budgets.tolist())))
        pages = self.inner.select(q, states, view, layer)
        self.selected.append(pages)
        return pages


def spy_on(engine: Engine, flow: str, backend: str = "torch", **knobs: Any) -> Spy:
    """Load a library flow into an engine, watched."""
    compiled = backends.get(backend).compile(library.load(flow).program, Knobs(**knobs), engine.geometry)
    spy = Spy(compiled)
    engine.load_compiled(spy)
    return spy

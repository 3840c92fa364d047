"""One flow on one KV pool: its layer plan, and page states under the page numbers of the pool.

States are indexed by the physical page they describe. So whoever allocates, frees or shares a page does the same to
its states, and there is nothing to synchronise. What must hold is that the states of every *complete* page are those
of its content: whoever fills pages outside of decode calls `complete`, and a decode step completes its own.

States of requests are indexed by seat. Whoever gives a seat to a request calls `begin` before its first step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import torch

from vortex_core.compiler.interface import CapturedFlow, CompiledFlow, LayerKV, StateStore
from vortex_core.ir import mistakes
from vortex_core.ir.crossover import NEVER, Crossover, crossover_unfit
from vortex_core.ir.layers import LayerPlan, check_reuse
from vortex_core.page_list import PageList

UPDATE_PAGES = 4096  # pages per state update: bounds the memory of the torch backend
SEATS = 64  # requests that have room for states of their own at first


class PoolFlow:
    """A compiled flow with the states of a pool's pages, of the leaders of its layer plan.

    Args:
        compiled: the flow.
        kv: keys and values of a layer, as pages of the flow's size.
        pages: of the pool, of the flow's size.
        device: of the pool.
        layers: those this process holds; by default all.
        crossover: below how many tokens sequences attend to everything. Of no effect on a flow that can have none
            (`crossover_unfit`).

    Attributes:
        crossover: the one in force.
    """

    def __init__(
        self,
        compiled: CompiledFlow,
        kv: Callable[[int], LayerKV],
        pages: int,
        device: torch.device,
        layers: range | None = None,
        crossover: Crossover = NEVER,
    ) -> None:
        self.compiled, self.kv, self.pages, self.device = compiled, kv, pages, device
        self.knobs, self.page_size = compiled.knobs, compiled.knobs.page_size
        check_reuse(compiled.program, compiled.knobs)
        self.plan = LayerPlan(compiled.program, compiled.knobs, compiled.geometry.layers)
        self.crossover = crossover if crossover_unfit(compiled.program, compiled.knobs) is None else NEVER
        held = range(self.plan.layers) if layers is None else layers
        # One page more where attention mass is stored: what the padding of a captured batch writes goes there.
        stored = pages + compiled.program.needs_mass
        seats = SEATS if compiled.program.request_states else 1
        self._pending: list[int] = []
        self.states: dict[int, StateStore] = {
            i: compiled.new_states(stored, device, seats) for i in self.plan.leaders if i in held
        }
        missing = [at for at in self.states if self.plan.mass_layer.get(at, at) not in held]
        assert not missing, f"layers {missing} read the mass of a layer that another process holds"

    @cached_property
    def captured(self) -> CapturedFlow:
        """The flow as decode steps over static buffers need it."""
        assert isinstance(self.compiled, CapturedFlow), f"{type(self.compiled).__name__} cannot be captured"
        return self.compiled

    @property
    def state_bytes(self) -> int:
        """Bytes of all states."""
        return sum(states.nbytes() for states in self.states.values())

    def begin(self, seats: Sequence[int]) -> bool:
        """Requests begin on `seats`; whether more room for their states was made, so that captured steps address what
        is no more."""
        if not seats or not self.compiled.program.request_states:
            return False
        at, most = torch.tensor(seats, device=self.device), max(SEATS, 1 << max(seats).bit_length())
        moved = [states.hold(most) for states in self.states.values()]
        for states in self.states.values():
            states.begin(at)
        return any(moved)

    def complete(self, pages: torch.Tensor) -> None:
        """Compute the states of complete physical pages (any integer dtype), in all layers."""
        for part in pages.split(UPDATE_PAGES):
            for layer in self.states:
                self.complete_in(layer, part)

    def note_complete(self, pages: Iterable[int]) -> None:
        """Physical pages that a step completes which attends to everything: their states are not needed yet."""
        if self.states:
            self._pending += pages

    def settle(self) -> None:
        """Compute the states of the noted pages. Call before a step that selects."""
        if self._pending:
            pages, self._pending = self._pending, []
            self.complete(torch.tensor(pages, device=self.device))

    def complete_in(self, layer: int, pages: torch.Tensor) -> None:
        """Compute the states of complete physical pages in one layer."""
        self.compiled.update(self.states[layer], self.kv(layer), pages, layer)

    def check_scale(self, scale: float) -> None:
        """Raises `VF069` where attention multiplies its scores by something else than a residual's masses assume."""
        if not math.isclose(scale, self.compiled.geometry.head_dim**-0.5, rel_tol=1e-6):
            raise mistakes.NO_RESIDUAL.error(why=f"they are multiplied by {scale:.4g}")

    def observe(self, layer: int, selected: PageList, mass: torch.Tensor) -> None:
        """Hand back the attention mass of a leader's selection."""
        self.compiled.observe(self.states[layer], selected, mass, layer)

"""Where a flow's crossover lies on the GPU at hand: layers of it and of dense attention timed in turn, and what is kept.

A result is one JSON file beside those of `vortex-search tune`: it holds for one program with its knobs, the model's
attention, and one machine with its versions. Compiling and serving read it and never write it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vortex_core.compiler.interface import BatchView, LayerKV
from vortex_core.compiler.triton.tuning.case import TuneCase, cannot_tune
from vortex_core.compiler.triton.tuning.results import Key, TuningCache, this_machine
from vortex_core.compiler.triton.tuning.timing import Launch, graph_time
from vortex_core.compiler.triton.tuning.tune import NO_GPU, Timer
from vortex_core.errors import VortexError
from vortex_core.geometry import Geometry
from vortex_core.ir.crossover import BATCHES, CONTEXTS, NEVER, Crossover, crossover_unfit, first_win
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import Program
from vortex_core.kernels.decode.plan import AttentionPlan
from vortex_core.page_list import one_list_a_sequence

MARGIN = 0.02  # what a layer must win by: two medians of one launch differ by about 1%
LAYERS = 16  # read in turn: lists and states together leave the L2 between two reads of one layer
BLOCK = 128  # tokens of a page of dense attention, in both engines at least as many as a flow's


@dataclass(frozen=True)
class Probe:
    """One shape, microseconds of a layer (averaged over a group of layers that share a selection)."""

    batch: int
    context: int
    sparse_us: float
    dense_us: float

    @property
    def wins(self) -> bool:
        """Whether the flow is clearly the faster."""
        return self.sparse_us * (1 + MARGIN) < self.dense_us


@dataclass(frozen=True)
class Measured:
    """What was found: the crossover, how far it was looked for, and the shapes that were timed.

    Attributes:
        most: the longest context; where a flow never won up to it, its crossover is `most`.
        when: ISO date.
    """

    crossover: Crossover
    most: int
    when: str
    probes: tuple[Probe, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data, inverse of `from_json`."""
        return {
            "crossover": self.crossover.to_json(), "most": self.most, "when": self.when,
            "probes": [asdict(probe) for probe in self.probes],
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Any) -> Measured:
        """Raises `ValueError`, `KeyError` or `TypeError` for what `to_json` never wrote."""
        probes = tuple(Probe(**probe) for probe in data["probes"])
        return cls(Crossover.from_json(data["crossover"]), int(data["most"]), str(data["when"]), probes)


def measure_crossover(
    program: Program,
    knobs: Knobs,
    geometry: Geometry,
    *,
    batches: Sequence[int] = BATCHES,
    most: int = CONTEXTS[-1],
    report: Callable[[Probe], None],
    timer: Timer = graph_time,
    device: torch.device | None = None,
) -> Measured:
    """Time layers of the flow and of dense attention, and find for each batch from where on the flow wins.

    Args:
        most: the longest context.
        report: called with every shape as it is timed.
        timer, device: as of `tune`.

    Raises:
        VortexError: `VE040` without a GPU, for a flow that can have no crossover, or where no shape fits.
    """
    if device is None:
        if this_machine() is None:
            raise cannot_tune(*NO_GPU)
        device = torch.device("cuda")
    unfit = crossover_unfit(program.canonical(), knobs)
    if unfit is not None:
        raise cannot_tune(f"this flow has no crossover: {unfit}", "measure another flow")
    contexts = [n for n in CONTEXTS if n <= most and knobs.pages(n, 0, geometry.layers) * knobs.page_size < n]
    if not contexts:
        raise cannot_tune(f"up to {most:,} tokens this flow attends to every page", "give a longer --context")
    probes: list[Probe] = []
    points: list[tuple[int, int]] = []
    for batch in sorted(batches):

        def wins(context: int, batch: int = batch) -> bool:
            assert device is not None
            probes.append(_probe(TuneCase(program, knobs, geometry, batch, context, device, LAYERS), timer))
            if device.type == "cuda":
                torch.cuda.empty_cache()  # the next case asks the device what is free
            report(probes[-1])
            return probes[-1].wins

        # With more sequences attention's share grows: nowhere later than with fewer.
        asked = [n for n in contexts if not points or n <= points[-1][1]]
        try:
            found = first_win(asked, wins)
        except VortexError:
            if not points:  # the smallest batch does not fit
                raise
            break
        points.append((batch, asked[-1] if found is None else found))
    today = datetime.now(UTC).date().isoformat()
    return Measured(Crossover(tuple(points)), contexts[-1], today, tuple(probes))


def _probe(case: TuneCase, timer: Timer) -> Probe:
    sides = Sides(case)
    layers = case.knobs.reuse_layers
    sparse, dense = (timer(list(launches)) / layers for launches in (sides.sparse(), sides.dense()))
    return Probe(case.batch, case.context, round(sparse, 3), round(dense, 3))


class Sides:
    """Layers of a decode step of a flow, and the same layers of dense attention, as the embedded engine launches them.

    Between two layers stands a small launch in place of the model's own: no layer begins before the one before ends.
    """

    def __init__(self, case: TuneCase) -> None:
        self.case, g = case, case.geometry
        # A few tokens short of full, so that no page is completed, as in most steps.
        length = case.context - min(4, case.knobs.page_size // 2)
        self.lengths = torch.full((case.batch,), length, dtype=torch.int32, device=case.device)
        budget = case.knobs.pages(length, 0, g.layers)
        budgets = torch.full_like(self.lengths, budget)
        self.view = BatchView(case.table, self.lengths, budgets, case.context, dense_mass=case.dense_mass)
        count = case.pages * case.knobs.page_size // BLOCK
        blocks = torch.randperm(count, device=case.device)[: case.batch * (case.context // BLOCK)]
        table = blocks.view(case.batch, -1).to(torch.int32)
        self.blocks = one_list_a_sequence(table, self.lengths, BLOCK)
        dtype = case.kv[0].k.dtype
        self.plan = AttentionPlan.allocate(g, BLOCK, dtype, case.batch, case.device)
        self.scale = g.head_dim**-0.5
        self.between = torch.zeros(1024, device=case.device)

    def _groups(self) -> Iterator[list[int]]:
        """Layers in groups that share a selection."""
        count, size = len(self.case.kv), self.case.knobs.reuse_layers
        for first in range(0, max(count, size), size):
            yield [(first + i) % count for i in range(size)]

    def sparse(self) -> Iterator[Launch]:
        """A group of layers of the flow each: the first completes pages, scores and selects, all attend."""
        for group in self._groups():
            yield partial(self._sparse, group)

    def dense(self) -> Iterator[Launch]:
        """The same layers."""
        for group in self._groups():
            yield partial(self._dense, group)

    def _sparse(self, group: list[int]) -> None:
        case, leader = self.case, group[0]
        case.default.update_decode(case.states[leader], case.kv[leader], self.view, leader)
        pages = case.select(case.default, leader, self.view)
        for layer in group:
            case.attend(case.attention, layer, pages)
            self.between.add_(1.0)

    def _dense(self, group: list[int]) -> None:
        for layer in group:
            kv = self._in_blocks(self.case.kv[layer])
            self.plan.run(self.case.q, *kv.by_page, self.blocks, self.scale, out=self.case.out)
            self.between.add_(1.0)

    def _in_blocks(self, kv: LayerKV) -> LayerKV:
        """The layer's tokens as pages of dense attention; a view."""
        heads = len(kv.k)
        size = self.case.pages * self.case.knobs.page_size // BLOCK * BLOCK
        k, v = (x.flatten(1, 2)[:, :size].unflatten(1, (-1, BLOCK)) for x in (kv.k, kv.v))
        assert len(k) == heads
        return LayerKV(k, v)


# ---- what is kept ---------------------------------------------------------------------------------------------------


def crossover_path(
    program: Program, knobs: Knobs, geometry: Geometry, cache: TuningCache | None = None
) -> Path | None:
    """The file of a flow's crossover on this machine; None where nothing can be measured."""
    machine = this_machine()
    if machine is None:
        return None
    folder = (cache or TuningCache()).folder(Key.of(program, knobs, geometry, machine))
    return folder / f"crossover-{knobs.digest}-{geometry.layers}.json"


def store_crossover(found: Measured, path: Path) -> None:
    """Write a result, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "w", encoding="utf-8") as f:
        json.dump(found.to_json(), f, indent=1)
    Path(temporary).replace(path)


def read_crossover(program: Program, knobs: Knobs, geometry: Geometry) -> Measured | str:
    """What was measured for a flow on this machine, or why nothing is there."""
    path = crossover_path(program, knobs, geometry)
    if path is None:
        return "there is no GPU here"
    try:
        return Measured.from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return "it was not measured"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{path} cannot be read ({type(error).__name__}: {error})"


def stored_crossover(program: Program, knobs: Knobs, geometry: Geometry) -> Crossover:
    """The crossover that engines run a flow with: the measured one, and where there is none, none."""
    found = read_crossover(program, knobs, geometry)
    return found.crossover if isinstance(found, Measured) else NEVER

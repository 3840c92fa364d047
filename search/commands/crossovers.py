"""The crossover map of a flow: measured on this machine where it was, else modelled, and always labelled as either."""

from __future__ import annotations

from typing import Any

from vortex_core.ir.crossover import BATCHES, CONTEXTS, crossover_unfit, first_win
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.modelled import modelled_decode
from vortex_core.ir.program import Program
from vortex_core.specs import GpuSpec, ModelSpec


def crossover_map(
    program: Program, knobs: Knobs, spec: ModelSpec, gpu: GpuSpec, *, command: str = ""
) -> dict[str, Any]:
    """From which length on the flow is faster than dense attention, by batch.

    Args:
        gpu: for which it is modelled where nothing was measured.
        command: what would measure it.

    Returns:
        `how` (`measured`, `modelled`, or `none` for flows that can have none), `points` of `[batch, tokens]` with null
        where it is faster nowhere, and `words`.
    """
    from vortex_core.compiler.triton.tuning.crossover import Measured, read_crossover
    from vortex_core.compiler.triton.tuning.results import this_machine

    unfit = crossover_unfit(program, knobs)
    if unfit is not None:
        return {"how": "none", "points": [], "words": f"runs at every length: {unfit}"}
    found = read_crossover(program, knobs, spec.geometry())
    if isinstance(found, Measured):
        machine = this_machine()
        where = f"on {machine.gpu}, {found.when}" if machine is not None else found.when
        points: list[list[int | None]] = [[batch, tokens] for batch, tokens in found.crossover.points]
        words = f"measured {where}; shorter sequences attend to everything"
        return {"how": "measured", "points": points, "words": f"{_listed(points)} ({words})"}
    points = modelled_crossover(program, knobs, spec, gpu)
    words = f"modelled for {gpu.name}; every length runs as written, for {found}"
    words += f": {command}" if command else ""
    return {"how": "modelled", "points": points, "words": f"{_listed(points)} ({words})"}


def modelled_crossover(
    program: Program, knobs: Knobs, spec: ModelSpec, gpu: GpuSpec
) -> list[list[int | None]]:
    """The shortest context at which a modelled step beats dense attention's, by batch; None where none does."""
    contexts = [n for n in CONTEXTS if n <= spec.max_context]

    def wins(batch: int, context: int) -> bool:
        return modelled_decode(program, knobs, spec, gpu, batch, context).speedup > 1.0

    return [[batch, first_win(contexts, lambda n, b=batch: wins(b, n))] for batch in BATCHES]  # type: ignore[misc]


def _listed(points: list[list[int | None]]) -> str:
    """Batches of one crossover together: `1: 8,192, 2 to 8: 4,096 tokens`."""
    runs: list[tuple[list[int | None], int | None]] = []
    for batch, tokens in points:
        if runs and runs[-1][1] == tokens:
            runs[-1][0].append(batch)
        else:
            runs.append(([batch], tokens))
    parts = []
    for batches, tokens in runs:
        of = f"{batches[0]}" if len(batches) == 1 else f"{batches[0]} to {batches[-1]}"
        parts.append(f"batch {of}: " + ("nowhere" if tokens is None else f"{tokens:,} tokens"))
    return ", ".join(parts)

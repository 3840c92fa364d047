"""The command that measures launch configurations: tune."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.markup import escape

from search.cli.choices import MOST
from search.cli.console import Json, emit, out
from vortex_core.ir.crossover import BATCHES


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(tune)


def tune(
    flow: Annotated[str, typer.Argument(help="A library flow by name, or the path of a .py file.")],
    model: Annotated[
        str, typer.Option(help="Model by name, directory or hub id: its dimensions, no weights.")
    ],
    batch: Annotated[int, typer.Option(min=1, max=MOST, help="Sequences decoded together.")] = 16,
    context: Annotated[
        int,
        typer.Option(
            min=1, max=MOST, help="Tokens the page table holds; engines round it up to a power of two."
        ),
    ] = 32768,
    seconds: Annotated[float, typer.Option(min=1, help="When to stop trying candidates.")] = 30.0,
    page_size: Annotated[int | None, typer.Option(help="Page size; the flow's own by default.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Tokens a step may attend; the flow's own by default.")
    ] = None,
    crossover: Annotated[
        bool,
        typer.Option("--crossover", help="Measure below which length sequences should attend to everything."),
    ] = False,
    batches: Annotated[
        str, typer.Option(help="With --crossover: batches to measure, separated by commas.")
    ] = ",".join(map(str, BATCHES)),
    as_json: Json = False,
) -> None:
    """Measure how a flow's launches are best cut on this GPU, and keep it for every later compile.

    Tries tiles, blocks, warps and stages of the scoring and attention launches. Each must compute what the default
    does; one is kept only if it is more than 2% faster in two further measurements beside the default. The result
    holds for this program, page size, GPU, driver, torch and triton, and for batches and contexts that round up to
    the same powers of two; `vortex-search explain` says whether there is one. Results are files in
    $VORTEX_CACHE/tuning; delete one to go back to the defaults.

    With --crossover it times layers of the flow beside layers of dense attention instead, at contexts up to --context,
    and keeps for each batch the length from which the flow is faster by more than 2%. Engines attend to everything in
    sequences below it. Where nothing was measured they run the flow at every length.

    Examples:

        vortex-search tune quest --model qwen3-8b

        vortex-search tune ./my_flow.py --model qwen3-8b --batch 1 --context 131072 --seconds 60 --json

        vortex-search tune quest --model qwen3-8b --page-size 64 --budget 2048 --crossover
    """
    from search.commands.explain import dimensions
    from vortex_core import library
    from vortex_core.compiler.triton.tuning.tune import tune as measure

    traced = library.resolve(flow)
    changes: dict[str, Any] = {"page_size": page_size, "budget": budget}
    knobs = traced.knobs.with_(**{name: value for name, value in changes.items() if value is not None})
    if crossover:
        _crossover(traced.name, traced.program, knobs, model, batches, context, as_json)
        return

    def say(trial: Any) -> None:
        if not as_json:
            us = "        " if trial.us is None else f"{trial.us:8.1f}"
            out.print(
                f"{trial.part:6} {us} us  {_words(trial.config)}: {trial.outcome}",
                markup=False,
                soft_wrap=True,
            )

    found = measure(
        traced.program, knobs, dimensions(model).geometry(), batch=batch, context=context, seconds=seconds,
        report=say,
    )  # fmt: skip
    path = found.store()
    if as_json:
        emit({"flow": traced.name, "model": model, **found.to_json(), "file": path})
        return
    gain = (
        "the defaults are kept"
        if found.tuned.gain == 1
        else f"a step is {found.tuned.gain - 1:.1%} faster than with the defaults"
    )
    out.print(
        f"{escape(traced.name)}: {gain}, {found.tuned.step_us:.1f} us a layer; kept in {path}", soft_wrap=True
    )


def _crossover(
    name: str, program: Any, knobs: Any, model: str, batches: str, context: int, as_json: bool
) -> None:
    """`tune --crossover`."""
    from search.commands.explain import dimensions
    from search.errors import bad_value
    from vortex_core.compiler.triton.tuning.crossover import (
        crossover_path,
        measure_crossover,
        store_crossover,
    )

    if not all(part.isdigit() and 0 < int(part) <= MOST for part in batches.split(",")):
        raise bad_value("--batches", batches, "whole numbers from 1, separated by commas")

    def say(probe: Any) -> None:
        if not as_json:
            shape = f"{probe.batch:4} x {probe.context:7,}"
            times = f"{probe.sparse_us:8.1f} us the flow, {probe.dense_us:8.1f} us dense"
            out.print(
                f"{shape}  {times}: {'faster' if probe.wins else 'not faster'}", markup=False, soft_wrap=True
            )

    geometry = dimensions(model).geometry()
    wanted = sorted({int(part) for part in batches.split(",")})
    found = measure_crossover(program, knobs, geometry, batches=wanted, most=context, report=say)
    path = crossover_path(program, knobs, geometry)
    assert path is not None, "measured without a GPU"
    store_crossover(found, path)
    if as_json:
        emit({"flow": name, "model": model, **found.to_json(), "file": str(path)})
        return
    out.print(f"{name}: crossover {found.crossover.text}; kept in {path}", markup=False, soft_wrap=True)


def _words(config: Any) -> str:
    """A configuration in a line; that of a step was described by its parts."""
    values = asdict(config)
    if "score" in values:
        return "score, select, attend"
    return " ".join(f"{name}={value}" for name, value in values.items())

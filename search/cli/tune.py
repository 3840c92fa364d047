"""The command that measures launch configurations: tune."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.markup import escape

from search.cli.choices import MOST
from search.cli.console import Json, emit, out


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
    as_json: Json = False,
) -> None:
    """Measure how a flow's launches are best cut on this GPU, and keep it for every later compile.

    Tries tiles, blocks, warps and stages of the scoring and attention launches. Each must compute what the default
    does; one is kept only if it is more than 2% faster in two further measurements beside the default. The result
    holds for this program, page size, GPU, driver, torch and triton, and for batches and contexts that round up to
    the same powers of two; `vortex-search explain` says whether there is one. Results are files in
    $VORTEX_CACHE/tuning; delete one to go back to the defaults.

    Examples:

        vortex-search tune quest --model qwen3-8b

        vortex-search tune ./my_flow.py --model qwen3-8b --batch 1 --context 131072 --seconds 60 --json
    """
    from search.commands.explain import dimensions
    from vortex_core import library
    from vortex_core.compiler.triton.tuning.tune import tune as measure

    traced = library.resolve(flow)
    changes: dict[str, Any] = {"page_size": page_size, "budget": budget}
    knobs = traced.knobs.with_(**{name: value for name, value in changes.items() if value is not None})

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


def _words(config: Any) -> str:
    """A configuration in a line; that of a step was described by its parts."""
    values = asdict(config)
    if "score" in values:
        return "score, select, attend"
    return " ".join(f"{name}={value}" for name, value in values.items())

"""The command that serves a flow: serve."""

from __future__ import annotations

from typing import Annotated

import typer

from search.cli.console import Json, emit, out


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve)


def serve(
    context: typer.Context,
    target: Annotated[
        str, typer.Argument(help="A run, an exported folder, a library flow, or the path of a .py file.")
    ],
    rank: Annotated[int, typer.Option(min=1, help="Rank among the programs that a run found.")] = 1,
    winner: Annotated[bool, typer.Option("--winner", help="The winner of a run, whatever its rank.")] = False,
    model: Annotated[
        str | None, typer.Option(help="Model by name, directory or hub id; a run knows its own.")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KNOB=VALUE", help="Change a knob; may be repeated.")
    ] = None,
    prefill: Annotated[
        str | None, typer.Option(help="SGLang attention backend that prefills; SGLang's choice by default.")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="triton or torch; triton on a GPU, torch elsewhere by default.")
    ] = None,
    crossover: Annotated[
        str | None,
        typer.Option(
            metavar="BATCHxTOKENS,...",
            help="Below how many tokens sequences attend to everything, or off; what tune measured by default.",
        ),
    ] = None,
    python: Annotated[
        str | None,
        typer.Option(help="Interpreter of SGLang's environment; $VORTEX_SGLANG_PYTHON by default."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Serve a flow with SGLang: prints the command and runs it. Other options go to SGLang as they are.

    SGLang lives in an environment of its own; docs/serving.md says how to make it.

    Examples:

        vortex-search serve default-smollm2-135m-grammar-s0 --winner --port 30000

        vortex-search serve quest --model qwen3-8b --set budget=2048 --tp-size 2 --mem-fraction-static 0.8
    """
    from search.commands.serve import plan_launch
    from vortex_core.serving.launch import check_environment
    from vortex_core.serving.settings import Settings

    launch = plan_launch(
        target,
        rank=rank,
        winner=winner,
        changes=changes or (),
        model=model,
        settings=Settings("", prefill, backend, crossover=crossover),
        options=context.args,
        python=python,
    )
    if as_json:
        emit({"command": list(launch.arguments), "environment": launch.variables, "shell": launch.shell})
    else:
        out.print(launch.shell, markup=False, soft_wrap=True)
    if dry_run:
        return
    check_environment(launch.arguments[0])
    raise typer.Exit(launch.run())

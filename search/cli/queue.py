"""The command that hands programs to a campaign while it searches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.cli.console import Json, emit, out
from search.log.run import open_run, read_state
from vortex_core.text import markup

RunName = Annotated[str, typer.Argument(help="Name of a run, as listed in runs/.")]


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(enqueue)


def enqueue(
    run: RunName,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Programs of your own, one a file.")],
    idea: Annotated[str, typer.Option(help="What they try, in a sentence.")] = "",
    as_json: Json = False,
) -> None:
    """Hand programs of your own to a campaign while it searches: they are measured next, and may win.

    Each is checked first, and nothing is handed in unless all are legal. Other arms go on from them as from the
    library's. In a campaign that screens they answer whatever their rank on the screen, if they keep its gates. A run
    that is paused takes them when it goes on.

    Example:

        vortex-search enqueue default-smollm2-135m-grammar-s0 my_flow.py --idea "two means a page"
    """
    from search.campaign.queue import enqueue as hand_in
    from search.errors import bad_value, run_is_over, unknown_run
    from vortex_core.sandbox.load import trace_file

    with open_run(run, readonly=True) as opened:
        state = read_state(opened)
        if state.started is None:
            raise unknown_run(run, [])
        if state.finished is not None:
            raise run_is_over(run)
        folder = opened.folder
    traced = {path: trace_file(path) for path in files}
    for path, flow in traced.items():
        if flow.program.params:
            raise bad_value(
                "FILE", str(path), "a program without learned values: a campaign takes source alone"
            )
    handed = [
        {"file": str(path), "name": flow.name, "number": hand_in(folder, flow.source, idea)}
        for path, flow in traced.items()
    ]
    if as_json:
        emit({"run": run, "handed_in": handed})
        return
    for row in handed:
        out.print(f"handed in: {markup(row['name'])} ({markup(row['file'])})", soft_wrap=True)
    out.print(f"[dim]what came of them: vortex-search leaderboard {markup(run)}[/]", soft_wrap=True)

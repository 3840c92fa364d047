"""Commands that take a program away, and check what was taken: export, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.cli.console import Json, emit, out
from search.cli.opened import RunName, opened
from vortex_core.text import markup


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (export, shelve, verify):
        app.command()(command)


def shelve(
    run: RunName,
    name: Annotated[str, typer.Option(help="What the program is to be called.")],
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of the shelf.")] = Path("found"),
    as_json: Json = False,
) -> None:
    """Put a run's winner on a shelf, if it held against the library at equal cost: on sealed items, on another model.

    Writes NAME.py, which is a flow as any (a reference of the next campaign), and NAME.json: who proposed it, after how
    many tries, against what, on which machine. The project's own shelf is `vortex_core/library/found`.

    Example:

        vortex-search shelve default-smollm2-135m-grammar-s0 --name slow_bands
    """
    from search.commands.export import choose
    from search.commands.shelve import shelve as write

    with opened(run) as it:
        entry = choose(it.archive, run, winner=True)
        written = write(it.run, it.state, it.config, entry, name, out_folder)
    if as_json:
        emit(
            {"run": run, "name": name, "id": entry.candidate.label, "files": [str(path) for path in written]}
        )
        return
    for path in written:
        out.print(f"wrote {markup(str(path))}", soft_wrap=True)


def export(
    run: RunName,
    rank: Annotated[int, typer.Option(min=1, help="Rank among the programs found.")] = 1,
    winner: Annotated[
        bool, typer.Option("--winner", help="The winner of the finals, whatever its rank.")
    ] = False,
    out_folder: Annotated[Path | None, typer.Option("--out", help="Folder to write.")] = None,
    force: Annotated[bool, typer.Option(help="Replace an earlier export in that folder.")] = False,
    as_json: Json = False,
) -> None:
    """Export a program: source, IR, kernels, measurements, scripts that check and serve it, a wheel, checksums.

    Also as a vortex_torch program where that system can say it, with the reason where it cannot. `--force` replaces an
    earlier export and removes nothing else; what was changed there since is kept as NAME.kept.

    Example:

        vortex-search export default-smollm2-135m-grammar-s0 --winner --out winner

        vortex-search verify winner
    """
    from search.commands.export import choose
    from search.commands.export import export as write_export

    with opened(run) as it:
        entry = choose(it.archive, run, rank, winner=winner)
        folder = out_folder or Path(f"{run}-winner" if winner else f"{run}-rank{rank}")
        write_export(it.run, it.state, it.config, entry, folder, force=force)
        candidate = entry.candidate
    if as_json:
        emit(
            {
                "run": run,
                "rank": entry.rank,
                "id": candidate.label,
                "name": candidate.name,
                "out": str(folder),
            }
        )
    else:
        out.print(f"{candidate.label} {markup(candidate.name)} written to {folder}", soft_wrap=True)


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that export wrote.")],
    quick: Annotated[bool, typer.Option("--quick", help="Do not load the model.")] = False,
    as_json: Json = False,
) -> None:
    """Check an exported folder: checksums, meaning, parity, cost, and its measurements again.

    Answers are compared item by item with those recorded, decode speed by its intervals. Exit status 0: all agrees;
    1: something does not; 2: it could not be checked.

    Example:

        vortex-search verify winner
    """
    from search.commands.verify import main

    raise typer.Exit(main(folder, [*(["--quick"] if quick else []), *(["--json"] if as_json else [])]))

"""Commands on this machine: models and doctor."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from search.cli.console import Json, emit, err, out, show_table
from vortex_core.text import markup

_MARKS = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "problem": "[red]problem[/]", "info": "-"}


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    models = typer.Typer(
        invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
    )
    models.callback()(list_models)
    models.command()(fetch)
    app.add_typer(models, name="models")
    app.command()(doctor)


def list_models(context: typer.Context, as_json: Json = False) -> None:
    """List the models that are described, and what keeps each from running here.

    Any local directory or hub id in Hugging Face layout works as well, wherever --model is asked for.

    Examples:

        vortex-search models

        vortex-search models fetch smollm2-135m
    """
    if context.invoked_subcommand is not None:
        return
    from vortex_core.engine.models.memory import gib
    from vortex_core.engine.models.status import model_status
    from vortex_core.specs import list_models as names

    found = [model_status(name) for name in names()]
    if as_json:
        emit([_status_json(status) for status in found])
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("model", "parameters", "bf16 weights", "runs here", "what is missing"):
        table.add_column(column)
    for status in found:
        table.add_row(
            status.name,
            f"{status.parameters / 1e9:.2f} B",
            gib(status.memory_needed),
            "no" if status.missing else "[green]yes[/]",
            escape("; ".join([*status.missing, *([] if status.present else [f"get it: {status.command}"])])),
        )
    show_table(table)


def _status_json(status: Any) -> dict[str, Any]:
    return {
        "name": status.name,
        "hf_id": status.hf_id,
        "parameters": status.parameters,
        "directory": str(status.directory) if status.directory else None,
        "disk_bytes": status.disk_bytes,
        "memory_needed": status.memory_needed,
        "memory": vars(status.memory),
        "present": status.present,
        "fits": status.fits,
        "missing": status.missing,
        "command": status.command,
    }


def fetch(
    name: Annotated[str, typer.Argument(help="A described model; see `vortex-search models`.")],
    as_json: Json = False,
) -> None:
    """Bring a model's weights to this machine. Does nothing if they are here.

    Example:

        vortex-search models fetch smollm2-135m
    """
    from vortex_core.engine.models.weights import fetch_model

    with err.status(f"fetching {markup(name)}"):
        found = fetch_model(name)
    if as_json:
        emit({"name": found.spec.name, "directory": str(found.directory)})
    else:
        out.print(f"{found.spec.name} is in {found.directory}", markup=False, soft_wrap=True)


def doctor(
    model: Annotated[str, typer.Option(help="Model whose weights are looked for.")] = "smollm2-135m",
    as_json: Json = False,
) -> None:
    """Check this machine: versions, hardware, weights, keys, hub, sandbox, import names.

    Runs a hostile flow and expects the jail to refuse it. Exit status 1 if something is broken.

    Example:

        vortex-search doctor --json
    """
    from search.commands.doctor import examine

    with err.status("looking around"):
        findings = examine(model)
    broken = [finding for finding in findings if finding.level == "problem"]
    if as_json:
        emit({"ok": not broken, "findings": [vars(finding) for finding in findings]})
    else:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=False)
        for finding in findings:
            words = escape(finding.words) + (f"\n[dim]{escape(finding.remedy)}[/]" if finding.remedy else "")
            table.add_row(_MARKS[finding.level], finding.name, words)
        show_table(table)
    if broken:
        raise typer.Exit(1)

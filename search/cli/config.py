"""The command on configurations: config show."""

from __future__ import annotations

from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from search.cli import choices
from search.cli.console import Json, duration, emit, out, show_table


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    config = typer.Typer(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
    config.callback()(about)
    config.command()(show)
    app.add_typer(config, name="config")


def about() -> None:
    """Campaigns and evaluation plans as they would run."""


def show(
    campaign: choices.Campaign = None,
    model: choices.Model = None,
    accuracy_model: choices.AccuracyModel = None,
    random_weights: choices.RandomWeights = None,
    proposer: choices.Proposer = None,
    plan: choices.Plan = None,
    target: choices.Target = None,
    max_candidates: choices.MaxCandidates = None,
    time_budget: choices.TimeBudget = None,
    address: choices.Address = None,
    device: choices.Device = None,
    gpus: choices.Gpus = None,
    tp: choices.TensorParallel = None,
    engines: choices.Engines = None,
    changed: Annotated[bool, typer.Option("--changed", help="Leave out what is a default.")] = False,
    as_json: Json = False,
) -> None:
    """Print every effective value of a campaign and of its evaluation plan, and where it comes from.

    Takes the options of a campaign. Says what keeps it from running on this machine. Nothing is loaded or started.

    Examples:

        vortex-search config show --model glm-4.7-flash

        vortex-search config show --campaign gpu --gpus 2 --json
    """
    from search.campaign.options import Options
    from search.commands.config_show import show as find

    found = find(
        Options(
            campaign=campaign,
            model=model,
            accuracy_model=accuracy_model,
            random_weights=random_weights,
            proposer=proposer,
            evaluation=plan,
            target=target,
            max_candidates=max_candidates,
            seconds=None if time_budget is None else duration(time_budget),
            address=address,
            device=device,
            gpus=gpus,
            tensor_parallel=tp,
            engines=engines,
        )
    )
    values = [v for v in found.values if not changed or v.source != "default"]
    if as_json:
        emit(
            {
                "campaign": found.campaign,
                "why": found.why,
                "run": found.run,
                "here": found.here,
                "missing": [error.to_json() for error in found.missing],
                "values": {v.key: {"value": v.value, "source": v.source} for v in values},
            }
        )
        return
    why = f" ({found.why})" if found.why else ""
    out.print(f"campaign {found.campaign}{why}, run {found.run}", markup=False, soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("key", "value", "from"):
        table.add_column(column, overflow="fold")
    for value in values:
        shown = "-" if value.value is None else str(value.value)
        table.add_row(
            value.key, escape(shown), escape(value.source), style="dim" if value.source == "default" else ""
        )
    show_table(table)
    if found.here:
        out.print(f"here: {found.here}", soft_wrap=True)
    for error in found.missing:
        out.print(f"[yellow]missing here:[/] {escape(str(error))}", soft_wrap=True)

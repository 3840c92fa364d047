"""The root command, which runs a campaign, and the entry point."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Annotated

import typer
from typer import rich_utils
from typer.exceptions import TyperException

from search.cli import (
    bench,
    certify,
    choices,
    config,
    exports,
    flows,
    live,
    logs,
    machine,
    queue,
    reading,
    runs,
    serving,
    tools,
    tune,
)
from search.cli.console import Json, duration, emit, fail, out
from search.cli.failures import as_coded
from search.cli.streams import abandon
from search.errors import bad_command, unusable_file

_NARROWEST = 40
if shutil.get_terminal_size().columns < _NARROWEST:
    rich_utils.MAX_WIDTH = _NARROWEST  # help in fewer columns is no words at all
app = typer.Typer(
    name="vortex-search",
    no_args_is_help=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
)
flows.add_to(app)
reading.add_to(app)
exports.add_to(app)
live.add_to(app)
logs.add_to(app)
queue.add_to(app)
machine.add_to(app)
serving.add_to(app)
certify.add_to(app)
bench.add_to(app)
tune.add_to(app)
tools.add_to(app)
config.add_to(app)


@app.callback(invoke_without_command=True)
def campaign(
    context: typer.Context,
    model: choices.Model = None,
    campaign: choices.Campaign = None,
    accuracy_model: choices.AccuracyModel = None,
    random_weights: choices.RandomWeights = None,
    plan: choices.Plan = None,
    target: choices.Target = None,
    proposer: choices.Proposer = None,
    run: Annotated[str | None, typer.Option(help="Name of the run; the same name resumes it.")] = None,
    max_candidates: choices.MaxCandidates = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of proposals and evaluation items.")] = 0,
    time_budget: choices.TimeBudget = None,
    max_dollars: Annotated[float | None, typer.Option(min=0, help="Cap on what proposers may cost.")] = None,
    max_tokens: choices.MaxTokens = None,
    max_evaluations: choices.MaxEvaluations = None,
    gpu_budget: choices.GpuBudget = None,
    max_calls: Annotated[int | None, typer.Option(min=0, help="Cap on calls of models.")] = None,
    replay: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Run the recorded programs of RUN again, in order; asks no model."),
    ] = None,
    lessons: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN", help="Tell proposers what RUN found out. May be repeated."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what models are expected to cost, and stop.")
    ] = False,
    address: choices.Address = None,
    device: choices.Device = None,
    gpus: choices.Gpus = None,
    tp: choices.TensorParallel = None,
    engines: choices.Engines = None,
    as_json: Json = False,
) -> None:
    """Discover a sparse-attention algorithm: propose programs, measure them, feed the best back.

    Without a command this runs a campaign. The same command line resumes it after Ctrl-C or a crash and
    repeats nothing that was finished. It ends with a leaderboard, a report and an exported winner in
    runs/NAME/.

    Examples:

        vortex-search

        vortex-search --model smollm2-135m --max-candidates 60 --run long

        vortex-search --model qwen3-8b --gpus 2 --time-budget 30m

        vortex-search --proposer anthropic:claude-sonnet-4-5 --max-dollars 5

        vortex-search leaderboard long
    """
    if context.invoked_subcommand is not None:
        return
    from search.campaign.options import Options

    options = Options(
        campaign=campaign,
        model=model,
        accuracy_model=accuracy_model,
        random_weights=random_weights,
        proposer=proposer,
        evaluation=plan,
        target=target,
        run=run,
        seed=seed,
        max_candidates=max_candidates,
        seconds=None if time_budget is None else duration(time_budget),
        dollars=max_dollars,
        tokens=max_tokens,
        evaluations=max_evaluations,
        gpu_seconds=None if gpu_budget is None else duration(gpu_budget, "--gpu-budget"),
        calls=max_calls,
        replay=replay,
        lessons=tuple(lessons or ()),
        address=address,
        device=device,
        gpus=gpus,
        tensor_parallel=tp,
        engines=engines,
    )
    if dry_run:
        from search.commands.dry_run import estimate_costs, in_words

        found = estimate_costs(options)
        if as_json:
            emit(found)
        else:
            out.print(in_words(found), markup=False, soft_wrap=True)
        return
    runs.run_and_conclude(options, as_json=as_json)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with 0, 1 (failed), 2 (bad input) or 130 (interrupted)."""
    given = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in given
    try:
        os.getcwd()  # noqa: PTH109  nothing is loaded, read or written from a folder that was removed
    except OSError as error:
        fail(unusable_file("the current folder", error.strerror or "it is gone"), as_json=as_json)
    try:
        status = app(args=given, prog_name="vortex-search", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # who read it has seen enough
        abandon(sys.stdout)
        raise SystemExit(1) from None
    except (KeyboardInterrupt, typer.Abort):
        raise SystemExit(130) from None
    except TyperException as error:
        fail(bad_command(_words(error)), as_json=as_json)
    except Exception as error:  # noqa: BLE001  whatever it is, it ends in one code
        fail(as_coded(error), as_json=as_json)
    if status:
        raise SystemExit(status)


def _words(error: TyperException) -> str:
    """What is wrong with a command line; a group of commands without one raises its whole help."""
    said = str(error)
    return "a command is missing" if "Usage:" in said or not said.strip() else said

"""Commands on single flows: check, explain, convert, evaluate, flows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from evaluators.results import StageResult
from search.cli import choices
from search.cli.choices import MOST
from search.cli.console import Json, emit, err, out, show_table
from search.tables import metric
from vortex_core.errors import VortexError
from vortex_core.flow.trace import Traced
from vortex_core.text import markup

Flow = Annotated[str, typer.Argument(help="A library flow by name, or the path of a .py file.")]
Model = Annotated[str, typer.Option(help="Model by name, directory or hub id.")]


TARGETS = ("sm_90a", "sm_100a")  # of `vortex_core.kernels.offline`, which imports Triton


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (check, explain, convert, evaluate, flows):
        app.command()(command)


def check(
    flow: Flow,
    model: Model = "qwen3-8b",
    target: Annotated[
        str, typer.Option(help="Also compile its kernels for a GPU that need not be here: sm_90a or sm_100a.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Trace a flow in the jail and verify it. Nothing of it runs outside.

    Errors name the line, the rule, one remedy and, where a script can tell, the mended line. Exit status 0 if the flow
    is legal. Page states are shown as the model's memory holds them, as a share of its keys and values.

    With --target its kernels are compiled, which takes seconds: registers, spills and shared memory are shown, and what
    the GPU could not run is refused with the limit.

    Examples:

        vortex-search check quest

        vortex-search check ./my_flow.py --json

        vortex-search check quest --model qwen3-8b --target sm_90a
    """
    from search.commands.check import kernel_lines, kernel_rows, state_lines, state_rows
    from vortex_core import library

    if target not in ("", *TARGETS):
        raise typer.BadParameter(f"{target} is none of {', '.join(TARGETS)}", param_hint="--target")
    traced = library.resolve(flow)
    kernels = kernel_rows(traced, model, target) if target else []
    if as_json:
        found = {**_identity(traced), "program": traced.program.to_json()}
        emit({**found, "page_states": state_rows(traced, model), **({"kernels": kernels} if target else {})})
        return
    out.print(f"[green]ok[/] {escape(traced.name)}  IR {traced.ir_hash}, with knobs {traced.key}")
    for line in state_lines(state_rows(traced, model)):
        out.print(escape(line), soft_wrap=True)
    for line in kernel_lines(kernels, target) if target else []:
        out.print(escape(line), soft_wrap=True)
    out.print(
        "knobs: " + ", ".join(f"{k}={v}" for k, v in traced.knobs.to_json().items()),
        markup=False,
        soft_wrap=True,
    )
    for warning in traced.warnings:
        out.print(f"[yellow]{escape(str(VortexError.from_json(warning)))}[/]", soft_wrap=True)


def _identity(traced: Traced) -> dict[str, Any]:
    return {
        "name": traced.name,
        "doc": traced.doc,
        "ir_hash": traced.ir_hash,
        "key": traced.key,
        "knobs": traced.knobs.to_json(),
        "warnings": list(traced.warnings),
    }


def explain(
    flow: Flow,
    model: Model = "smollm2-135m",
    gpu: Annotated[str, typer.Option(help="GPU by name (configs/hardware).")] = "h200",
    batch: Annotated[int, typer.Option(min=1, max=MOST, help="Sequences decoded together.")] = 32,
    length: Annotated[int, typer.Option(min=1, max=MOST, help="Tokens in each sequence.")] = 32768,
    changes: choices.Changes = None,
    as_json: Json = False,
) -> None:
    """Say what one decode step of a flow costs: launches, bytes by source, FLOPs, roofline time.

    Everything here is modelled from the program and the true dimensions of the model; no weights, no GPU. One line
    says how the launches would be cut on this machine: as `vortex-search tune` found best, or by default.

    Example:

        vortex-search explain quest --model qwen3-8b --gpu h200 --length 65536 --set budget=2048
    """
    from search.commands.explain import explanation, launch_rows, rows, sentences
    from search.commands.serve import with_knobs
    from vortex_core import library
    from vortex_core.specs import load_gpu

    traced = with_knobs(library.resolve(flow), changes or ())
    found = explanation(traced, model, load_gpu(gpu), batch=batch, length=length, flow=flow)
    if as_json:
        emit(found)
        return
    out.print(
        f"[bold]{escape(traced.name)}[/] on {markup(model)}, {gpu}, batch {batch}, {length:,} tokens (modelled)"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("one decode step, one layer")
    table.add_column("", justify="right")
    for name, value in rows(found):
        table.add_row(name, value)
    show_table(table)
    launches = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("launch", "does", "apart because"):
        launches.add_column(name)
    for name in ("bytes", "FLOPs", "roofline"):
        launches.add_column(name, justify="right", no_wrap=True)
    for row in launch_rows(found):
        launches.add_row(*row)
    show_table(launches)
    for words in sentences(found):
        out.print(words, soft_wrap=True)


def convert(
    file: Annotated[Path, typer.Argument(help="A program written for vortex_torch.", show_default=False)],
    knobs: Annotated[
        Path | None, typer.Option(help="Its JSON settings; by default the .json file of its name beside it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the source here instead of printing it.")] = None,
    as_json: Json = False,
) -> None:
    """Write a vortex_torch program as the equivalent vFlow source.

    The program is read unchanged, in the jail. The source is traced back and printed or written only if it is
    the same program with the same knobs, by hash.

    Examples:

        vortex-search convert batch_0_id0.py > my_flow.py

        vortex-search convert batch_0_id0.py --knobs settings.json --out my_flow.py
    """
    from search.commands.convert import convert as convert_program

    found = convert_program(file, knobs, out)
    if as_json:
        emit(found.to_json())
        return
    said = f"{escape(found.flow.name)}  IR {found.flow.ir_hash}, with knobs {found.flow.key}"
    if found.written is None:
        typer.echo(found.flow.source, nl=False)
    err.print(f"[green]ok[/] {said}" + ("" if out is None else f", written to {escape(str(out))}"))
    for warning in found.flow.warnings:
        err.print(f"[yellow]{escape(str(VortexError.from_json(warning)))}[/]", soft_wrap=True)


def evaluate(
    flow: Flow,
    model: Model = "smollm2-135m",
    plan: choices.Plan = None,
    campaign: choices.Campaign = None,
    changes: choices.Changes = None,
    device: choices.Device = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the items.")] = 0,
    as_json: Json = False,
) -> None:
    """Measure one flow as a campaign would, in this process, by the campaign's plan and gates.

    Exit status 0 if every stage passed and every gate was kept, 1 if not; the reason is part of the result.

    Examples:

        vortex-search evaluate ./my_flow.py --model smollm2-135m

        vortex-search evaluate quest --set budget=1024 --set page_size=16 --device cuda
    """
    from search.campaign.options import Options, resolve
    from search.campaign.session import plan_of
    from search.commands.evaluation import asked_at, evaluate_once, judge
    from search.commands.serve import with_knobs
    from vortex_core import library

    traced = with_knobs(library.resolve(flow), changes or ())
    chosen = resolve(Options(campaign=campaign, model=model, evaluation=plan, device=device))
    settings, where = plan_of(chosen.config), chosen.config.cluster.device
    if not as_json:
        knobs = ", ".join(f"{k}={v}" for k, v in traced.knobs.to_json().items())
        out.print(f"{traced.name} on {model}: {knobs}", markup=False, soft_wrap=True)
        out.print(f"plan {settings.name}: {asked_at(settings)}", markup=False, soft_wrap=True)
    with err.status("starting") as status:

        def on_stage(name: str) -> None:
            status.update(f"stage {name}")
            if not err.is_terminal and not as_json:  # nobody sees the status: say where the minutes go
                err.print(f"... {name}")

        results = evaluate_once(traced, model, settings, seed, on_stage, device=where)
    verdict = judge(results, chosen.config.objective)
    if as_json:
        emit(
            {
                **_identity(traced),
                "model": model,
                "campaign": chosen.campaign,
                "plan": settings.name,
                "passed": verdict.passed,
                "verdict": verdict.word,
                "open_points": list(verdict.open_points),
                "devices": list(verdict.devices),
                "stages": [r.to_json() for r in results],
            }
        )
    else:
        _print_results(results)
        measured = f" on {', '.join(verdict.devices)}" if verdict.devices else ""
        out.print(f"gates of campaign {chosen.campaign}: {verdict.word}{measured}", soft_wrap=True)
        for point in verdict.open_points:
            out.print(f"  {escape(point)}", soft_wrap=True)
    if not verdict.passed:
        raise typer.Exit(1)


def _print_results(results: Sequence[StageResult]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("stage", "seconds", "metric", "value and 95% interval", "unit"):
        table.add_column(column)
    for result in results:
        first = [result.stage, f"{result.seconds:.2f}"]
        for name, value in result.metrics.items():
            table.add_row(*first, name, metric(value), value.unit)
            first = ["", ""]
        if not result.metrics:
            table.add_row(*first, "passed" if result.passed else "[yellow]stopped[/]", "", "")
    show_table(table)
    for result in results:
        if result.failure is not None:
            out.print(f"[yellow]stopped at {result.stage}[/]")
            out.print(escape(str(VortexError.from_json(result.failure.error))), soft_wrap=True)


def flows(as_json: Json = False) -> None:
    """List the published algorithms that come with the project.

    Example:

        vortex-search flows

        vortex-search check quest
    """
    from vortex_core import library

    found = [library.load(name) for name in (*library.names(), *library.found_names())]
    if as_json:
        emit([_identity(traced) for traced in found])
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("flow", "what it is", "states", "page", "budget"):
        table.add_column(column)
    for traced in found:
        states = ", ".join(s.name for s in traced.program.states) or "none"
        words = traced.doc.strip().partition("\n")[0]
        table.add_row(traced.name, escape(words), states, str(traced.knobs.page_size), traced.knobs.budget)
    show_table(table)
    out.print(f"sources: {Path(library.__file__).parent}", soft_wrap=True)

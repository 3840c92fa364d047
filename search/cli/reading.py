"""Commands that read runs: leaderboard, show, compare, report."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.syntax import Syntax

from search.campaign.archive import score
from search.cli.console import Json, emit, out, print_table
from search.cli.opened import Opened, RunName, opened, overview, print_overview
from search.errors import bad_value
from search.log.events import CampaignStarted
from search.log.run import find_candidate, open_run, recorded_campaign
from search.log.state import Candidate
from search.report.program import program_page
from search.tables import as_csv, as_markdown, entries_table, metric, with_tiers
from vortex_core.errors import VortexError
from vortex_core.text import MAX_MESSAGE, MAX_SOURCE, markup, visible_lines


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (leaderboard, show, compare, report):
        app.command()(command)


def leaderboard(
    run: RunName,
    limit: Annotated[int | None, typer.Option(min=1, help="Found programs to show at most.")] = None,
    wide: Annotated[bool, typer.Option("--wide", help="Every column, as wide as it takes.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="A table for a document.")] = False,
    as_json: Json = False,
) -> None:
    """Rank everything a run has measured, beside dense and the library flows.

    Gates first, then speed; programs measured again on fresh items lead, because only those numbers are
    free of selection. Members of a tier tie: no interval tells them from its first. A star marks the Pareto
    front. Fits 80 columns. Reading never disturbs a run that is under way.

    Examples:

        vortex-search leaderboard default-smollm2-135m-grammar-s0 --limit 10

        vortex-search leaderboard default-smollm2-135m-grammar-s0 --csv > ranking.csv
    """
    if sum((wide, csv, markdown, as_json)) > 1:
        raise bad_value("--wide, --csv, --markdown, --json", "several", "one of them")
    if not (as_json or csv or markdown or wide) and _print_of_many(run, limit):
        return
    with opened(run) as it:
        if as_json:
            rows = with_tiers(it.archive, limit)
            emit({"schema": "vortex-search/leaderboard/1", **overview(it), "rows": rows})
        elif csv:
            typer.echo(as_csv(it.archive, limit), nl=False)
        elif markdown:
            typer.echo(as_markdown(it.archive, limit))
        else:
            print_overview(it, limit, wide=wide)


def _print_of_many(name: str, limit: int | None) -> bool:
    """The leaders of a run with very many candidates, as its driver keeps them: reading the whole log would take
    minutes. False where the run is small, or nobody kept them up to its last event."""
    from search.campaign.live import read_board, read_live

    with open_run(name, readonly=True) as run:
        live = read_live(run.folder)
        if live is None or live.stands.get("candidates", 0) < _MANY:
            return False
        if not live.alive and live.seq != run.store.end[0]:
            return False
        first = next(record.event for record in run.store.read())
        assert isinstance(first, CampaignStarted)
        objective = recorded_campaign(first).objective
        try:
            entries = read_board(run.folder, objective, limit or _SHOWN)
        except (sqlite3.Error, ValueError, KeyError, TypeError, AttributeError, VortexError):
            return False  # what is no driver's ranking; the log says it too
    print_table(entries_table(entries, objective), wide=False)
    stands = live.stands
    when = f"as of {live.age:.0f} s ago, " if live.alive else ""
    out.print(
        f"{name}: {when}{stands['programs']} distinct programs in {stands['candidates']} candidates "
        f"({stands['stopped']} stopped by a stage), {stands['active_seconds']:.0f} s of work; "
        f"{len(entries)} shown, more with --limit, all with --json",
        soft_wrap=True,
    )
    return True


_MANY = 2000
_SHOWN = 100


def show(
    run: RunName,
    wanted: Annotated[
        str, typer.Argument(metavar="ID", help="c012, 12, a key (or 6 digits of it), or a name.")
    ],
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Also the Triton kernels generated for the run's model.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show one candidate: source, measurements, where it came from, why it stopped.

    With --kernels also the Triton kernels generated for the run's model, and the hash that an export lists them under.

    Example:

        vortex-search show default-smollm2-135m-grammar-s0 c012
    """
    with opened(run) as it:
        candidate = find_candidate(it.run, it.state, wanted)
        source = it.run.files.get(candidate.source, ".py")
        page = program_page(it.run, candidate, it.config, kernels=kernels)
        if as_json:
            drawn = {name: value for name, value in page.items() if name != "picture"}
            emit(
                {
                    "schema": "vortex-search/candidate/1",
                    **_candidate_json(it, candidate, source),
                    "page": drawn,
                }
            )
            return
        out.print(f"[bold]{candidate.label} {markup(candidate.name)}[/]  {candidate.status()}")
        for title, text in (
            ("idea", candidate.idea or candidate.doc),
            ("from", f"{candidate.arm} by {candidate.proposer}"),
            ("parents", ", ".join(_labels(it, candidate.parents)) or "none"),
            ("children", ", ".join(_children(it, candidate)) or "none"),
            ("identity", f"IR {candidate.ir_hash}, with knobs {candidate.key}"),
            ("knobs", ", ".join(f"{k}={v}" for k, v in candidate.knobs.items())),
        ):
            out.print(f"{title}: {markup(text, MAX_MESSAGE)}", soft_wrap=True)
        scored = score(candidate, it.config.objective)
        if scored is not None:
            out.print(f"gates: {scored.verdict.name.lower()}")
            for words in scored.broken:
                out.print(f"  {markup(words)}")
        for purpose, results in candidate.results.items():
            for result in results.values():
                state = "" if result.passed else "  [yellow]stopped here[/]"
                out.print(f"[bold]{markup(result.stage)}[/] ({purpose}, {result.seconds:.2f} s){state}")
                for name, value in result.metrics.items():
                    out.print(f"  {markup(name)}: {metric(value)} {markup(value.unit, 40)}", soft_wrap=True)
                if result.failure is not None:
                    error = result.failure.error
                    out.print(
                        f"  {markup(error.get('code'), 20)}: {markup(error.get('message'), MAX_MESSAGE)}",
                        soft_wrap=True,
                    )
        _print_page(page)
        _print_source("source, as its author wrote it", visible_lines(source, MAX_SOURCE))
        if "simple" in page:
            _print_source("simplified, as the canonical program writes it", page["simple"])
        if (found := page.get("kernels")) is not None:
            _print_kernels(found)


def _print_kernels(found: dict[str, Any]) -> None:
    if "why" in found:
        out.print(f"[bold]no generated kernels[/]: {markup(found['why'], MAX_MESSAGE)}", soft_wrap=True)
        return
    about = f"for {found['model']}, pages of {found['page_size']} tokens, SHA-256 {found['sha256']}"
    _print_source(f"generated kernels {markup(about, MAX_MESSAGE)}", found["text"])


def _print_source(title: str, text: str) -> None:
    out.print(f"[bold]{title}[/]")
    # Under a pipe it is text for a file or another program: no padding, no colour.
    if out.is_terminal:
        out.print(Syntax(text, "python", background_color="default"))
    else:
        out.print(text, markup=False, soft_wrap=True)


def _print_page(page: dict[str, Any]) -> None:
    """What follows from the program itself: words, formula, launches."""
    if "why" in page:
        out.print(f"its program cannot be read by this version: {markup(page['why'])}", soft_wrap=True)
        return
    out.print("[bold]in words[/]")
    for words in page["says"]:
        out.print(f"  {markup(words, MAX_MESSAGE)}", soft_wrap=True)
    out.print("[bold]formula[/] (p page, h query head, t token, d channel, r row)")
    for stage, text, _ in page["formula"]:
        out.print(f"  {markup(stage)}: {markup(text, MAX_MESSAGE)}", soft_wrap=True)
    if page.get("pays"):
        _print_pays(page["pays"])
    if page["launches"]:
        out.print("[bold]launches of a sparse layer[/] (modelled: H200, 32 sequences of 32,768 tokens)")
        for launch in page["launches"]:
            size = f"{launch['bytes'] / 2**20:9.2f} MiB {launch['us']:9.2f} us"
            out.print(f"  {launch['name']:7}{size}  {launch['does']}", markup=False, soft_wrap=True)


def _print_pays(found: dict[str, Any]) -> None:
    """Modelled speed-up over dense by batch and context."""
    out.print(f"[bold]where it pays[/] (modelled: {found['gpu'].upper()}, times dense by batch and context)")
    out.print("  batch" + "".join(f"{n:>9,}" for n in found["contexts"]), markup=False)
    for batch, row in zip(found["batches"], found["speedups"], strict=True):
        cells = "".join(f"{'-' if v is None else f'{v:.2f}':>9}" for v in row)
        out.print(f"  {batch:5}{cells}", markup=False)


def _candidate_json(it: Opened, candidate: Candidate, source: str) -> dict[str, Any]:
    found = score(candidate, it.config.objective)
    return {
        "id": candidate.label,
        "name": candidate.name,
        "status": candidate.status(),
        "reference": candidate.reference,
        "idea": candidate.idea,
        "doc": candidate.doc,
        "arm": candidate.arm,
        "proposer": candidate.proposer,
        "parents": list(_labels(it, candidate.parents)),
        "children": _children(it, candidate),
        "ir_hash": candidate.ir_hash,
        "key": candidate.key,
        "knobs": candidate.knobs,
        "verdict": found.verdict.name.lower() if found else None,
        "gates": list(found.broken) if found else [],
        "results": {
            purpose: [result.to_json() for result in results.values()]
            for purpose, results in candidate.results.items()
        },
        "source": source,
        "program": it.run.files.get_json(candidate.program),
    }


def _labels(it: Opened, keys: tuple[str, ...]) -> Iterator[str]:
    for key in keys:
        if key in it.state.candidates:
            parent = it.state.candidates[key]
            yield f"{parent.label} {parent.name}"


def _children(it: Opened, candidate: Candidate) -> list[str]:
    return [f"{c.label} {c.name}" for c in it.state.candidates.values() if candidate.key in c.parents]


def compare(
    run_a: Annotated[str, typer.Argument(metavar="RUN_A", help="Name of a run.")],
    run_b: Annotated[str, typer.Argument(metavar="RUN_B", help="Name of another.")],
    as_json: Json = False,
) -> None:
    """Set two runs side by side: their best, paired on the items that both answered, and what each took.

    The best of a run is its winner, or its first rank where the finals chose none. Answers are paired only where model,
    tasks and seeds agree, so that both were asked the same; otherwise that is said and nothing is concluded.

    Example:

        vortex-search compare evolved-s0 evolved-s1
    """
    from search.commands.compare import compare_runs

    with opened(run_a) as a, opened(run_b) as b:
        found = compare_runs((a.run, a.state, a.config), (b.run, b.state, b.config))
    if as_json:
        emit({"schema": "vortex-search/compare/1", **found.to_json()})
        return
    for row in found.rows():
        out.print(markup(f"{row[0]:24.24} {row[1]:>26.26} {row[2]:>26.26}").rstrip(), soft_wrap=True)
    for words in found.words:
        out.print(markup(words, MAX_MESSAGE), soft_wrap=True)


def report(
    run: RunName,
    out_file: Annotated[Path | None, typer.Option("--out", help="File to write.")] = None,
    as_json: Json = False,
) -> None:
    """Write the report of a run as one self-contained HTML file.

    Frontier with intervals, sortable leaderboard, each program with formula and measurements, progress of each arm,
    lineage with differences, costs, and what did not work. It loads nothing from a network.

    Example:

        vortex-search report default-smollm2-135m-grammar-s0 --out report.html
    """
    from search.report import write_report

    with opened(run) as it:
        page = write_report(it.run, it.state, it.config, out_file or it.run.folder / "report.html")
    if as_json:
        emit({"run": run, "report": str(page), "bytes": page.stat().st_size})
    else:
        out.print(str(page), soft_wrap=True)

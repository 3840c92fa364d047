"""Commands on a run's record: status, fsck, compact, tables."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich import box
from rich.table import Table

from search.campaign.live import Live, read_live
from search.cli.console import Json, emit, out
from search.log.run import campaign_of, open_run, read_state, run_names, runs_root
from vortex_core.text import MAX_MESSAGE, markup

RunName = Annotated[str, typer.Argument(help="Name of a run, as listed in runs/.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (status, fsck, compact, tables):
        app.command()(command)


def status(run: RunName, as_json: Json = False) -> None:
    """Say what a campaign is doing: what runs where, what waits, how fast it goes and when it may end.

    Reads what the driver writes every second; a campaign that is not running is read from its log. Never disturbs it.

    Example:

        vortex-search status default-smollm2-135m-grammar-s0
    """
    with open_run(run, readonly=True) as opened:
        live = read_live(opened.folder)
        if live is None:
            live = _from_log(opened)
    if as_json:
        emit(
            {
                "run": run,
                "alive": live.alive,
                "age_seconds": round(live.age, 1) if math.isfinite(live.age) else None,
                "seq": live.seq,
                **live.stands,
            }
        )
        return
    _print_status(run, live)


def _from_log(opened: Any) -> Live:
    """Where a run stands by its log alone."""
    from search.campaign.live import LiveView

    state = read_state(opened)
    config = campaign_of(state) if state.started is not None else None
    if config is None:
        from search.errors import unknown_run

        raise unknown_run(opened.name, [n for n in run_names() if n != opened.name])
    view = LiveView.__new__(LiveView)
    view._config = config
    from collections import deque

    view._finished = deque([(time.time(), state.finished_found)])
    return Live(state.seq, float("inf"), view._stands(state, time.time()))


def _print_status(run: str, live: Live) -> None:
    s = live.stands
    doing = s["phase"] if live.alive or s["finished"] else f"not running (last seen: {s['phase']})"
    out.print(f"[bold]{markup(run)}[/]: {doing}" + (f", {markup(s['finished'])}" if s["finished"] else ""))
    eta = s.get("eta_seconds")
    out.print(
        f"{s['programs']}/{s['programs_wanted']} programs, {s['candidates']} candidates ({s['stopped']} stopped), "
        f"{s['proposals']} proposals; {s['per_minute']:.1f} candidates a minute"
        + (f", about {_span(eta)} to go" if live.alive and eta is not None else ""),
        soft_wrap=True,
    )
    out.print(
        f"{s['active_seconds']:.0f} s of work, {s['gpu_seconds']:.0f} GPU-seconds, ${s['dollars']:.4f}, "
        f"{s['infrastructure_failures']} failures of the infrastructure",
        soft_wrap=True,
    )
    if not live.alive:
        return
    queue = ", ".join(f"{count} for {kind}" for kind, count in s.get("queue", {}).items() if count)
    out.print(
        f"engines: {s.get('engines', '?')} for this campaign, {s.get('coming', 0)} coming; "
        f"waiting: {queue or 'nothing'}; {s.get('turns', 0)} candidates wait for a turn"
        + (f"; {n} programs handed in" if (n := s.get("handed_in")) else ""),
        soft_wrap=True,
    )
    if len(s.get("campaigns", {})) > 1:
        spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in s["campaigns"].items())
        out.print(f"sharing these engines: {markup(spent, MAX_MESSAGE)}", soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("worker", "stage", "candidate", "since"):
        table.add_column(column, overflow="fold")
    idle = 0
    for worker in s.get("workers", []):
        if not worker["doing"]:
            idle += 1
            continue
        _, stage, key, since = worker["doing"]
        table.add_row(markup(worker["name"]), markup(stage), markup(key[:8]), _span(time.time() - since))
    if table.row_count:
        out.print(table)
    out.print(
        f"{idle} workers idle; logs in {runs_root() / run / 'logs'} or where errors say", soft_wrap=True
    )


def _span(seconds: float) -> str:
    seconds = int(seconds)
    hours, minutes = seconds // 3600, seconds // 60
    return (
        f"{hours} h {minutes % 60} min"
        if hours
        else f"{minutes} min {seconds % 60} s"
        if minutes
        else f"{seconds} s"
    )


def fsck(
    run: RunName,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also verify every program again; milliseconds each.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check that a run is as it was written: database, chain of events, their meaning, and every text they name.

    Changes nothing, and may be used while the campaign runs. Exits with 1 if anything is damaged.

    Example:

        vortex-search fsck default-smollm2-135m-grammar-s0 --deep
    """
    from search.errors import damaged_run
    from search.log.fsck import check_run

    with open_run(run, readonly=True) as opened:
        found = check_run(opened, deep=deep)
    if as_json:
        emit(
            {
                "run": run,
                "events": found.events,
                "texts": found.texts,
                "candidates": found.candidates,
                "problems": found.problems,
                "findings": [vars(finding) for finding in found.findings],
            }
        )
        if found.problems:
            raise typer.Exit(1)
        return
    for finding in found.findings:
        colour = "red" if finding.level == "problem" else "yellow"
        out.print(f"[{colour}]{finding.level}[/] {markup(finding.what, MAX_MESSAGE)}", soft_wrap=True)
        if finding.remedy:
            out.print(f"  {markup(finding.remedy, MAX_MESSAGE)}", soft_wrap=True)
    out.print(
        f"{run}: {found.events} events, {found.candidates} candidates, {found.texts} texts checked, "
        f"{found.problems or 'no'} problems",
        soft_wrap=True,
    )
    if found.problems:
        raise damaged_run(run, found.problems)


def compact(run: RunName, as_json: Json = False) -> None:
    """Pack a run that rests: the same events and texts in a fraction of the space. It can be resumed as before.

    Example:

        vortex-search compact default-smollm2-135m-grammar-s0
    """
    from search.errors import unknown_run
    from search.log.compact import compact as pack

    if run not in run_names():
        raise unknown_run(run, run_names())
    with open_run(run, readonly=False) as opened:
        done = pack(opened)
    if as_json:
        emit({"run": run, **vars(done)})
        return
    out.print(
        f"{run}: {done.before / 1e6:.1f} MB, now {done.after / 1e6:.1f} MB; {done.events} events and "
        f"{done.texts} texts packed",
        soft_wrap=True,
    )


def tables(
    run: RunName,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    form: Annotated[Literal["parquet", "csv"], typer.Option("--format", help="Of the files.")] = "parquet",
    as_json: Json = False,
) -> None:
    """Write a run as tables for other tools: candidates, measurements, proposals, parts, events.

    Example:

        vortex-search tables default-smollm2-135m-grammar-s0 --out tables --format csv
    """
    from search.log.frames import write_frames

    with open_run(run, readonly=True) as opened:
        rows = write_frames(opened, read_state(opened), out_folder, form)
    if as_json:
        emit({"run": run, "out": str(out_folder), "format": form, "rows": rows})
        return
    for name, count in rows.items():
        out.print(f"{out_folder / f'{name}.{form}'}: {count} rows", soft_wrap=True)

"""Commands on runs: the campaign itself, leaderboard, show, report, export."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.syntax import Syntax

from search.campaign.archive import Archive, score
from search.campaign.parts import incomparable
from search.campaign.parts import words as part_words
from search.cli.console import Json, emit, err, out, show_table
from search.config import CampaignConfig, load_proposer
from search.log.events import CampaignStarted
from search.log.run import Run, campaign_of, find_candidate, open_run, read_state, run_names, runs_root
from search.log.state import CampaignState, Candidate
from search.machine import device_words
from search.tables import busy_words, entries_table, metric
from search.tables import leaderboard as leaderboard_table
from vortex_core.text import MAX_MESSAGE, MAX_SOURCE, markup, visible_lines

if TYPE_CHECKING:
    from search.campaign.session import Options

RunName = Annotated[str, typer.Argument(help="Name of a run, as listed in runs/.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (leaderboard, show, report, export):
        app.command()(command)


@dataclass(frozen=True)
class _Opened:
    run: Run
    state: CampaignState
    config: CampaignConfig
    archive: Archive


@contextmanager
def _opened(name: str) -> Iterator[_Opened]:
    """A run for reading."""
    with open_run(name, readonly=True) as run:
        state = read_state(run)
        if state.started is None:
            from search.errors import unknown_run

            raise unknown_run(name, [n for n in run_names() if n != name])
        config = campaign_of(state)
        yield _Opened(run, state, config, Archive(state, config.objective))


def run_and_conclude(options: Options, *, as_json: bool) -> None:
    """Run a campaign, then write report and winner and print the leaderboard."""
    from search.campaign.progress import Progress
    from search.campaign.session import resolve, run_campaign
    from search.commands.export import models_in_words

    resolved = resolve(options)
    config, name = resolved.config, resolved.run_name(options)
    proposer = load_proposer(config.proposer)

    def begin(campaign: CampaignConfig, title: str) -> Progress:
        # Only now is everything known to be sound: a mistake gets its one message and nothing before it.
        models = models_in_words(campaign.model_dump())
        err.print(f"{name}: {campaign.description} Model {models}.", markup=False, soft_wrap=True)
        if resolved.why:
            err.print(f"campaign {resolved.campaign}: {resolved.why}", markup=False, soft_wrap=True)
        limits = campaign.limits
        if limits.seconds is not None and limits.finals_seconds > limits.seconds / 3:
            kept = f"{limits.seconds / 3:.0f} s of {limits.seconds:g} s are kept for the finals"
            err.print(
                f"{kept}; the campaign's file asks for {limits.finals_seconds:g} s",
                markup=False,
                soft_wrap=True,
            )
        err.print(f"proposer {campaign.proposer}: {proposer.description or proposer.spec}", markup=False)
        return Progress(err, campaign, title)

    try:
        run_campaign(options, begin, said=lambda words: err.print(f"{name}: {words}", markup=False))
    except KeyboardInterrupt:
        again = shlex.join(["vortex-search", *sys.argv[1:]])
        err.print(f"\nPaused. Every finished evaluation is kept in {runs_root() / name}.", soft_wrap=True)
        err.print(f"The same command goes on: {again}", markup=False, soft_wrap=True)
        raise
    _conclude(name, as_json=as_json)


def _conclude(name: str, *, as_json: bool) -> None:
    from search.commands.export import export as write_export
    from search.commands.export import is_export
    from search.report import write_report

    with _opened(name) as it:
        page = write_report(it.run, it.state, it.config, it.run.folder / "report.html")
        entry, folder, winner = it.archive.winner, it.run.folder / "winner", None
        if entry is not None:
            winner = write_export(it.run, it.state, it.config, entry, folder, force=True)
        elif is_export(folder):  # a run that was taken further may have lost its winner
            shutil.rmtree(folder)
        summary = it.state.finished.summary if it.state.finished else {}
        if as_json:
            exported = str(winner) if winner else None
            emit({**_overview(it), "summary": summary, "report": str(page), "exported": exported})
            return
        _print_overview(it, limit=15)
        out.print(f"[bold]{markup(summary.get('statement', ''), MAX_MESSAGE)}[/]", soft_wrap=True)
        for key in ("against_matched", "against_control", "sealed"):
            if summary.get(key):
                out.print(
                    f"{key.replace('_', ' ')}: {markup(summary[key]['words'], MAX_MESSAGE)}", soft_wrap=True
                )
        for served in summary.get("serving", ()):
            out.print(f"in SGLang: {markup(served['words'])}", soft_wrap=True)
        if summary.get("control"):
            out.print(f"control: {markup(summary['control']['words'], MAX_MESSAGE)}", soft_wrap=True)
        out.print(f"report: {page}", soft_wrap=True)
        if winner is not None and entry is not None:
            out.print(f"exported: {winner} ({entry.candidate.label}, the winner)", soft_wrap=True)
        elif it.archive.ranked(1) is not None:
            out.print(f"no winner; the best so far: vortex-search export {name} --rank 1", soft_wrap=True)


def leaderboard(
    run: RunName,
    limit: Annotated[int | None, typer.Option(min=1, help="Found programs to show at most.")] = None,
    as_json: Json = False,
) -> None:
    """Rank everything a run has measured, beside dense and the library flows.

    Gates first, then speed; programs measured again on fresh items lead, because only those numbers are
    free of selection. A star marks the Pareto front. Reading never disturbs a run that is under way.

    Example:

        vortex-search leaderboard default-smollm2-135m-grammar-s0 --limit 10
    """
    if not as_json and _print_of_many(run, limit):
        return
    with _opened(run) as it:
        if as_json:
            emit({**_overview(it), "rows": it.archive.rows()})
            return
        _print_overview(it, limit)


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
        objective = CampaignConfig.model_validate(first.settings["campaign"]).objective
        entries = read_board(run.folder, objective, limit or _SHOWN)
    out.print(entries_table(entries, objective))
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


def _overview(it: _Opened) -> dict[str, Any]:
    state = it.state
    return {
        "run": it.run.name,
        "model": it.config.model,
        "accuracy_model": it.config.accuracy_model,
        "random_weights": it.config.random_weights,
        "devices": state.devices,
        "parts": [
            {
                "session": part.session,
                "results": part.results,
                "versions": part.versions,
                "machine": part.machine,
                "engines": part.engines,
                "differs": incomparable(state).get(part.session, []),
            }
            for part in state.parts
        ],
        "gpu_seconds": round(state.gpu_seconds, 1),
        "busy_seconds": {name: round(spent, 1) for name, spent in state.busy.items()},
        "finished": state.finished.reason if state.finished else None,
        "winner": state.candidates[state.finished.winner].label
        if state.finished and state.finished.winner
        else None,
        "candidates": len(state.found),
        "distinct_programs": state.distinct_programs,
        "proposals": len(state.proposals),
        "active_seconds": round(state.active_seconds, 1),
        "dollars": round(state.dollars, 6),
        "stage_seconds": {name: round(spent.seconds, 2) for name, spent in state.stage_time.items()},
        "proposers": {name: vars(spent) for name, spent in state.spending.items()},
    }


def _print_overview(it: _Opened, limit: int | None) -> None:
    state = it.state
    show_table(leaderboard_table(it.archive, limit))
    stopped = sum(1 for c in state.found if c.status() == "failed")
    abandoned = sum(1 for c in state.found if c.status() == "infrastructure")
    given_up = f", {abandoned} given up for failures of the infrastructure" if abandoned else ""
    minutes = max(state.active_seconds / 60, 1e-9)
    out.print(
        f"{it.run.name}: {state.distinct_programs} distinct programs in {len(state.found)} candidates "
        f"({stopped} stopped by a stage{given_up}), {state.active_seconds:.0f} s of work, "
        f"{len(state.found) / minutes:.1f} candidates a minute"
        + (f", ${state.dollars:.4f}" if state.dollars else ""),
        soft_wrap=True,
    )
    measured = device_words(state.devices)
    if measured:
        busy = busy_words(state)
        out.print(f"measured on {measured}" + (f"; {busy}" if busy else ""), markup=False, soft_wrap=True)
    for words in part_words(state):
        out.print(words, markup=False, soft_wrap=True)
    longest = sorted(state.stage_time.items(), key=lambda item: -item[1].seconds)
    out.print(
        "time: " + ", ".join(f"{name} {spent.seconds:.0f} s" for name, spent in longest), soft_wrap=True
    )
    if state.finished is None:
        out.print(f"not finished; resume it with its own command line, or read on: show {it.run.name} ID")


def show(
    run: RunName,
    wanted: Annotated[
        str, typer.Argument(metavar="ID", help="c012, 12, a key (or 6 digits of it), or a name.")
    ],
    as_json: Json = False,
) -> None:
    """Show one candidate: source, measurements, where it came from, why it stopped.

    Example:

        vortex-search show default-smollm2-135m-grammar-s0 c012
    """
    with _opened(run) as it:
        candidate = find_candidate(it.run, it.state, wanted)
        source = it.run.files.get(candidate.source, ".py")
        if as_json:
            emit(_candidate_json(it, candidate, source))
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
        found = score(candidate, it.config.objective)
        if found is not None:
            out.print(f"gates: {found.verdict.name.lower()}")
            for words in found.broken:
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
        out.print(Syntax(visible_lines(source, MAX_SOURCE), "python", background_color="default"))


def _candidate_json(it: _Opened, candidate: Candidate, source: str) -> dict[str, Any]:
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


def _labels(it: _Opened, keys: tuple[str, ...]) -> Iterator[str]:
    for key in keys:
        if key in it.state.candidates:
            parent = it.state.candidates[key]
            yield f"{parent.label} {parent.name}"


def _children(it: _Opened, candidate: Candidate) -> list[str]:
    return [f"{c.label} {c.name}" for c in it.state.candidates.values() if candidate.key in c.parents]


def report(
    run: RunName,
    out_file: Annotated[Path | None, typer.Option("--out", help="File to write.")] = None,
    as_json: Json = False,
) -> None:
    """Write the report of a run as one self-contained HTML file.

    Pareto plot with error bars, leaderboard with sources, progress of each arm, lineage, time by stage,
    proposer costs, and what did not work. It loads nothing from a network.

    Example:

        vortex-search report default-smollm2-135m-grammar-s0 --out report.html
    """
    from search.report import write_report

    with _opened(run) as it:
        page = write_report(it.run, it.state, it.config, out_file or it.run.folder / "report.html")
    if as_json:
        emit({"run": run, "report": str(page), "bytes": page.stat().st_size})
    else:
        out.print(str(page), soft_wrap=True)


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
    """Export a program with its measurements and a script that checks them.

    Writes flow.py, knobs.json, program.json, card.json, card.md, README.md and verify.py.

    Example:

        vortex-search export default-smollm2-135m-grammar-s0 --winner --out winner

        python winner/verify.py
    """
    from search.commands.export import choose
    from search.commands.export import export as write_export

    with _opened(run) as it:
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

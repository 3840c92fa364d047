"""The campaign itself: run it, then write report and winner and print the leaderboard."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

from search.cli.console import emit, err, out
from search.cli.opened import opened, overview, print_overview
from search.config import CampaignConfig, load_proposer
from search.log.run import runs_root
from vortex_core.text import MAX_MESSAGE, markup

if TYPE_CHECKING:
    from search.campaign.options import Options


def run_and_conclude(options: Options, *, as_json: bool) -> None:
    """Run a campaign, then write report and winner and print the leaderboard."""
    from search.campaign.options import resolve
    from search.campaign.progress import Progress
    from search.campaign.session import run_campaign
    from search.commands.card import models_in_words

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
        if limits.seconds is not None and limits.kept_for_finals < limits.finals_seconds:
            kept = f"{limits.kept_for_finals:.0f} s of {limits.seconds:g} s are kept for the finals"
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
    from search.commands.export import is_export, remove_export
    from search.report import write_report

    with opened(name) as it:
        page = write_report(it.run, it.state, it.config, it.run.folder / "report.html")
        entry, folder, winner = it.archive.winner, it.run.folder / "winner", None
        if entry is not None:
            winner = write_export(it.run, it.state, it.config, entry, folder, force=True)
        elif is_export(folder):  # a run that was taken further may have lost its winner
            remove_export(folder)
        summary = it.state.finished.summary if it.state.finished else {}
        if as_json:
            exported = str(winner) if winner else None
            emit({**overview(it), "summary": summary, "report": str(page), "exported": exported})
            return
        print_overview(it, limit=15)
        statement = summary.get("statement", "")
        out.print(f"[bold]{markup(statement, MAX_MESSAGE)}[/]", soft_wrap=True)
        for key in ("against_library", "against_matched", "against_control", "sealed"):
            if summary.get(key) and summary[key]["words"] not in statement:
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

"""The first sentences of a report: what won, by how much, how sure that is, and where it was measured."""

from __future__ import annotations

from search.campaign.archive import Archive, Entry, Verdict
from search.config import CampaignConfig
from search.machine import device_words
from search.tables import metric

_PROOF = {
    Verdict.PROVEN: "every gate is kept by its whole 95% interval",
    Verdict.UNCLEAR: "the gates are kept by the values, not by their whole 95% intervals",
    Verdict.FAILED: "a gate is broken",
}


def headline(archive: Archive, config: CampaignConfig) -> list[str]:
    """Sentences; the first one alone is true."""
    state, winner = archive.state, archive.winner
    if state.finished is None:
        return [
            "This campaign has not finished; nothing was measured on fresh items: no program has been shown to win.",
            *([f"The best so far: {_numbers(best, config)}."] if (best := archive.ranked(1)) else []),
        ]
    if winner is None:
        said = str(state.finished.summary.get("statement") or "No program won.")
        return [
            said,
            *([f"The best found: {_numbers(best, config)}."] if (best := archive.ranked(1)) else []),
        ]
    where = device_words(state.devices) or "a machine that was not recorded"
    weights = " with random weights" if config.random_weights else ""
    answers = f", answers of {config.accuracy_model}" if config.accuracy_model else ""
    first = (
        f"Winner: {_numbers(winner, config)}; {_PROOF[winner.score.verdict]}. Model {config.model}{weights}{answers}, "
        f"engines on {where}."
    )
    lines = [first]
    summary = state.finished.summary
    if (twin := summary.get("same_program_as")) is not None:
        lines.append(f"Its program is that of {twin}; only the knobs differ.")
    for title, key in (
        ("Against the best library flow", "against_library"),
        ("Against that flow with the winner's knobs", "against_matched"),
        ("Against the best of the control", "against_control"),
        ("On the sealed items, looked at once", "sealed"),
    ):
        if summary.get(key):
            lines.append(f"{title}: {summary[key]['words']}.")
    lines += [f"In SGLang: {served['words']}." for served in summary.get("serving", ())]
    if summary.get("control"):
        lines.append(f"Evolution against its control: {summary['control']['words']}.")
    return lines


def _numbers(entry: Entry, config: CampaignConfig) -> str:
    c, s = entry.candidate, entry.score
    how = "modelled, not measured" if s.speed.how == "modelled" else s.speed.how
    speed = metric(s.speed).replace(f" ({s.speed.how})", "")
    fresh = "fresh items" if s.purpose == "fresh" else "the items that the search selected on"
    return (
        f"{c.label} {c.name}: {config.objective.speed} {speed} of dense ({how}), "
        f"{config.objective.accuracy} {metric(s.accuracy)} on {fresh}"
    )

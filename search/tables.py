"""Results as text: numbers with their intervals, and the leaderboard."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.table import Table

from evaluators.results import Metric
from search.campaign.archive import Archive, Entry, Verdict, sealed_verdict
from search.campaign.parts import incomparable, marked
from search.config import Objective
from search.log.state import CampaignState
from vortex_core.text import markup

VERDICTS = {
    "PROVEN": "[green]kept[/]",
    "UNCLEAR": "[yellow]kept, unproven[/]",
    "FAILED": "[red]broken[/]",
}


def metric(found: Metric | None, digits: int = 3) -> str:
    """A metric with its interval and, unless it was measured, how it came about."""
    if found is None:
        return "-"
    text = number(found.value, digits)
    if found.low is not None and found.high is not None:
        text += f" [{number(found.low, digits)}, {number(found.high, digits)}]"
    return text if found.how == "measured" else f"{text} ({markup(found.how, 40)})"


def number(value: float, digits: int = 3) -> str:
    """A number to read: thousands whole, the rest with `digits` decimals."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}f}"


def busy_words(state: CampaignState) -> str:
    """Each engine's share of the working time that it spent in stages, or nothing where no engine is named."""
    seconds = max(state.active_seconds, 1e-9)
    return ", ".join(f"{name} busy {spent / seconds:.0%}" for name, spent in sorted(state.busy.items()))


def leaderboard(archive: Archive, limit: int | None = None) -> Table:
    """The ranking as a table: found programs beside dense and the library flows.

    Args:
        limit: found programs to show at most; references are always shown.
    """
    objective, other = archive.objective, incomparable(archive.state)
    table = entries_table(list(_shown(archive.entries, limit)), objective, other)
    for candidate in archive.stopped_references:
        metrics = candidate.metrics()
        shown = ("accuracy", objective.accuracy, objective.speed, "decode_speedup", "density")
        table.add_row(
            "-",
            candidate.label,
            markup(candidate.name),
            "library",
            f"[red]{markup(candidate.ended)}[/]",
            *(metric(metrics.get(name)) for name in shown),
            "search",
            style="dim",
        )
    return table


def entries_table(
    entries: Iterable[Entry], objective: Objective, other: dict[int, list[str]] | None = None
) -> Table:
    """Ranked candidates as a table.

    Args:
        other: sessions whose numbers carry a mark, with the reasons (`search.campaign.parts`).
    """
    table = Table(box=box.SIMPLE_HEAD, title=None, pad_edge=False)
    table.add_column("#", justify="right")
    for column in ("id", "name", "from", "gates"):
        table.add_column(column, overflow="fold")
    for column in ("accuracy", objective.accuracy, objective.speed, "decode", "density"):
        table.add_column(column, justify="right")
    table.add_column("items")
    for entry in entries:
        cells = _cells(entry, objective)
        if marked(entry.candidate, other or {}, entry.score.purpose):
            cells[7] += " †"  # speed
        table.add_row(*cells, style="dim" if entry.candidate.reference else "")
    return table


def _shown(entries: Iterable[Entry], limit: int | None) -> Iterable[Entry]:
    found = 0
    for entry in entries:
        found += not entry.candidate.reference
        if limit is None or entry.candidate.reference or found <= limit:
            yield entry


def _cells(entry: Entry, objective: Objective) -> list[str]:
    c, s = entry.candidate, entry.score
    metrics = {**c.metrics(), **c.metrics(s.purpose)}
    star = "*" if entry.front == 0 else ""
    gates = VERDICTS[s.verdict.name]
    if sealed_verdict(c, objective) is Verdict.FAILED:
        gates += ", [red]broken on sealed items[/]"
    return [
        f"{entry.rank or '-'}{star}",
        c.label,
        markup(c.name),
        "library" if c.reference else markup(c.arm),
        gates,
        metric(metrics.get("accuracy")),
        metric(s.accuracy),
        metric(s.speed),
        metric(metrics.get("decode_speedup")),
        metric(metrics.get("density")),
        s.purpose,
    ]

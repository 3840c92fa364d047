"""Results as text: numbers with their intervals, and the leaderboard."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from evaluators.results import Metric
from search.campaign.archive import Archive, Entry, Verdict, sealed_verdict
from search.campaign.parts import incomparable, marked
from search.campaign.tiers import tiers
from search.config import Objective
from search.log.state import CampaignState
from vortex_core.text import cell, markdown, markup, visible

GATES = {Verdict.PROVEN: "kept", Verdict.UNCLEAR: "kept, unproven", Verdict.FAILED: "broken"}
VERDICTS = {"PROVEN": "[green]kept[/]", "UNCLEAR": "[yellow]kept, unproven[/]", "FAILED": "[red]broken[/]"}


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


_SHORT = {"PROVEN": "[green]kept[/]", "UNCLEAR": "[yellow]kept?[/]", "FAILED": "[red]broken[/]"}


def leaderboard(archive: Archive, limit: int | None = None) -> Table:
    """The ranking in 80 columns: found programs beside dense and the library flows.

    Args:
        limit: found programs to show at most; references are always shown.
    """
    table = entries_table(
        list(_shown(archive.entries, limit)), archive.objective, incomparable(archive.state)
    )
    for c in archive.stopped_references:
        table.add_row("-", "-", c.label, markup(c.name, 40), "[red]stopped[/]", "-", "-", style="dim")
    return table


def entries_table(
    entries: Sequence[Entry], objective: Objective, other: dict[int, list[str]] | None = None
) -> Table:
    """The first of a ranking as a table of 80 columns.

    Args:
        other: sessions whose numbers carry a mark, with the reasons (`search.campaign.parts`).
    """
    tier = tiers(entries)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), collapse_padding=True)
    for name, justify in (("#", "right"), ("tier", "right"), ("id", "left")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("name", overflow="ellipsis", no_wrap=True, ratio=1)
    for name in ("gates", "accuracy", "speed"):
        table.add_column(name, justify="left" if name == "gates" else "right", no_wrap=True)
    for entry in entries:
        c, s = entry.candidate, entry.score
        broken = sealed_verdict(c, objective) is Verdict.FAILED
        mark = "†" if marked(c, other or {}, s.purpose) else ""
        table.add_row(
            f"{entry.rank or '-'}{'*' if entry.front == 0 else ''}",
            str(tier[c.key]),
            c.label,
            markup(c.name, 40),
            "[red]sealed![/]" if broken else _SHORT[s.verdict.name],
            _brief(s.accuracy),
            _brief(s.speed) + mark,
            style="dim" if c.reference else "",
        )
    return table


def fit_name(table: Table, width: int, least: int = 10) -> bool:
    """Cut the names of a ranking so that its numbers stay whole; False where even names of `least` are too wide."""
    console = Console(width=1_000)
    others = [
        max(Measurement.get(console, console.options, cell).maximum for cell in (c.header, *c.cells))
        for c in table.columns
        if c.header != "name"
    ]
    left = width - sum(others) - len(others)
    if left < least:
        return False
    for column in table.columns:
        if column.header == "name":
            column.ratio, column.max_width = None, left
    return True


def captions(archive: Archive) -> list[str]:
    """What the short columns mean, in console markup."""
    how = next((e.score.speed.how for e in archive.entries), "measured")
    line = (
        f"accuracy: {archive.objective.accuracy}; speed: {archive.objective.speed}, {how}; 95% intervals. "
        "kept?: by value, not by the whole interval. sealed!: broken on the sealed items. *: Pareto front. "
        "Same tier: not told apart."
    )
    return [f"[dim]{line}[/]"]


def _brief(found: Metric) -> str:
    """Two decimals, with the interval."""
    return metric(found, 2).replace(f" ({found.how})", "").replace("[", "\\[")


def wide(archive: Archive, limit: int | None = None) -> Table:
    """The ranking with every column."""
    table = Table(box=box.SIMPLE_HEAD, title=None, pad_edge=False)
    for name in _columns(archive):
        left = name in ("id", "name", "from", "gates", "items")
        table.add_column(name, no_wrap=True, justify="left" if left else "right")
    for row in _rows(archive, limit):
        table.add_row(*(markup(value) for value in row))
    return table


def as_csv(archive: Archive, limit: int | None = None) -> str:
    """The ranking for a spreadsheet: value, low and high apart; text is never a formula."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    measured = _measured(archive)
    writer.writerow(
        [*_HEAD, *(f"{name}{end}" for name in measured for end in ("", "_low", "_high")), "how", "items"]
    )
    for line in with_tiers(archive, limit):
        texts = [line["rank"], line.get("tier"), line["id"], line["name"], line["arm"], line["verdict"]]
        numbers: list[object] = []
        for name in measured:
            found = line["metrics"].get(name) or {}
            numbers += [found.get(part) for part in ("value", "low", "high")]
        how = line.get("speed", {}).get("how")
        cells = [
            cell(v) if isinstance(v, str) else v for v in (*texts, *numbers, how, line.get("measured_on"))
        ]
        writer.writerow(["" if v is None else v for v in cells])
    return file.getvalue()


def as_markdown(archive: Archive, limit: int | None = None) -> str:
    """The ranking as a table for a document."""
    names = _columns(archive)
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    lines += [f"| {' | '.join(markdown(value) for value in row)} |" for row in _rows(archive, limit)]
    return "\n".join(lines)


def with_tiers(archive: Archive, limit: int | None = None) -> list[dict[str, Any]]:
    """The ranking as plain values, each row with its tier; at most `limit` found programs."""
    tier, shown = tiers(archive.entries), 0
    found: list[dict[str, Any]] = []
    for line in archive.rows():
        shown += line["rank"] is not None
        if limit is None or line["rank"] is None or shown <= limit:
            found.append({**line, "tier": tier.get(line["key"])})
    return found


_HEAD = ("rank", "tier", "id", "name", "from", "gates")


def _measured(archive: Archive) -> list[str]:
    objective = archive.objective
    names = (
        "accuracy",
        objective.accuracy,
        objective.speed,
        "decode_speedup",
        "recall",
        "density",
        "perplexity_ratio",
    )
    return list(dict.fromkeys(names))


def _columns(archive: Archive) -> list[str]:
    return [*_HEAD, *_measured(archive), "items"]


def _rows(archive: Archive, limit: int | None) -> list[list[str]]:
    """Every row of the wide table as plain text."""
    tier, names = tiers(archive.entries), _measured(archive)
    rows = []
    for entry in _shown(archive.entries, limit):
        c, s = entry.candidate, entry.score
        metrics = {**c.metrics(), **c.metrics(s.purpose)}
        gates = GATES[s.verdict]
        if sealed_verdict(c, archive.objective) is Verdict.FAILED:
            gates += ", broken on sealed items"
        head = [
            f"{entry.rank or '-'}{'*' if entry.front == 0 else ''}",
            str(tier[c.key]),
            c.label,
            visible(c.name),
        ]
        head += ["library" if c.reference else visible(c.arm), gates]
        rows.append([*head, *(metric(metrics.get(name)) for name in names), s.purpose])
    for c in archive.stopped_references:
        found = c.metrics()
        rows.append(
            [
                "-",
                "-",
                c.label,
                visible(c.name),
                "library",
                c.ended,
                *(metric(found.get(n)) for n in names),
                "search",
            ]
        )
    return rows


def _shown(entries: Iterable[Entry], limit: int | None) -> Iterable[Entry]:
    found = 0
    for entry in entries:
        found += not entry.candidate.reference
        if limit is None or entry.candidate.reference or found <= limit:
            yield entry

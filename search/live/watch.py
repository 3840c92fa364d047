"""The terminal's view of a run under way."""

from __future__ import annotations

import time
from collections import Counter

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from search.campaign.archive import Archive
from search.config import CampaignConfig
from search.live.follow import Follower, stage_of
from search.log.entries import Candidate
from search.log.state import CampaignState
from search.tables import busy_words, fit_name, leaderboard
from vortex_core.text import visible

_ROWS = 12
WIDTH = 80
"""Columns that the view takes."""


def view(name: str, state: CampaignState, config: CampaignConfig) -> Group:
    """What is shown: where it stands, what was tried, the ranking's head, what goes on."""
    limits = config.limits
    done, wanted = state.finished_found, limits.candidates
    share = min(1.0, done / wanted) if wanted else 0.0
    bar = "█" * round(30 * share) + "░" * (30 - round(30 * share))
    what = "candidates" if config.screen is None else "candidates answered"
    lines = [Text(f"{name}: {stage_of(state)}", style="bold"), Text(f"{bar} {done} of {wanted} {what}")]
    if config.screen is not None:
        lines.append(Text(f"{state.screened_programs} of {config.screen.programs} programs screened"))
    minutes = max(state.active_seconds / 60, 1e-9)
    lines.append(
        Text(
            f"{state.active_seconds:.0f} s of work, {len(state.found) / minutes:.1f} candidates a minute, "
            f"${state.dollars:.4f}, {len(state.proposals)} proposals"
        )
    )
    outcomes = Counter(p.outcome for p in state.proposals.values())
    lines.append(Text(", ".join(f"{n} {word}" for word, n in outcomes.most_common()) or "no proposal yet"))
    if words := busy_words(state):
        lines.append(Text(words))
    waiting = [c for c in state.found if _under_way(c, config)]
    if waiting:
        shown = ", ".join(f"{c.label} {visible(c.name, 30)}" for c in waiting[:4])
        lines.append(
            Text(f"under way: {shown}" + (f", and {len(waiting) - 4} more" if len(waiting) > 4 else ""))
        )
    table: Table = leaderboard(Archive(state, config.objective), _ROWS)
    fit_name(table, WIDTH)
    return Group(*lines, Text(""), table)


def _under_way(c: Candidate, config: CampaignConfig) -> bool:
    """Whether a candidate waits for results; one that was screened and left has none to wait for."""
    if config.screen is None:
        return c.status() == "waiting"
    return any(c.status(purpose) == "waiting" for purpose in ("screen", *c.promoted))


def watch(
    console: Console, follower: Follower, config: CampaignConfig, every: float, *, once: bool = False
) -> None:
    """Show a run until it is finished; without a terminal, one line whenever something happened.

    Args:
        every: seconds between looks at the log.
        once: show it as it is and return.
    """
    name, state = follower.run.name, follower.state
    if once:
        console.print(view(name, state, config), width=min(console.width, WIDTH))
        return
    if not console.is_terminal:
        _lines(console, follower, every)
        return
    with Live(view(name, state, config), console=console, refresh_per_second=2, screen=False) as live:
        while state.finished is None:
            time.sleep(every)
            if follower.news():
                live.update(view(name, state, config))


def _lines(console: Console, follower: Follower, every: float) -> None:
    state = follower.state
    while True:
        console.print(
            f"{follower.run.name}: {stage_of(state)}, {state.finished_found} candidates, event {state.seq}",
            markup=False,
            soft_wrap=True,
        )
        if state.finished is not None:
            return
        while not follower.news():
            time.sleep(every)

"""An opened run, and what every reading command says of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from search.campaign.archive import Archive
from search.campaign.parts import incomparable
from search.campaign.parts import words as part_words
from search.cli.console import out, print_table
from search.config import CampaignConfig
from search.log.run import Run, campaign_of, open_run, read_state, run_names
from search.log.state import CampaignState
from search.machine import device_words
from search.tables import busy_words, captions
from search.tables import leaderboard as leaderboard_table
from search.tables import wide as wide_table

RunName = Annotated[str, typer.Argument(help="Name of a run, as listed in runs/.")]


@dataclass(frozen=True)
class Opened:
    run: Run
    state: CampaignState
    config: CampaignConfig
    archive: Archive


@contextmanager
def opened(name: str) -> Iterator[Opened]:
    """A run for reading."""
    with open_run(name, readonly=True) as run:
        state = read_state(run)
        if state.started is None:
            from search.errors import unknown_run

            raise unknown_run(name, [n for n in run_names() if n != name])
        config = campaign_of(state)
        yield Opened(run, state, config, Archive(state, config.objective))


def overview(it: Opened) -> dict[str, Any]:
    """The same as plain values."""
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


def print_overview(it: Opened, limit: int | None, *, wide: bool = False) -> None:
    """The ranking and what it took, for people."""
    state = it.state
    table = wide_table(it.archive, limit) if wide else leaderboard_table(it.archive, limit)
    print_table(table, wide=wide)
    for line in captions(it.archive):
        out.print(line, soft_wrap=True)
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

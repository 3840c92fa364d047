"""What a person sees: lines without a terminal, a panel with one; text of programs is never markup."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import pytest
from rich.console import Console

from evaluators.results import Metric
from search.campaign.campaign import Campaign
from search.campaign.progress import Progress
from search.config import CampaignConfig
from search.log import events as ev
from search.log.files import ContentStore
from search.log.run import Run
from search.log.store import MemoryEventStore
from search.simulation import SimulatedExecutor, SimulatedProposer, lost, simulated_library
from search.tables import leaderboard, metric

CONFIG = CampaignConfig.model_validate(
    {
        "references": ["dense", "quest"],
        "arms": [{"name": "evolve", "strategy": {"kind": "evolve"}}],
        "limits": {"candidates": 5},
        "objective": {"gates": [{"metric": "accuracy_delta", "at_least": -0.25}]},
    }
)


def campaign(tmp_path: Path, progress: Progress) -> Campaign:
    failed_once: set[str] = set()
    store = MemoryEventStore()

    def fail(stage: str, key: str, attempt: int) -> None:
        if stage == "accuracy" and not failed_once:
            failed_once.add(key)
            raise lost()

    return Campaign(
        Run("r", tmp_path, store, ContentStore(store.texts, tmp_path)),
        CONFIG,
        SimulatedExecutor(fail),
        {"evolve": SimulatedProposer("[red]evil[/red]")},
        seed=3,
        model={},
        library=simulated_library,
        watch=progress.watch,
    )


def go(tmp_path: Path, console: Console) -> Campaign:
    with Progress(console, CONFIG, "title") as progress:
        made = campaign(tmp_path, progress)
        asyncio.run(made.run_to_end(ev.CampaignStarted("r", {}, {}, {}, {}), ev.SessionStarted(1, {})))
        assert progress.rate() > 0
        if console.is_terminal:
            console.print(progress._panel())
    return made


def test_plain_lines_tell_the_story(tmp_path: Path):
    out = io.StringIO()
    go(tmp_path, Console(file=out, width=200))
    text = out.getvalue()
    assert "\x1b" not in text
    assert "c001 dense" in text
    assert "5/5" in text
    assert "worker failed in accuracy (attempt 1)" in text
    assert "winner on fresh items" in text
    assert "finished: 5 distinct programs" in text


def test_the_panel_shows_rate_best_and_time(tmp_path: Path):
    out = io.StringIO()
    go(tmp_path, Console(file=out, width=160, force_terminal=True, color_system=None))
    text = out.getvalue()
    assert "candidates/min" in text
    assert "best: c" in text
    assert "time: " in text
    assert "5/5 programs" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Metric(0.5), "0.500"),
        (Metric(0.5, 0.4, 0.6), "0.500 [0.400, 0.600]"),
        (Metric(2.0, how="modelled"), "2.000 (modelled)"),
        (Metric(123456.7), "123,457"),
        (None, "-"),
    ],
)
def test_a_number_never_loses_its_interval_or_its_origin(value: Metric | None, text: str):
    assert metric(value) == text


def test_the_leaderboard_shows_references_whatever_the_limit(tmp_path: Path):
    out = io.StringIO()
    made = go(tmp_path, Console(file=io.StringIO()))
    Console(file=out, width=200).print(leaderboard(made.archive(), limit=1))
    text = out.getvalue()
    assert "dense" in text
    assert "quest" in text
    assert text.count("point_") == 1

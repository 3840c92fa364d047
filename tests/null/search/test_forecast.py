"""The finals come before their time is over, on machines of any pace."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from search.campaign.budget import search_ends, search_seconds
from search.campaign.forecast import finals_seconds
from search.campaign.live import LiveView
from search.config import Finals, Limits, Screen
from search.executors.base import StageRun
from search.log import events as ev
from search.log.state import CampaignState, StageTime
from search.simulation import SimulatedExecutor
from tests.null.search.harness import Harness, config
from vortex_core.ir.flow import Flow

SECONDS = 4.0


def searched(share: float, **times: tuple[int, float]) -> CampaignState:
    state = CampaignState()
    state.started = ev.CampaignStarted("run", {}, {"fresh": {"share": share}}, {}, {})
    state.stage_time = {stage: StageTime(runs, seconds) for stage, (runs, seconds) in times.items()}
    return state


def test_what_finals_take_is_told_from_the_searchs_own_times() -> None:
    """As on a machine on which 94 and 96 s went to reading fresh and sealed prompts, and 13 s to an answer."""
    state = searched(1.5, accuracy=(20, 104.0), perplexity=(20, 67.0), gate=(20, 78.0))
    finals, stages = Finals(elites=2, peers=2, matched=False), ("accuracy", "perplexity")
    found = finals_seconds(finals, state, 62.0, stages)
    assert found == pytest.approx(2 * 1.5 * 62 + 8 * 1.5 * (5.2 + 3.35))
    assert finals_seconds(finals, state, 62.0, stages, engines=4) == pytest.approx(
        2 * 1.5 * 62 + 2 * 1.5 * 8.55
    )
    unsealed = Finals(elites=2, peers=2, holdout=False)  # the library under the winner's knobs: on two sets
    assert finals_seconds(unsealed, state, 62.0, stages) == pytest.approx(1.5 * 62 + 6 * 1.5 * 8.55)
    assert finals_seconds(finals, searched(1.5), 62.0, stages) == pytest.approx(186), "nothing answered yet"


def test_the_search_ends_in_time_for_them_but_keeps_half() -> None:
    state = searched(1.0)
    state._programs.add("some")
    limits = Limits(seconds=600, finals_seconds=200)
    for finals, ends in ((0.0, 400), (150.0, 400), (280.0, 320), (500.0, 300)):
        assert search_ends(limits, state, Screen(), finals=finals) == ends
        assert search_ends(limits, state, None, finals=finals) == ends
    assert search_ends(Limits(finals_seconds=200), state, None, finals=500) is None


def test_the_time_to_go_knows_of_them(tmp_path: Path) -> None:
    state = searched(1.0)
    limits = Limits(seconds=600, finals_seconds=200)
    view = LiveView(tmp_path, config(limits=limits.model_dump()), dict, lambda: search_seconds(limits, 280.0))
    view.begin(state)
    body = json.loads(
        sqlite3.connect(tmp_path / "live.sqlite").execute("SELECT body FROM stands").fetchone()[0]
    )
    assert body["eta_seconds"] == 320


class Reading(SimulatedExecutor):
    """Reads prompts for a while, as many fresh and sealed ones."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    async def reference(self, purpose: ev.Purpose, seed: int, known: dict[str, Any] | None) -> dict[str, Any]:
        took = self.seconds
        await asyncio.sleep(took)
        return await super().reference(purpose, seed, known) | {"prefill_seconds": took}

    async def run_stage(self, stage: str, flow: Flow, seed: int) -> StageRun:
        await asyncio.sleep(0.02 if self.needs_engine(stage) else 0.001)
        return await super().run_stage(stage, flow, seed)


def test_sealed_items_are_met_on_a_machine_that_reads_slowly(tmp_path: Path) -> None:
    harness = Harness(
        tmp_path,
        config(
            limits={"candidates": 500, "seconds": SECONDS, "finals_seconds": 0.2 * SECONDS},
            finals={"peers": 0, "elites": 2, "matched": False},
        ),
    )
    harness.executor = Reading(0.19 * SECONDS)
    state = harness.go()
    assert state.finished is not None and state.winner is not None
    assert state.candidates[state.winner.key].status("holdout") == "passed"
    assert "left_out" not in state.finished.summary


def test_who_read_the_sealed_prompts_answers_though_the_time_is_over(tmp_path: Path) -> None:
    """Ninety seconds went to reading them, and none was asked of a program."""
    harness = Harness(
        tmp_path,
        config(limits={"candidates": 12, "seconds": SECONDS, "finals_seconds": 0.1}, finals={"peers": 0}),
    )

    class Late(Reading):
        async def reference(
            self, purpose: ev.Purpose, seed: int, known: dict[str, Any] | None
        ) -> dict[str, Any]:
            if purpose == "holdout":
                await asyncio.sleep(SECONDS)
            return await super().reference(purpose, seed, known)

    harness.executor = Late(0.01)
    state = harness.go()
    assert state.winner is not None and state.finished is not None
    rivals = [c for c in state.candidates.values() if c.status("holdout") == "passed"]
    assert state.winner.key in {c.key for c in rivals} and len(rivals) == 2
    assert state.finished.summary["sealed"] is not None

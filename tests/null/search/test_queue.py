"""Programs that a user hands to a campaign while it searches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from search.campaign.finals import Finals
from search.campaign.queue import Queue, enqueue
from search.campaign.strategies.evolve import EvolveStrategy
from search.cli.app import app
from search.config import CampaignConfig
from search.log import events as ev
from search.log.run import open_run
from search.log.state import USER, CampaignState, Proposal
from search.log.store import Record
from search.simulation import Crash
from tests.null.search.harness import STARTED, Harness, config, kinds
from tests.null.search.test_screened import screened
from vortex_core.errors import VortexError

MINE = """from vortex_core import vFlow, ops


class Mine(vFlow):
    def create_cache(self, page):
        return {"c": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"c": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        return ops.topk((q * cache["c"]).sum("dim").max("head") + WEIGHT * ops.position())
"""


def mine(weight: float) -> str:
    return MINE.replace("WEIGHT", repr(weight))


def point(x: float) -> str:
    """A program of the simulated space."""
    return json.dumps({"x": x, "broken": False})


def handed_in(state: CampaignState) -> list[Proposal]:
    return [p for p in state.proposals.values() if p.arm == USER]


@pytest.mark.parametrize("settings", [config(limits={"candidates": 25}), screened()])
def test_what_is_handed_in_is_measured_next_and_told_to_every_arm(tmp_path: Path, settings: CampaignConfig):
    harness = Harness(tmp_path, settings)

    def hand_in_at_the_third_proposal(record: Record, state: CampaignState) -> None:
        if isinstance(record.event, ev.Proposed) and record.event.proposal == 3:
            enqueue(tmp_path, point(0.31), "later pages a little more")

    state = harness.go(hand_in_at_the_third_proposal)
    (proposal,) = handed_in(state)
    assert proposal.idea == "later pages a little more"
    mine_found = state.candidates[proposal.key or ""]
    assert not mine_found.reference
    assert mine_found.status("search") == "passed", "it answers whatever its rank on the screen"
    assert proposal.id <= 7, "it waited for no more than what was already asked"
    # Every arm may go on from it.
    for strategy in harness.campaign().arms.strategies.values():
        if isinstance(strategy, EvolveStrategy):
            assert mine_found.key in {m.key for m in strategy.population.members}
    assert state.finished is not None
    assert USER not in state.finished.summary["control"]["words"]


def test_each_is_asked_for_once_however_often_the_campaign_is_killed(tmp_path: Path):
    harness = Harness(tmp_path, config(limits={"candidates": 6}))
    for n in range(3):
        enqueue(tmp_path, point(0.211 * (n + 1)), f"weight {n}")
    sessions = 0
    while "campaign_finished" not in kinds(harness.store):
        sessions += 1
        assert sessions < 200
        seen = {"new": 0}

        def crash(record: Record, state: CampaignState, seen: dict[str, int] = seen) -> None:
            seen["new"] += 1
            if seen["new"] == 5:
                raise Crash

        try:
            harness.go(crash)
        except Crash:
            continue
    state = CampaignState.fold(harness.store.read())
    assert [p.idea for p in handed_in(state)] == ["weight 0", "weight 1", "weight 2"]
    assert len({p.key for p in handed_in(state)}) == 3
    assert Queue(tmp_path, state).waiting() == []


def test_a_file_that_is_gone_or_no_program_costs_the_campaign_nothing(tmp_path: Path):
    harness = Harness(tmp_path, config(limits={"candidates": 4}))
    (tmp_path / "queue").mkdir()
    (tmp_path / "queue" / "1.json").write_text("[]", encoding="utf-8")
    (tmp_path / "queue" / "2.json").write_text(json.dumps({"source": '{"broken": true}'}), encoding="utf-8")
    state = harness.go()
    assert [p.outcome for p in handed_in(state)] == ["failed", "rejected"]
    assert state.finished is not None and state.distinct_programs >= 4


def test_a_users_program_that_wins_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    harness = Harness(tmp_path, config(limits={"candidates": 4}))
    enqueue(tmp_path, point(0.31), "")
    # Whoever is best, let it be the user's.
    monkeypatch.setattr(
        Finals, "_winner", lambda self, found: next(c for c in self.state.found if c.arm == USER)
    )
    monkeypatch.setattr(
        Finals,
        "_finalists",
        lambda self: [c for c in self.state.candidates.values() if c.arm in (USER, "library")],
    )
    state = harness.go()
    assert state.finished is not None
    assert state.finished.summary["statement"].startswith("It was handed in by a user")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VORTEX_RUNS", str(tmp_path / "runs"))
    with open_run("r", readonly=False) as run:
        run.store.append(STARTED)
    return tmp_path


def test_the_command_checks_before_it_hands_in(runs: Path):
    good, bad = runs / "good.py", runs / "bad.py"
    good.write_text(mine(0.5), encoding="utf-8")
    bad.write_text("import os", encoding="utf-8")
    said = CliRunner().invoke(app, ["enqueue", "r", str(good), str(bad)])
    assert isinstance(said.exception, VortexError) and said.exception.code.startswith("VF")
    assert not (runs / "runs/r/queue").exists(), "all or none"
    said = CliRunner().invoke(app, ["enqueue", "r", str(good), "--idea", "x", "--json"])
    assert said.exit_code == 0 and '"name": "Mine"' in said.output
    with open_run("r", readonly=False) as run:
        state = CampaignState.fold(run.store.read())
        queue = Queue(run.folder, state)
        (number,) = queue.waiting()
        assert queue.read(number).source == mine(0.5)
        run.store.append(ev.CampaignFinished("r", None, {}))
    said = CliRunner().invoke(app, ["enqueue", "r", str(good)])
    assert isinstance(said.exception, VortexError) and said.exception.code == "VS052"
    said = CliRunner().invoke(app, ["enqueue", "nobody", str(good)])
    assert isinstance(said.exception, VortexError) and said.exception.code == "VS001"

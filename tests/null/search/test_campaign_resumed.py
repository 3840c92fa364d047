"""A campaign that goes on after a crash, a cancellation or its end: nothing is lost, repeated or paid for twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search.campaign.archive import Archive
from search.campaign.parts import incomparable, marked, words
from search.config import Objective
from search.executors.base import Notice
from search.log import events as ev
from search.log.state import CampaignState
from search.log.store import Record
from search.simulation import Crash, SimulatedExecutor, SimulatedProposer, simulated_campaign
from tests.null.search.harness import SESSION, STARTED, Harness, config, kinds
from vortex_core.errors import VortexError


def test_a_run_is_not_resumed_on_another_kind_of_device(tmp_path: Path):
    harness = Harness(tmp_path, config(limits={"candidates": 3}))
    assert harness.go().devices == [{"kind": "cpu", "name": "simulated", "host": "simulated", "ranks": 1}]
    harness.config = config(limits={"candidates": 6})
    harness.executor = SimulatedExecutor(device="another")
    with pytest.raises(VortexError) as error:
        harness.go()
    assert error.value.code == "VS043"
    assert "simulated" in error.value.message and "another" in error.value.message
    harness.executor = SimulatedExecutor(lanes=2)
    assert harness.go().distinct_programs == 6, "more of the same kind are welcome"


def test_a_run_is_not_resumed_with_other_weights(tmp_path: Path):
    class Loading(SimulatedExecutor):
        weights = "a" * 16

        async def start(self, notice: Callable[[Notice], None]) -> list[dict[str, Any]]:
            return [device | {"weights": self.weights} for device in await super().start(notice)]

    harness = Harness(tmp_path, config(limits={"candidates": 3}))
    harness.executor = Loading()
    harness.go()
    harness.config = config(limits={"candidates": 6})
    harness.executor = Loading()
    harness.executor.weights = "b" * 16
    with pytest.raises(VortexError, match="VS050") as error:
        harness.go()
    assert "a" * 16 in error.value.message and "b" * 16 in error.value.message
    harness.executor = Loading()
    assert harness.go().distinct_programs == 6


def test_crash_at_every_event_loses_and_repeats_nothing(tmp_path: Path):
    """Kill the driver after each event in turn, over and over, until the campaign is done."""
    whole = Harness(tmp_path / "whole", config(limits={"candidates": 6}))
    whole.go()

    harness = Harness(tmp_path / "crashing", whole.config)
    sessions = 0
    while "campaign_finished" not in kinds(harness.store):
        sessions += 1
        assert sessions < 400
        seen = {"new": 0}

        def crash_at_second_new_event(
            record: Record, state: CampaignState, seen: dict[str, int] = seen
        ) -> None:
            # The first two are always `session_started` and `engines_started`: with them alone there is no progress.
            seen["new"] += 1
            if seen["new"] == (4 if record.seq <= 4 else 3):
                raise Crash

        try:
            harness.go(crash_at_second_new_event)
        except Crash:
            continue
    records = list(harness.store.read())
    state = CampaignState.fold(records)

    stages = [
        (r.event.key, r.event.purpose, r.event.stage)
        for r in records
        if isinstance(r.event, ev.StageFinished)
    ]
    assert len(stages) == len(set(stages)), "a finished stage was recorded again"
    proposed = [r.event.proposal for r in records if isinstance(r.event, ev.Proposed)]
    assert len(proposed) == len(set(proposed)), "a proposal was paid for twice"
    finished = [(r.event.key, r.event.purpose) for r in records if isinstance(r.event, ev.CandidateFinished)]
    assert len(finished) == len(set(finished))
    # A journey in flight when the driver died may have run a stage unrecorded; none that is recorded.
    assert state.distinct_programs >= 6
    assert state.finished is not None
    assert state.sessions == sessions
    replayed = Archive(CampaignState.fold(records), harness.config.objective)
    assert replayed.rows() == Archive(state, harness.config.objective).rows()


@pytest.mark.parametrize("stop_at", range(3, 60, 4))
def test_one_crash_then_the_same_command(tmp_path: Path, stop_at: int):
    harness = Harness(tmp_path, config(limits={"candidates": 5}))

    def crash(record: Record, state: CampaignState) -> None:
        if record.seq == stop_at:
            raise Crash

    with pytest.raises(Crash):
        harness.go(crash)
    before = {
        (r.event.key, r.event.purpose, r.event.stage): r.event.result
        for r in harness.store.read()
        if isinstance(r.event, ev.StageFinished)
    }
    ran_before = dict(harness.executor.ran)
    state = harness.go()
    assert state.finished is not None
    for (key, purpose, stage), result in before.items():
        assert state.candidates[key].results[purpose][stage].to_json() == result
    recorded = {
        (r.event.key, r.event.stage, r.event.seed)
        for r in harness.store.read()
        if isinstance(r.event, ev.StageFinished) and r.seq <= stop_at
    }
    for (key, stage, seed), times in harness.executor.ran.items():
        if (key, stage, seed) in recorded:
            assert times == ran_before[key, stage, seed], "a recorded stage was run again"


def test_a_finished_run_goes_on_when_given_more(tmp_path: Path):
    harness = Harness(tmp_path)
    first = harness.go()
    harness.config = config(limits={"candidates": 14})
    second = harness.go()
    assert first.distinct_programs == 9
    assert second.distinct_programs == 14
    assert kinds(harness.store).count("finalists_chosen") == 2
    assert max(harness.executor.ran.values()) == 1


def test_cancelling_is_a_clean_pause(tmp_path: Path):
    harness = Harness(tmp_path)
    harness.proposer = SimulatedProposer(delay=0.01)

    async def interrupted() -> None:
        task = asyncio.create_task(harness.campaign().run_to_end(STARTED, SESSION))
        await asyncio.sleep(0.05)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(interrupted())
    assert kinds(harness.store)[-1] == "campaign_paused"
    assert harness.executor.closed
    harness.executor = SimulatedExecutor()
    assert harness.go().distinct_programs == 9


def test_numbers_of_other_versions_and_machines_carry_a_mark(tmp_path: Path):
    first = {"versions": {"torch": "2.12.0"}, "weights": "w1"}
    state = simulated_campaign(tmp_path, "r", candidates=6, engine=first)
    assert incomparable(state) == {}
    state = simulated_campaign(
        tmp_path, "r", candidates=12, engine={"versions": {"torch": "2.13.0"}, "weights": "w1"}
    )
    (found,) = incomparable(state).values()
    assert found == ["torch 2.12.0, then 2.13.0"]
    assert len(words(state)) == 1
    parts = incomparable(state)
    ours = [marked(c, parts) for c in state.candidates.values()]
    assert any(ours) and not all(ours)
    assert Archive(state, Objective()).state is state
    with pytest.raises(VortexError) as error:
        simulated_campaign(tmp_path, "r", candidates=14, engine=first | {"weights": "w2"})
    assert error.value.code == "VS050"
    assert state.parts[0].engines[0]["weights"] == "w1"

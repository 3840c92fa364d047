"""Engines that come and go, turns, shares, stopping gently, and every kind of budget: without processes."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from search.campaign.budget import NOTHING_NEW, nothing_left, reached
from search.campaign.drain import Drain
from search.campaign.turns import Turns
from search.config import Cluster, Limits, Screen
from search.errors import engine_lost
from search.executors.base import Joined, Left
from search.executors.division import Claim, divide
from search.executors.nodes import Nodes
from search.executors.placement import Resources, place
from search.log import events as ev
from search.log.run import open_run
from search.log.state import CampaignState
from search.simulation import SimulatedExecutor, simulated_campaign
from vortex_core.ir.flow import Flow


def claim(kind: Any, share: float, *wishes: int | None, ranks: int = 1, gpus: int = 8) -> Claim:
    config = Cluster(device="cuda", tensor_parallel=ranks, cpu_tasks=4)
    return Claim(kind, place(config, Resources(gpus, 32)), share, wishes)


@pytest.mark.parametrize(
    ("gpus", "claims", "growing", "counts"),
    [
        (8, [claim("engine", 1, None)], True, [8]),
        (2, [claim("engine", 1, 5)], True, [5]),  # pending ones are how the autoscaler hears of it
        (8, [claim("engine", 1, None), claim("engine", 1, None)], True, [4, 4]),
        (8, [claim("engine", 3, None), claim("engine", 1, None)], True, [6, 2]),
        (8, [claim("engine", 1, 2), claim("engine", 1, None)], True, [2, 6]),
        (8, [claim("engine", 1, None, ranks=4), claim("engine", 1, None)], True, [1, 4]),
        (1, [claim("engine", 1, None), claim("engine", 1, None)], True, [1, 0]),
        (8, [claim("engine", 1, None), claim("cpu", 1, None)], True, [8, 4]),
        (2, [claim("engine", 0.0), claim("serving", 1, 1)], True, [0, 1]),
    ],
)
def test_division(gpus: int, claims: list[Claim], growing: bool, counts: list[int]):
    found = divide(Resources(gpus, 32), dict(enumerate(claims)), growing=growing)
    assert [found[n] for n in range(len(claims))] == counts


def test_nodes_that_are_gone_and_nodes_that_are_about_to_go():
    listed = [{"NodeID": "a", "Alive": True}, {"NodeID": "b", "Alive": False}, {"NodeID": "c", "Alive": True}]
    assert Nodes(lambda: listed, lambda: {"b", "c"}).look() == ({"b"}, {"c"})


def test_turns_follow_the_number_of_engines():
    async def scenario() -> None:
        capacity, most, now = 1, 0, 0
        turns = Turns(lambda: capacity)

        async def one() -> None:
            nonlocal most, now
            async with turns:
                now += 1
                most = max(most, now)
                await asyncio.sleep(0.2)
                now -= 1

        tasks = [asyncio.create_task(one()) for _ in range(12)]
        await asyncio.sleep(0.05)
        assert (now, turns.waiting) == (1, 11)
        capacity = 4
        turns.changed()
        await asyncio.sleep(0.05)
        assert now == 4
        tasks[-1].cancel()  # while it waits
        capacity = 2
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (most, turns.taken, turns.waiting) == (4, 0, 0)

    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_a_turn_given_to_somebody_who_was_just_cancelled_is_passed_on():
    async def scenario() -> None:
        turns = Turns(lambda: 1)
        await turns.__aenter__()
        first, second = (asyncio.create_task(turns.__aenter__()) for _ in range(2))
        await asyncio.sleep(0)
        await turns.__aexit__(None, None, None)  # the first one has it
        first.cancel()
        await asyncio.wait_for(second, 1)
        assert turns.taken == 1

    asyncio.run(asyncio.wait_for(scenario(), 10))


# ---- stopping


def test_what_runs_may_end_and_nothing_begins():
    async def scenario() -> list[str]:
        said: list[str] = []
        drain, done = Drain(5.0, said.append), []

        async def whole() -> None:
            async with drain.work():
                await asyncio.sleep(0.05)
            done.append("first")
            async with drain.work():
                done.append("second")

        task = asyncio.create_task(whole())
        await asyncio.sleep(0.01)
        drain.stop(task)
        began = time.monotonic()
        await asyncio.gather(task, return_exceptions=True)
        assert time.monotonic() - began < 1
        assert task.cancelled() and len(said) == 1
        return done

    assert asyncio.run(scenario()) == ["first"]


@pytest.mark.parametrize("again", [False, True])
def test_after_the_stated_time_or_when_told_twice_the_rest_is_cut_off(again: bool):
    async def scenario() -> float:
        drain = Drain(30.0 if again else 0.1)

        async def whole() -> None:
            async with drain.work():
                await asyncio.sleep(60)

        task = asyncio.create_task(whole())
        await asyncio.sleep(0.01)
        began = time.monotonic()
        drain.stop(task)
        if again:
            drain.stop(task)
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        return time.monotonic() - began

    assert asyncio.run(scenario()) < 2


def test_a_campaign_told_to_stop_records_what_was_under_way(tmp_path: Path):
    class Stopping(SimulatedExecutor):
        async def run_stage(self, stage: str, flow: Flow, seed: int) -> Any:
            if self.ran.total() == 20:
                task = next(t for t in asyncio.all_tasks() if "run_to_end" in str(t.get_coro()))
                self.campaign.drain.stop(task)
            return await super().run_stage(stage, flow, seed)

    stopping = Stopping(lanes=3, delay=0.02)
    from search.campaign import campaign as driver

    made = driver.Campaign.__init__

    def remember(self: Any, *args: Any, **more: Any) -> None:
        made(self, *args, **more)
        stopping.campaign = self

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver.Campaign, "__init__", remember)
        with pytest.raises(asyncio.CancelledError):
            simulated_campaign(tmp_path, "r", candidates=40, executor=stopping)
    with open_run("r", readonly=True, root=tmp_path) as run:
        events = [record.event for record in run.store.read()]
    assert isinstance(events[-1], ev.CampaignPaused)
    recorded = {(e.key, e.stage, e.seed) for e in events if isinstance(e, ev.StageFinished)}
    assert recorded == set(stopping.ran), "what ran was thrown away"
    again = SimulatedExecutor()
    assert simulated_campaign(tmp_path, "r", candidates=12, executor=again).distinct_programs >= 12
    assert not recorded & set(again.ran), "what was recorded was run again"


# ---- engines that come and go


def test_a_campaign_uses_an_engine_that_joins_and_does_without_one_that_leaves(tmp_path: Path):
    class Elastic(SimulatedExecutor):
        async def start(self, notice: Any) -> list[dict[str, Any]]:
            async def change() -> None:
                await asyncio.sleep(0.2)
                self.lanes = 4
                notice(Joined("node2 gpu0", {"kind": "cpu", "name": "simulated", "ranks": 1}))
                await asyncio.sleep(0.3)
                self.lanes, self.most_at_once = 1, 0
                notice(Left("node2 gpu0", engine_lost("its node is gone"), True, {}))

            self.task = asyncio.create_task(change())
            return await super().start(notice)

    elastic = Elastic(delay=0.01)
    state = simulated_campaign(tmp_path, "r", candidates=60, executor=elastic)
    assert state.distinct_programs == 60
    assert elastic.task.done()
    assert elastic.most_at_once <= 4
    with open_run("r", readonly=True, root=tmp_path) as run:
        kinds = [record.event.kind for record in run.store.read()]
    assert (kinds.count("engine_joined"), kinds.count("engine_left")) == (1, 1)


# ---- budgets


def state_with(**changes: Any) -> CampaignState:
    state = CampaignState()
    for name, value in changes.items():
        setattr(state, name, value)
    return state


@pytest.mark.parametrize(
    ("limits", "state", "seconds", "reason"),
    [
        ({"candidates": 3}, {"_programs": {"a", "b"}}, 0.0, "3 distinct programs"),
        ({"evaluations": 5}, {"finished_found": 4}, 0.0, "5 evaluations"),
        ({"seconds": 100, "finals_seconds": 10}, {}, 90.0, "time budget of 100 s"),
        ({"gpu_seconds": 60}, {}, 61.0, "budget of 60 GPU-seconds"),
        ({"tokens": 0}, {}, 0.0, "budget of 0 tokens"),
        ({"dollars": 0}, {}, 0.0, "budget of $0"),
        ({}, {"without_new": NOTHING_NEW}, 0.0, f"nothing new in {NOTHING_NEW} proposals"),
        ({}, {"without_new": NOTHING_NEW - 1}, 1e9, None),
    ],
)
def test_every_budget_ends_a_search(limits: Any, state: Any, seconds: float, reason: str | None):
    config = Limits(**limits)
    found = reached(config, state_with(**state), active_seconds=seconds, gpu_seconds=seconds, under_way=1)
    assert found == reason


def test_where_nothing_has_answered_the_search_takes_the_time_of_finals_that_would_be_empty():
    limits, screen = Limits(seconds=600, finals_seconds=165), Screen()
    slow, answered = state_with(), state_with(_programs={"a"})
    for seconds, state, ends in (
        (430, slow, False),
        (500, slow, False),
        (541, slow, True),
        (436, answered, True),
    ):
        found = reached(limits, state, active_seconds=seconds, gpu_seconds=0, screen=screen)
        assert (found == "time budget of 600 s") is ends, (seconds, found)
    assert reached(limits, slow, active_seconds=436, gpu_seconds=0) == "time budget of 600 s", (
        "nothing is screened"
    )


@pytest.mark.parametrize("lanes", [1, 200])
def test_a_space_without_anything_new_ends_the_search_at_1_and_at_200_engines(tmp_path: Path, lanes: int):
    executor = SimulatedExecutor(lanes=lanes, delay=0.001)
    state = simulated_campaign(tmp_path, "r", candidates=10_000, executor=executor)
    assert state.finished is not None and state.finished.reason == f"nothing new in {NOTHING_NEW} proposals"
    assert state.winner is not None, "it ends with finals"
    assert len(state.proposals) < 1500
    assert state.distinct_programs >= 50, "the space has about a hundred"


def test_a_finished_run_has_nothing_to_do_until_it_is_given_more(tmp_path: Path):
    state = simulated_campaign(tmp_path, "r", candidates=6)
    assert nothing_left(Limits(candidates=6), state) == "6 distinct programs"
    assert nothing_left(Limits(candidates=5), state) == "5 distinct programs"
    assert nothing_left(Limits(candidates=6, seconds=1e9), state) == "6 distinct programs"
    assert nothing_left(Limits(candidates=9), state) is None
    assert nothing_left(Limits(candidates=9), CampaignState()) is None

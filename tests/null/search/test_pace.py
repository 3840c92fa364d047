"""A slow or busy machine is asked fewer items, decided once a run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from evaluators.plan import list_plans, load_plan
from search.campaign import session
from search.campaign.options import Options
from search.campaign.session import run_campaign
from search.config import CampaignConfig, Cluster, load_campaign
from search.log.run import open_run, read_state
from search.pace import FULL, LEAST, Pace, pace, share_of_items
from search.simulation import SimulatedExecutor, SimulatedProposer

CAMPAIGN = """
extends: default
written_for: 900
references: [dense]
screen: null
finals: {second: null, peers: 0, matched: false}
limits: {candidates: 2, seconds: 900}
"""


def test_the_pace_of_a_machine_is_a_number_of_its_own():
    found = pace()
    assert 0 < found.rate < 1000
    assert 0 < found.got < 1.1


@pytest.mark.parametrize(
    ("got", "usable", "cores"),
    [(1.0, 2, 2), (FULL, 2, 2), (0.5, 2, 1), (0.1, 2, 1), (0.5, 16, 8), (0.99, 1, 1)],
)
def test_the_cores_that_are_to_be_had(got: float, usable: int, cores: int):
    assert Pace(1.0, got).cores(usable) == cores


@pytest.mark.parametrize(
    ("cluster", "threads"),
    [({}, 8), ({"engines": 4}, 2), ({"engines": 20}, 1), ({"threads": 5}, 5), ({"tensor_parallel": 2}, 4)],
)
def test_engines_share_the_cores_that_are_to_be_had(
    cluster: dict[str, int], threads: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(session, "resources_here", lambda: _Here(cores=16))
    config = load_campaign("default").model_copy(update={"cluster": Cluster(**cluster)})
    assert session._with_threads(config, Pace(1.0, 0.5)).cluster.threads == threads
    assert session._with_threads(config, Pace(1.0, 1.0)).cluster.threads == cluster.get("threads")


@pytest.mark.parametrize(("found", "share"), [(3.0, 1.0), (FULL, 1.0), (0.5, 0.5), (0.0, LEAST)])
def test_share_of_items(found: float, share: float):
    assert share_of_items(found) == share


@pytest.mark.parametrize("name", list_plans())
@pytest.mark.parametrize(("share", "least"), [(0.25, 2), (LEAST, 1)])
def test_every_plan_holds_with_fewer_items(name: str, share: float, least: int):
    plan = load_plan(name)
    less = plan.with_items(share)
    kept = len(plan.accuracy.tasks) if least > 1 else 1
    for before, after in zip(plan.accuracy.tasks[:kept], less.accuracy.tasks, strict=True):
        assert after.items == min(before.items, max(least, math.ceil(share * before.items)))
        assert (after.key, after.parameters) == (before.key, before.parameters)
    assert less.accuracy.gate_items <= min(task.items for task in less.accuracy.tasks)
    assert less.digest != plan.digest, "results of the two are not comparable"
    assert plan.with_items(1.0).digest == plan.digest


def test_a_run_keeps_the_share_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VORTEX_RUNS", str(tmp_path / "runs"))
    file = tmp_path / "c.yaml"
    file.write_text(CAMPAIGN, encoding="utf-8")
    monkeypatch.setattr(
        session, "make_proposers", lambda specs, *_: dict.fromkeys(specs, SimulatedProposer())
    )
    monkeypatch.setattr(session, "load_library", lambda flow, knobs: _library(flow))
    monkeypatch.setattr(session, "resources_here", lambda: _Here())
    monkeypatch.setattr(session, "pace", lambda: Pace(0.4, 0.4))
    said: list[str] = []
    options = Options(campaign=str(file), run="slow", max_candidates=2)
    run_campaign(options, silent, SimulatedExecutor(), said.append)
    assert said == [said[0]] and "8 items are asked instead of 16" in said[0]
    with open_run("slow", readonly=True) as run:
        started = read_state(run).started
        assert read_state(run).limits["cluster"]["threads"] == 1, "half of the cores is one of two"
    assert started is not None and started.settings["items_share"] == 0.4
    assert [task["items"] for task in started.plan["accuracy"]["tasks"]] == [4, 4]
    # The machine is quiet again: the run goes on with the items it has, or its results could not be compared.
    monkeypatch.setattr(session, "pace", lambda: Pace(2.0, 1.0))
    run_campaign(
        Options(campaign=str(file), run="slow", max_candidates=4), silent, SimulatedExecutor(), said.append
    )
    with open_run("slow", readonly=True) as run:
        assert read_state(run).distinct_programs >= 4
        assert read_state(run).limits["cluster"]["threads"] is None, "threads are of the machine as it is now"
    monkeypatch.setattr(session, "pace", lambda: Pace(0.4, 0.4))
    run_campaign(Options(campaign=str(file), run="slow", max_candidates=6), silent, SimulatedExecutor())
    with open_run("slow", readonly=True) as run:
        assert read_state(run).limits["cluster"]["threads"] == 1
    # A day is enough for all items, and cores are as busy.
    run_campaign(
        Options(campaign=str(file), run="day", max_candidates=2, seconds=86400.0), silent, SimulatedExecutor()
    )
    with open_run("day", readonly=True) as run:
        started = read_state(run).started
        assert read_state(run).limits["cluster"]["threads"] == 1
    assert started is not None and started.plan["accuracy"]["tasks"][0]["items"] == 8
    # Half of the time is half of the items.
    monkeypatch.setattr(session, "pace", lambda: Pace(1.0, 1.0))
    for seconds, items in ((450.0, 4), (1800.0, 8)):
        run_campaign(
            Options(campaign=str(file), run=f"s{seconds:g}", max_candidates=2, seconds=seconds),
            silent,
            SimulatedExecutor(),
        )
        with open_run(f"s{seconds:g}", readonly=True) as run:
            started = read_state(run).started
            assert read_state(run).limits["cluster"]["threads"] is None, "idle cores are all used"
        assert started is not None and started.plan["accuracy"]["tasks"][0]["items"] == items
    # On machines with GPUs nothing is measured: it is not the cores that answer there.
    monkeypatch.setattr(session, "resources_here", lambda: _Here(gpus=1))
    monkeypatch.setattr(session, "pace", lambda: pytest.fail("measured"))
    run_campaign(Options(campaign=str(file), run="gpu", max_candidates=2), silent, SimulatedExecutor())


class _Here:
    def __init__(self, gpus: int = 0, cores: int = 2) -> None:
        self.gpus = gpus
        self.cores = cores


def _library(flow: str) -> Any:
    from search.simulation import simulated_library

    return simulated_library(flow, {})


@contextmanager
def silent(config: CampaignConfig, name: str) -> Iterator[Any]:
    class Watching:
        def watch(self, *_: object) -> None: ...
        def say(self, words: str) -> None: ...

    yield Watching()

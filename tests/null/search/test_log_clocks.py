"""What a log says about time: clocks that step, budgets in seconds, GPU seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from search.log import events as ev
from search.log import lock as locks
from search.log.run import LOG
from search.log.state import CampaignState
from search.log.store import Record, SqliteEventStore


def stepping(*steps: float) -> Callable[[], float]:
    times: Iterator[float] = iter(steps)
    return lambda: next(times)


def test_a_clock_that_was_set_back_between_sessions_lengthens_no_budget(tmp_path: Path):
    path = tmp_path / LOG
    first = SqliteEventStore(path, clock=stepping(1000.0, 1000.0, 1060.0))
    first.append(ev.CampaignStarted("r", {}, {}, {}, {}), ev.SessionStarted(1, {}))
    first.append(ev.CampaignPaused("x"))
    first.close()
    # An hour back, and then 40 seconds of work.
    second = SqliteEventStore(path, clock=stepping(-2540.0, -2540.0, -2500.0))
    second.append(ev.SessionStarted(2, {}))
    second.append(ev.CampaignPaused("y"))
    state = CampaignState.fold(second.read())
    second.close()
    assert state.active_seconds == pytest.approx(100.0)


def test_a_clock_that_steps_while_a_campaign_runs_is_not_asked(monkeypatch: pytest.MonkeyPatch):
    before = locks.steady_clock()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert 0 <= locks.steady_clock() - before < 5


@pytest.mark.parametrize("back", [0.0, 3600.0])
def test_time_never_runs_backwards_in_old_logs(back: float):
    log = [
        Record(1, 1000.0, ev.CampaignStarted("r", {}, {}, {}, {})),
        Record(2, 1000.0, ev.SessionStarted(1, {})),
        Record(3, 1050.0 - back, ev.CampaignPaused("x")),
        Record(4, 1100.0 - back, ev.SessionStarted(2, {})),
        Record(5, 1130.0, ev.CampaignPaused("y")),
    ]
    assert CampaignState.fold(log).active_seconds >= 30
    assert CampaignState.fold(log).active_seconds <= 130


def test_gpu_seconds_are_counted_while_engines_hold_them():
    gpu = {"kind": "cuda", "name": "H200", "ranks": 2, "worker": "a"}
    other = {"kind": "cuda", "name": "H200", "ranks": 1}
    log = [
        (0.0, ev.CampaignStarted("r", {}, {}, {}, {})),
        (0.0, ev.SessionStarted(1, {})),
        (10.0, ev.EnginesStarted((gpu,))),
        (20.0, ev.EngineJoined(other, "b")),
        (30.0, ev.EngineLeft("a", False, {})),
        (40.0, ev.CampaignPaused("x")),
        (90.0, ev.SessionStarted(2, {})),
        (95.0, ev.EnginesStarted((other,))),
        (96.0, ev.CampaignPaused("killed before anything else")),
    ]
    state = CampaignState.fold(Record(i, when, event) for i, (when, event) in enumerate(log, 1))
    assert state.gpu_seconds == pytest.approx(2 * 10 + 3 * 10 + 1 * 10 + 1)
    killed = [Record(i, when, event) for i, (when, event) in enumerate(log[:4] + log[6:], 1)]
    assert CampaignState.fold(killed).gpu_seconds == pytest.approx(20 + 1), (
        "nobody held them between sessions"
    )

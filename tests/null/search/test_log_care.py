"""The log through time: older versions, packing, damage, tables, shared file systems, clocks."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from search.log import events as ev
from search.log import lock as locks
from search.log.compact import compact
from search.log.files import PACK, ContentStore
from search.log.frames import write_frames
from search.log.fsck import check_run
from search.log.lock import WriterLock, filesystem_of, is_shared
from search.log.run import LOG, open_run, read_state
from search.log.state import CampaignState
from search.log.store import Record, SqliteEventStore
from search.simulation import simulated_campaign
from search.testing import EXAMPLES
from vortex_core.errors import VortexError

V1 = """
CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, kind TEXT NOT NULL,
    version INTEGER NOT NULL, body TEXT NOT NULL);
CREATE TRIGGER events_never_change BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER events_never_go BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs with a finished one, `r`."""
    root = tmp_path_factory.mktemp("runs")
    simulated_campaign(root, "r", candidates=12)
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """A copy of it to do harm to."""
    shutil.copytree(finished, tmp_path / "runs")
    return tmp_path / "runs"


def records(root: Path) -> list[Record]:
    with open_run("r", readonly=True, root=root) as run:
        return list(run.store.read())


def findings(root: Path, *, deep: bool = False) -> list[str]:
    with open_run("r", readonly=True, root=root) as run:
        return [f.what for f in check_run(run, deep=deep).findings if f.level == "problem"]


def as_version_1(path: Path, rows: list[tuple[Any, ...]]) -> None:
    db = sqlite3.connect(path)
    db.executescript(V1)
    db.executemany("INSERT INTO events (time, kind, version, body) VALUES (?, ?, ?, ?)", rows)
    db.commit()
    db.close()


# ---- versions


def test_a_log_of_version_1_is_read_as_it_is_and_brought_up_to_date_by_its_writer(tmp_path: Path):
    path = tmp_path / LOG
    as_version_1(
        path,
        [
            (1.0, "session_started", 1, json.dumps({"pid": 7, "limits": {}})),
            (2.0, "campaign_paused", 1, json.dumps({"reason": "x"})),
        ],
    )
    reader = SqliteEventStore(path, readonly=True)
    before = list(reader.read())
    assert before[0].event == ev.SessionStarted(7, {}, {}, {})
    reader.close()
    writer = SqliteEventStore(path)
    assert list(writer.read()) == before, "upgrading changes nothing that was written"
    (added,) = writer.append(ev.CampaignPaused("again"))
    assert added.seq == 3
    writer.close()
    links = [row[5] for row in SqliteEventStore(path, readonly=True).rows()]
    assert len(set(links)) == 3 and all(len(link) == 16 for link in links)


def test_an_upgrade_that_is_cut_off_leaves_the_old_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / LOG
    as_version_1(path, [(1.0, "campaign_paused", 1, '{"reason": "x"}')])

    def killed(db: sqlite3.Connection) -> None:
        db.execute("ALTER TABLE events ADD COLUMN chain TEXT NOT NULL DEFAULT ''")
        raise KeyboardInterrupt

    from search.log import schema

    with monkeypatch.context() as patched:
        patched.setitem(schema.STEPS, 1, killed)
        with pytest.raises(KeyboardInterrupt):
            SqliteEventStore(path)
    writer = SqliteEventStore(path)
    assert [r.event.kind for r in writer.read()] == ["campaign_paused"]
    writer.close()


def test_a_log_of_a_later_version_is_refused_to_both(tmp_path: Path):
    path = tmp_path / LOG
    SqliteEventStore(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    for readonly in (True, False):
        with pytest.raises(VortexError, match="tables have version 99") as error:
            SqliteEventStore(path, readonly=readonly)
        assert error.value.code == "VS005"


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        ("session_started", {"pid": 1, "limits": {}}, ev.SessionStarted(1, {}, {}, {})),
        (
            "stage_finished",
            {"key": "k", "purpose": "search", "stage": "s", "seed": 0, "result": {}, "worker": "w"},
            ev.StageFinished("k", "search", "s", 0, {}, "w", doubled=False),
        ),
    ],
)
def test_older_events_take_every_step(kind: str, body: dict[str, Any], expected: ev.Event):
    assert ev.from_json(kind, 1, body) == expected
    assert expected.version == 2


# ---- fsck


def test_a_sound_run_has_no_problems(root: Path):
    assert findings(root, deep=True) == []


def _change_an_event(folder: Path) -> None:
    db = sqlite3.connect(folder / LOG)
    db.execute("DROP TRIGGER events_never_change")
    db.execute(
        "UPDATE events SET body = replace(body, '0.', '1.') WHERE kind = 'stage_finished' AND seq > 20"
    )
    db.commit()
    db.close()


def _lose_an_event(folder: Path) -> None:
    db = sqlite3.connect(folder / LOG)
    db.execute("DROP TRIGGER events_never_go")
    db.execute("DELETE FROM events WHERE seq = 30")
    db.commit()
    db.close()


def _repeat_a_result(folder: Path) -> None:
    store = SqliteEventStore(folder / LOG)
    store.append(next(r.event for r in store.read() if isinstance(r.event, ev.StageFinished)))
    store.close()


def _lose_a_file(folder: Path) -> None:
    next(iter(sorted((folder / "files").glob("*.py")))).unlink()


def _change_a_file(folder: Path) -> None:
    next(iter(sorted((folder / "files").glob("*.json")))).write_text("{}")


def _overwrite_a_page(folder: Path) -> None:
    with (folder / LOG).open("r+b") as file:
        file.seek((folder / LOG).stat().st_size // 2)
        file.write(b"\xff" * 9000)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_change_an_event, "not the one that was written"),
        (_lose_an_event, "event 30 is missing"),
        (_repeat_a_result, "for the second time"),
        (_lose_a_file, "No such file"),
        (_change_a_file, "not what its name says"),
        (_overwrite_a_page, "damaged|malformed|not the one"),
    ],
)
def test_damage_is_found_and_named(root: Path, harm: Callable[[Path], None], said: str):
    harm(root / "r")
    import re

    try:
        found = findings(root)
    except VortexError as error:  # so damaged that it does not open
        found = [str(error)]
    assert any(re.search(said, what) for what in found), found


# ---- packing


def test_a_packed_run_says_the_same_in_less_space_and_goes_on(root: Path):
    before, state = records(root), None
    with open_run("r", readonly=False, root=root) as run:
        done = compact(run)
    assert done.after < done.before / 2
    assert records(root) == before
    assert findings(root, deep=True) == []
    assert list((root / "r" / "files").glob("*.py")) == [], "all files are in the pack"
    with open_run("r", readonly=False, root=root) as run:
        state = read_state(run)
        (added,) = run.store.append(ev.CampaignPaused("later"))
        assert added.seq == len(before) + 1
        source = run.files.get(next(iter(state.candidates.values())).source, ".py")
        assert source
        # What is stored after packing lies beside the pack, and is packed the next time.
        name = run.files.put("new", ".txt")
        assert run.files.put(source, ".py") and not list((root / "r" / "files").glob("*.py"))
        assert compact(run).files == 1
    with open_run("r", readonly=True, root=root) as run:
        assert run.files.get(name, ".txt") == "new"
    assert len(records(root)) == len(before) + 1
    assert findings(root) == []
    state = simulated_campaign(root, "r", candidates=15)
    assert state.distinct_programs == 15


def test_a_packed_segment_that_was_changed_is_found(root: Path):
    from search.log.store import pack, unpack

    with open_run("r", readonly=False, root=root) as run:
        compact(run)
    db = sqlite3.connect(root / "r" / LOG)
    (blob,) = db.execute("SELECT body FROM packed").fetchone()
    lines = unpack(blob)
    lines[5][0] += 1.0
    db.execute("DROP TRIGGER packed_never_change")
    db.execute("UPDATE packed SET body = ?", (pack(lines),))
    db.commit()
    db.close()
    assert any("not those that were written" in what for what in findings(root))


def test_nobody_packs_under_a_reader(root: Path):
    with open_run("r", readonly=True, root=root) as reading:
        rows = reading.store.read()
        next(rows)  # a snapshot is held
        with open_run("r", readonly=False, root=root) as run, pytest.raises(VortexError) as error:
            compact(run)
        assert error.value.code == "VS049"
        assert len(list(rows)) > 20, "the reader goes on undisturbed"
    assert findings(root) == []


def test_a_pack_that_lies_is_refused(tmp_path: Path):
    files = ContentStore(tmp_path)
    name = files.put("text", ".py")
    files.pack()
    db = sqlite3.connect(tmp_path / PACK)
    db.execute("UPDATE files SET body = ?", (b"no zlib",))
    db.commit()
    db.close()
    with pytest.raises(VortexError, match="VS005"):
        ContentStore(tmp_path).get(name, ".py")


# ---- tables


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_tables_hold_every_row(root: Path, tmp_path: Path, form: str):
    with open_run("r", readonly=True, root=root) as run:
        state = read_state(run)
        rows = write_frames(run, state, tmp_path / "t", form)
        count = sum(1 for _ in run.store.read())
    assert rows["events"] == count and rows["candidates"] == len(state.candidates)
    if form == "parquet":
        found = pq.read_table(tmp_path / "t" / "measurements.parquet").to_pylist()
    else:
        with (tmp_path / "t" / "measurements.csv").open() as file:
            found = list(csv.DictReader(file))
    assert len(found) == rows["measurements"]
    ours = {
        (c.key, purpose, name): metric.value
        for c in state.candidates.values()
        for purpose, results in c.results.items()
        for result in results.values()
        for name, metric in result.metrics.items()
    }
    theirs = {(r["key"], r["purpose"], r["metric"]): float(r["value"]) for r in found if r["metric"]}
    assert theirs == pytest.approx(ours)


# ---- one writer


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "filesystem_of", lambda path: "nfs4")


def test_file_systems_are_told_apart(tmp_path: Path):
    assert filesystem_of(Path("/proc/self")) == "proc"
    assert filesystem_of(tmp_path)
    assert [is_shared(name) for name in ("nfs4", "lustre", "fuse.sshfs", "ext4", "xfs", "tmpfs")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip


@pytest.mark.usefixtures("network")
def test_a_log_on_a_network_file_system_needs_no_shared_memory(tmp_path: Path):
    store = SqliteEventStore(tmp_path / LOG)
    store.append(*EXAMPLES)
    assert not (tmp_path / f"{LOG}-shm").exists()
    reader = SqliteEventStore(tmp_path / LOG, readonly=True)
    assert len(list(reader.read())) == len(EXAMPLES)
    reader.close()
    store.close()


@pytest.mark.usefixtures("network")
def test_locks_that_exclude_nobody_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fcntl, "flock", lambda file, how: None)  # as on a mount with nolock
    with pytest.raises(VortexError, match="nfs4") as error:
        SqliteEventStore(tmp_path / LOG)
    assert error.value.code == "VS046"


@pytest.mark.usefixtures("network")
def test_another_machines_lease_is_respected_until_it_is_old(tmp_path: Path):
    held = tmp_path / "events.lock"
    held.write_text(json.dumps({"pid": 4, "host": "elsewhere", "token": "t"}))  # its lock is not seen here
    with pytest.raises(VortexError, match=r"process 4 on elsewhere, \d+ s ago") as error:
        SqliteEventStore(tmp_path / LOG)
    assert error.value.code == "VS003"
    old = time.time() - locks.LEASE - 1
    os.utime(held, (old, old))
    store = SqliteEventStore(tmp_path / LOG)
    store.close()
    SqliteEventStore(tmp_path / LOG).close()  # what was released may be taken at once


@pytest.mark.usefixtures("network")
def test_a_writer_that_was_believed_dead_writes_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / LOG
    first = SqliteEventStore(path)
    first.append(EXAMPLES[0])
    with monkeypatch.context() as patched:  # another machine, to which the first one's lock means nothing
        patched.setattr(WriterLock, "_take", lambda self, run: None)
        second = SqliteEventStore(path)
    second.append(EXAMPLES[1])
    with pytest.raises(VortexError) as error:
        first.append(EXAMPLES[2])
    assert error.value.code == "VS047"
    assert [r.event for r in second.read()] == list(EXAMPLES[:2])
    first.close()
    second.close()


# ---- clocks


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


# ---- parts


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


def test_numbers_of_other_versions_and_machines_carry_a_mark(tmp_path: Path):
    from search.campaign.archive import Archive
    from search.campaign.parts import incomparable, marked, words
    from search.config import Objective

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
    assert replace(state.parts[0]).engines[0]["weights"] == "w1"

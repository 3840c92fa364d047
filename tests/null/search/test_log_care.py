"""The log through time: older versions, damage, packing, tables."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from search.log import events as ev
from search.log.compact import compact
from search.log.files import ContentStore, digest
from search.log.frames import write_frames
from search.log.fsck import check_run
from search.log.older import PACK
from search.log.run import LOG, open_run, read_state
from search.log.store import Record, SqliteEventStore
from search.log.texts import MemoryTexts
from search.simulation import simulated_campaign
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


def as_version_2(folder: Path) -> int:
    """Make a run as it was before texts were kept in the log: each is a file. Returns how many."""
    (folder / "files").mkdir()
    db = sqlite3.connect(folder / LOG)
    rows = db.execute("SELECT name, body FROM texts").fetchall()
    for name, body in rows:
        (folder / "files" / name).write_text(body)
    db.executescript("DROP TABLE texts; PRAGMA user_version = 2;")
    db.close()
    return len(rows)


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


def test_a_run_whose_texts_are_files_is_read_resumed_and_packed(root: Path):
    folder, before = root / "r", records(root)
    count = as_version_2(folder)
    assert count > 20 and findings(root, deep=True) == []
    with open_run("r", readonly=True, root=root) as run:  # nothing is changed by reading
        source = next(iter(read_state(run).candidates.values())).source
        assert run.files.get(source, ".py") == (folder / "files" / f"{source}.py").read_text()
        assert sqlite3.connect(folder / LOG).execute("PRAGMA user_version").fetchone() == (2,)
        watching = iter([run.files])
        with open_run("r", readonly=False, root=root) as writer:
            name = writer.files.put("new", ".txt")
            writer.files.put((folder / "files" / f"{source}.py").read_text(), ".py")
            writer.store.append(ev.CampaignPaused("later"))
            assert [*writer.store.texts.names()] == [f"{name}.txt"], "what is in a file is not written again"
        assert next(watching).get(name, ".txt") == "new", "who reads meanwhile finds what is new"
    assert records(root)[:-1] == before
    assert len(list((folder / "files").iterdir())) == count, (
        "old texts stay where they are, new ones go elsewhere"
    )
    state = simulated_campaign(root, "r", candidates=15)
    assert state.distinct_programs == 15 and findings(root, deep=True) == []
    with open_run("r", readonly=False, root=root) as run:
        done = compact(run)
    assert done.texts > count and not (folder / "files").exists(), "the log holds them all"
    assert findings(root, deep=True) == []
    assert simulated_campaign(root, "r", candidates=17).distinct_programs == 17


def test_a_pack_of_an_older_run_is_read_and_taken_over(root: Path):
    folder = root / "r"
    as_version_2(folder)
    db = sqlite3.connect(folder / "files" / PACK)
    db.execute("CREATE TABLE files (name TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID")
    for file in list((folder / "files").glob("*.*[ny]")):
        db.execute("INSERT INTO files VALUES (?, ?)", (file.name, zlib.compress(file.read_bytes())))
        file.unlink()
    db.commit()
    assert findings(root, deep=True) == []
    with open_run("r", readonly=False, root=root) as run:
        assert compact(run).texts > 20
    assert not (folder / "files").exists() and findings(root, deep=True) == []
    db.close()


def test_a_step_to_texts_that_is_cut_off_leaves_the_old_log(root: Path, monkeypatch: pytest.MonkeyPatch):
    from search.log import schema

    as_version_2(root / "r")

    def killed(db: sqlite3.Connection) -> None:
        schema._from_2_to_3(db)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setitem(schema.STEPS, 2, killed)
        with pytest.raises(KeyboardInterrupt):
            SqliteEventStore(root / "r" / LOG)
    assert findings(root, deep=True) == []
    assert simulated_campaign(root, "r", candidates=14).distinct_programs == 14


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


def test_what_a_driver_writes_while_its_run_is_checked_is_nothing_to_speak_of(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    with open_run("r", readonly=False, root=root) as driver:
        rows = SqliteEventStore.rows

        def driven(store: SqliteEventStore, after: int = 0) -> Iterator[Any]:
            yield from rows(store, after)
            driver.files.put("an answer", ".txt")
            driver.store.append(ev.CampaignPaused("x"))

        monkeypatch.setattr(SqliteEventStore, "rows", driven)
        with open_run("r", readonly=True, root=root) as run:
            assert check_run(run).findings == []


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


def _without_guards(folder: Path, statement: str) -> None:
    db = sqlite3.connect(folder / LOG)
    for name in ("texts_never_change", "texts_never_go"):
        db.execute(f"DROP TRIGGER {name}")
    assert db.execute(statement).rowcount
    db.commit()
    db.close()


def _lose_a_text(folder: Path) -> None:
    _without_guards(folder, "DELETE FROM texts WHERE id = (SELECT max(id) FROM texts WHERE name LIKE '%.py')")


def _change_a_text(folder: Path) -> None:
    _without_guards(folder, "UPDATE texts SET body = '{}' WHERE name LIKE '%.json'")


def _break_a_text(folder: Path) -> None:
    _without_guards(folder, "UPDATE texts SET body = x'00' WHERE name LIKE '%.json'")


def _make_a_text_a_number(folder: Path) -> None:
    _without_guards(folder, "UPDATE texts SET body = 5 WHERE name LIKE '%.json'")


def _lose_a_file(folder: Path) -> None:
    as_version_2(folder)
    next(iter(sorted((folder / "files").glob("*.py")))).unlink()


def _change_a_file(folder: Path) -> None:
    as_version_2(folder)
    next(iter(sorted((folder / "files").glob("*.json")))).write_text("{}")


def _lose_all_texts(folder: Path) -> None:
    db = sqlite3.connect(folder / LOG)
    db.execute("DROP TABLE texts")
    db.close()


def _overwrite_a_pack(folder: Path) -> None:
    as_version_2(folder)
    (folder / "files" / PACK).write_bytes(b"no database" * 1000)


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
        (_lose_a_text, "holds no text"),
        (_change_a_text, "not what its name says"),
        (_break_a_text, "a text cannot be read"),
        (_make_a_text_a_number, "a text that is none"),
        (_lose_a_file, "holds no text"),
        (_change_a_file, "not what its name says"),
        (_lose_all_texts, "^event log .*no such table: texts"),
        (_overwrite_a_pack, "^event log .*not a database"),
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
    with open_run("r", readonly=False, root=root) as run:
        state = read_state(run)
        (added,) = run.store.append(ev.CampaignPaused("later"))
        assert added.seq == len(before) + 1
        source = run.files.get(next(iter(state.candidates.values())).source, ".py")
        assert source
        # What is stored after packing is packed the next time.
        name = run.files.put("new", ".txt")
        assert run.files.put(source, ".py")
        run.store.append(ev.CampaignPaused("later still"))
        assert compact(run).texts == done.texts + 1
    with open_run("r", readonly=True, root=root) as run:
        assert run.files.get(name, ".txt") == "new"
    assert len(records(root)) == len(before) + 2
    assert findings(root) == []
    state = simulated_campaign(root, "r", candidates=15)
    assert state.distinct_programs == 15


def test_a_packed_segment_that_was_changed_is_found(root: Path):
    from search.log.rows import pack, unpack

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


def test_a_packed_log_is_read_from_any_event_on(tmp_path: Path):
    with open_run("r", readonly=False, root=tmp_path) as run:
        run.store.append(*[ev.CampaignPaused("x")] * 2500)
        compact(run)
    with open_run("r", readonly=False, root=tmp_path) as run:
        run.store.append(*[ev.CampaignPaused("x")] * 1500)
        for after in (0, 999, 1000, 1001, 2499, 2500, 3499, 3500, 3501, 4000):
            assert [r.seq for r in run.store.read(after)] == list(range(after + 1, 4001))


def test_nobody_packs_under_a_reader(root: Path):
    with open_run("r", readonly=True, root=root) as reading:
        rows = reading.store.read()
        next(rows)
        with open_run("r", readonly=False, root=root) as run, pytest.raises(VortexError) as error:
            compact(run)
        assert error.value.code == "VS049"
        assert len(list(rows)) > 20, "the reader goes on undisturbed"
    assert findings(root) == []


@pytest.mark.parametrize("moment", ["before the log is exchanged", "before the files go"])
def test_a_packing_that_is_killed_loses_nothing(root: Path, monkeypatch: pytest.MonkeyPatch, moment: str):
    as_version_2(root / "r")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, open_run("r", readonly=False, root=root) as run:
        if moment == "before the files go":
            patched.setattr("search.log.older.OlderFiles.remove", killed)
        else:
            patched.setattr("os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            compact(run)
    assert findings(root, deep=True) == []
    with open_run("r", readonly=False, root=root) as run:
        compact(run)
    assert findings(root, deep=True) == [] and not (root / "r" / "files").exists()


def test_packing_takes_away_nothing_that_it_does_not_keep(root: Path):
    as_version_2(root / "r")
    beside = root / "r" / "files" / "notes.md"
    beside.write_text("a user's")
    with open_run("r", readonly=False, root=root) as run:
        compact(run)
    assert beside.read_text() == "a user's"
    assert [p.name for p in beside.parent.iterdir()] == [beside.name], "texts are in the log"
    assert findings(root, deep=True) == []


def test_packing_a_run_whose_files_are_a_link_leaves_what_it_leads_to(root: Path, tmp_path: Path):
    """Of a stranger's run it may lead anywhere."""
    count, elsewhere = as_version_2(root / "r"), tmp_path / "elsewhere"
    (root / "r" / "files").rename(elsewhere)
    (root / "r" / "files").symlink_to(elsewhere)
    (elsewhere / "thesis.tex").write_text("mine")
    with open_run("r", readonly=False, root=root) as run:
        compact(run)
    assert len(list(elsewhere.iterdir())) == count + 1
    assert not (root / "r" / "files").is_symlink() and findings(root, deep=True) == []


def test_files_go_when_the_disk_has_the_log_that_holds_their_texts(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    """Otherwise a power failure may leave the old log without them."""
    as_version_2(root / "r")
    done: list[str] = []
    replace, fsync, unlink = os.replace, os.fsync, Path.unlink

    def synced(handle: int) -> None:
        done.append(f"to the disk {Path(f'/proc/self/fd/{handle}').readlink()}")
        fsync(handle)

    def unlinked(path: Path, missing_ok: bool = False) -> None:
        if path.parent.name == "files":
            done.append("gone")
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(os, "replace", lambda *names: (done.append("replaced"), replace(*names)))
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "unlink", unlinked)
    with open_run("r", readonly=False, root=root) as run:
        compact(run)
    assert done[:3] == ["replaced", f"to the disk {root / 'r'}", "gone"]


@pytest.mark.parametrize("body", [b"no zlib", "text", 5])
def test_a_pack_that_lies_is_refused(tmp_path: Path, body: object):
    name = digest("text")
    db = sqlite3.connect(tmp_path / PACK)
    db.execute("CREATE TABLE files (name, body)")
    db.execute("INSERT INTO files VALUES (?, ?)", (f"{name}.py", body))
    db.commit()
    db.close()
    with pytest.raises(VortexError, match="VS005"):
        ContentStore(MemoryTexts(), tmp_path).get(name, ".py")


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

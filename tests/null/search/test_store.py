"""The event log: conformance of both stores, locking, append-only, versions."""

from __future__ import annotations

import multiprocessing
import sqlite3
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path
from threading import Timer

import pytest

from search.log import events as ev
from search.log import lock as locks
from search.log.store import EventStore, MemoryEventStore, SqliteEventStore
from search.testing import EXAMPLES, StoreConformance
from vortex_core.errors import VortexError


class TestMemoryStore(StoreConformance):
    def open(self, tmp_path: Path) -> EventStore:
        return MemoryEventStore(clock=lambda: 1.0)


class TestSqliteStore(StoreConformance):
    def open(self, tmp_path: Path) -> EventStore:
        return SqliteEventStore(tmp_path / "events.sqlite")

    def test_survives_closing(self, tmp_path: Path) -> None:
        with_events = self.open(tmp_path)
        with_events.texts.keep("a.py", "é·漢\0")
        with_events.texts.keep("b.txt", "")
        with_events.append(*EXAMPLES)
        with_events.texts.keep("c.py", "named by nothing")
        with_events.close()
        again = self.open(tmp_path)
        assert tuple(r.event for r in again.read()) == EXAMPLES
        assert again.append(EXAMPLES[0])[0].seq == len(EXAMPLES) + 1
        assert (again.texts.get("a.py"), again.texts.get("b.txt")) == ("é·漢\0", "")
        again.close()
        again = self.open(tmp_path)
        again.texts.keep("a.py", "another")  # not read before: the row decides
        again.append(EXAMPLES[0])
        assert isinstance(again, SqliteEventStore) and not again._texts.waiting, "written once"
        again.close()
        again = self.open(tmp_path)
        assert (again.texts.get("a.py"), again.texts.get("c.py")) == ("é·漢\0", None)
        again.close()

    def test_an_event_and_what_it_names_come_together_or_not_at_all(self, tmp_path: Path) -> None:
        store = self.open(tmp_path)
        store.append(EXAMPLES[0])
        reader = SqliteEventStore(tmp_path / "events.sqlite", readonly=True)
        store.texts.keep("a.py", "text")
        assert reader.texts.get("a.py") is None, "nothing names it yet"
        other = sqlite3.connect(tmp_path / "events.sqlite", isolation_level=None)
        other.execute("UPDATE writer SET token = 'another'")
        with pytest.raises(VortexError) as stopped:
            store.append(EXAMPLES[1])
        assert stopped.value.code == "VS047"
        assert (reader.texts.get("a.py"), len(list(reader.read()))) == (None, 1)
        assert isinstance(store, SqliteEventStore) and store._lock is not None
        other.execute("UPDATE writer SET token = ?", (store._lock.token,))
        store.append(EXAMPLES[1])
        assert (reader.texts.get("a.py"), len(list(reader.read()))) == ("text", 2)
        for one in (store, reader, other):
            one.close()


def test_events_can_be_neither_changed_nor_removed(tmp_path: Path):
    store = SqliteEventStore(tmp_path / "log.sqlite")
    store.texts.keep("a.py", "text")
    store.append(*EXAMPLES)
    store.close()
    db = sqlite3.connect(tmp_path / "log.sqlite")
    for sql in (
        "DELETE FROM events",
        "UPDATE events SET time = 0",
        "DELETE FROM texts",
        "UPDATE texts SET body = ''",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            db.execute(sql)
    db.close()


def _hold(path: str, ready: Event, done: Event) -> None:
    store = SqliteEventStore(Path(path))
    ready.set()
    done.wait(20)
    store.close()


def test_a_second_writer_is_refused_and_readers_are_not(tmp_path: Path):
    path = tmp_path / "run" / "events.sqlite"
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(str(path), ready, done))
    holder.start()
    try:
        assert ready.wait(20)
        with pytest.raises(VortexError) as error:
            SqliteEventStore(path)
        assert error.value.code == "VS003"
        assert str(holder.pid) in error.value.message
        reader = SqliteEventStore(path, readonly=True)
        assert list(reader.read()) == []
        reader.close()
    finally:
        done.set()
        holder.join(20)
    SqliteEventStore(path).close()


def test_the_lock_dies_with_its_holder(tmp_path: Path):
    path = tmp_path / "events.sqlite"
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(str(path), ready, done))
    holder.start()
    assert ready.wait(20)
    holder.kill()
    holder.join(20)
    SqliteEventStore(path).close()


def test_a_file_that_is_no_log_is_refused(tmp_path: Path):
    path = tmp_path / "events.sqlite"
    path.write_text("not a database, just text " * 100)
    with pytest.raises(VortexError) as error:
        SqliteEventStore(path)
    assert error.value.code == "VS005"
    path.unlink()
    SqliteEventStore(path).close()  # the failed attempt left no lock behind


@pytest.mark.parametrize(
    ("kind", "version", "body"),
    [
        ("no_such_event", 1, {}),
        ("campaign_paused", 99, {"reason": "x"}),
        ("campaign_paused", 1, {"reason": "x", "extra": 1}),
    ],
)
def test_what_this_version_does_not_know_is_refused(kind: str, version: int, body: dict[str, object]):
    with pytest.raises(VortexError) as error:
        ev.from_json(kind, version, body)
    assert error.value.code == "VS005"


def test_every_event_comes_back_equal():
    for event in EXAMPLES:
        assert ev.from_json(event.kind, event.version, event.to_json()) == event
    assert len(ev.kinds()) >= 15


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqliteEventStore]:
    """A log as on a network file system, where readers and the writer keep each other out."""
    monkeypatch.setattr(locks, "filesystem_of", lambda path: "nfs4")
    store = SqliteEventStore(tmp_path / "events.sqlite")
    store.append(*[ev.CampaignPaused("x" * 500)] * 2500)
    yield store
    store.close()


def test_who_folds_a_long_log_does_not_hold_its_writer_up(shared: SqliteEventStore) -> None:
    """A log of 100,000 candidates takes half a minute to fold, and a writer that waits so long gives up."""
    shared._db.execute("PRAGMA busy_timeout=200")
    reader = SqliteEventStore(shared.path, readonly=True)
    rows = reader.read()
    seen = [next(rows).seq]
    shared.append(ev.CampaignPaused("meanwhile"))
    seen += [record.seq for record in rows]
    assert seen == list(range(1, 2502))
    assert [r.seq for r in reader.read(after=2400)] == list(range(2401, 2502))
    reader.close()


def test_a_writer_waits_for_who_reads_all_at_once(shared: SqliteEventStore) -> None:
    """`fsck` looks at every page of a database in one read."""
    checking = sqlite3.connect(shared.path, isolation_level=None, check_same_thread=False)
    checking.execute("BEGIN")
    checking.execute("SELECT count(*) FROM events").fetchone()
    done = Timer(6, lambda: checking.execute("COMMIT"))
    done.start()
    (added,) = shared.append(ev.CampaignPaused("then"))
    assert added.seq == 2501
    done.join()
    checking.close()

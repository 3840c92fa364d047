"""What is on the disk when: before a call is sent, after it is paid for, and when the disk fails."""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from search.log import events as ev
from search.log import lock as locks
from search.log import syncing
from search.log.files import ContentStore
from search.log.run import LOG
from search.log.store import SqliteEventStore
from vortex_core.errors import VortexError

ASKED = ev.Asked(1, "main", "seed", (), 5, "model")
BOOKED = ev.CallBooked(1, "model", 100, 0.01)
FAILED = ev.ProposalFailed(1, {"code": "VA1"}, 0.5, calls=1)


def answer(source: str, calls: int = 1) -> ev.Proposed:
    return ev.Proposed(1, source, "", "model", 0.1, calls=calls)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteEventStore]:
    found = SqliteEventStore(tmp_path / LOG)
    yield found
    found.close()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Says what bringing something to the disk does."""

    def behave(how: Callable[[], None]) -> None:
        monkeypatch.setattr(syncing.os, "fsync", lambda file: how())

    return behave


def waits(store: SqliteEventStore, event: ev.Event) -> bool:
    store.append(event)
    (level,) = store._db.execute("PRAGMA synchronous").fetchone()
    return bool(level == 2)  # FULL: the commit returned when the disk had it


def test_the_disk_is_waited_for_before_a_call_is_sent_and_at_an_end(store: SqliteEventStore) -> None:
    free = [ASKED, answer("a" * 16, calls=0), answer("a" * 16), FAILED]
    ends = [BOOKED, ev.CampaignPaused("x"), ev.CampaignFinished("x", None)]
    assert [waits(store, event) for event in (*free, *ends, ASKED)] == [False] * 4 + [True] * 3 + [False]


def test_what_was_paid_for_is_on_its_way_to_the_disk_at_once_and_nobody_waits(
    tmp_path: Path, store: SqliteEventStore, disk: Callable[[Callable[[], None]], None]
) -> None:
    """The power fails when the first write to the disk has ended: the answer and its program are there."""
    slow, asked = threading.Event(), threading.Semaphore(0)

    def write() -> None:
        asked.release()
        assert slow.wait(20)

    disk(write)
    files = ContentStore(store.texts, tmp_path / "files")
    store.append(ASKED)
    store.append(answer(files.put("free", ".py"), calls=0))
    assert not asked.acquire(timeout=0.1), "what was free need not hurry"
    source = files.put("x = 1", ".py")
    store.append(answer(source))
    assert asked.acquire(timeout=20)
    (tmp_path / "disk").mkdir()
    for name in (LOG, f"{LOG}-wal"):
        shutil.copy(tmp_path / name, tmp_path / "disk" / name)
    for event in (FAILED, FAILED, FAILED):
        store.append(event)  # the driver goes on
    slow.set()
    store.close()
    assert asked.acquire(timeout=0) and not asked.acquire(timeout=0), (
        "one more wait for all that came meanwhile"
    )
    after = SqliteEventStore(tmp_path / "disk" / LOG)
    assert [r.event for r in after.read()][-1] == answer(source)
    assert ContentStore(after.texts, tmp_path / "files").get(source, ".py") == "x = 1"
    after.close()


def test_a_disk_that_fails_meanwhile_stops_all_that_would_follow(
    store: SqliteEventStore, disk: Callable[[Callable[[], None]], None]
) -> None:
    struck = threading.Event()

    def fail() -> None:
        struck.set()
        raise OSError(errno.EIO, "Input/output error")

    disk(fail)
    store.append(FAILED)
    assert struck.wait(20) and store._syncing._thread is not None
    store._syncing._thread.join(20)
    for _ in range(2):  # what a disk lost once it does not report a second time
        with pytest.raises(VortexError, match=r"VS017.*Input/output error"):
            store.append(ASKED)
    assert len(list(store.read())) == 1


def test_a_log_on_a_network_file_system_waits_at_every_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: Callable[[Callable[[], None]], None]
) -> None:
    monkeypatch.setattr(locks, "filesystem_of", lambda path: "nfs4")
    shared = SqliteEventStore(tmp_path / "shared" / LOG)
    assert waits(shared, ASKED) and waits(shared, answer("a" * 16))
    assert shared._syncing._thread is None, "it has no file that is only ever written at its end"
    shared.close()

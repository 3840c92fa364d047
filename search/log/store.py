"""The event log of a run: append-only, one writer, any number of readers.

`EventStore` is the contract; `search.testing.StoreConformance` checks an implementation against it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from search.errors import bad_log, not_written, run_locked
from search.log import events
from vortex_core.files import parse_json
from vortex_core.text import visible

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    time REAL NOT NULL,
    kind TEXT NOT NULL,
    version INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE TRIGGER IF NOT EXISTS events_never_change BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER IF NOT EXISTS events_never_go BEFORE DELETE ON events
BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
"""


@dataclass(frozen=True)
class Record:
    """An event with its place in the log and the Unix time it was written."""

    seq: int
    time: float
    event: events.Event


class EventStore(Protocol):
    """An append-only log.

    `append` is atomic (all events or none), durable when it returns, and numbers events 1, 2, 3 ... without
    gaps. `read` yields records in that order. A store has one writer; it is used from one thread.
    """

    def append(self, *new: events.Event) -> list[Record]:
        """Add events; returns their records."""
        ...

    def read(self, after: int = 0) -> Iterator[Record]:
        """Records with `seq > after`, in order.

        Raises:
            VortexError: `VS005`, if the log holds what this version cannot read.
        """
        ...

    def close(self) -> None:
        """Give up the log. Closing twice does nothing."""
        ...


class MemoryEventStore:
    """A log that lives as long as the process, for tests and for evaluations nobody keeps."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._records: list[Record] = []
        self._clock = clock

    def append(self, *new: events.Event) -> list[Record]:
        """See `EventStore`. Events pass through JSON, as they would on disk."""
        start = len(self._records)
        now = self._clock()
        added = [
            Record(start + i + 1, now, _parse(e.kind, e.version, json.dumps(e.to_json()), "memory"))
            for i, e in enumerate(new)
        ]
        self._records += added
        return added

    def read(self, after: int = 0) -> Iterator[Record]:
        """See `EventStore`."""
        yield from self._records[after:]

    def close(self) -> None:
        """See `EventStore`."""


class SqliteEventStore:
    """The log as one SQLite file in WAL mode, so that readers never block the writer.

    Args:
        path: the database file.
        readonly: open for reading only; the file must exist.

    Raises:
        VortexError: `VS003`, if another process writes it; `VS005`, if it is not an event log.
    """

    def __init__(self, path: Path, *, readonly: bool = False, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._lock: IO[str] | None = None
        if not readonly:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _take_lock(path)
        try:
            if readonly:
                self._db = sqlite3.connect(_read_only(path), uri=True, isolation_level=None)
                _distrust(self._db)
            else:
                self._db = sqlite3.connect(path, isolation_level=None)
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.executescript(_SCHEMA)
            self._db.execute("SELECT count(*) FROM events").fetchone()
        except sqlite3.Error as error:
            self._unlock()
            raise bad_log(str(path), str(error)) from error

    def append(self, *new: events.Event) -> list[Record]:
        """See `EventStore`."""
        try:
            return self._append(new)
        except sqlite3.Error as error:  # the disk is full, or another program holds the file
            raise not_written(str(self.path), str(error)) from error

    def _append(self, new: Sequence[events.Event]) -> list[Record]:
        now = self._clock()
        records = []
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for event in new:
                body = json.dumps(event.to_json(), separators=(",", ":"))
                cursor = self._db.execute(
                    "INSERT INTO events (time, kind, version, body) VALUES (?, ?, ?, ?)",
                    (now, event.kind, event.version, body),
                )
                assert cursor.lastrowid is not None
                # What the driver folds is what a later reader will fold: the parsed body, not the object.
                records.append(
                    Record(cursor.lastrowid, now, _parse(event.kind, event.version, body, str(self.path)))
                )
            self._db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # a full disk may have rolled back by itself
                self._db.execute("ROLLBACK")
            raise
        return records

    def read(self, after: int = 0) -> Iterator[Record]:
        """See `EventStore`."""
        try:
            rows = self._db.execute(
                "SELECT seq, time, kind, version, body FROM events WHERE seq > ? ORDER BY seq", (after,)
            )
            for seq, when, kind, version, body in rows:
                if (type(seq), type(kind), type(version), type(body)) != (int, str, int, str):
                    raise bad_log(str(self.path), "a row of other types than an event's")
                if type(when) not in (int, float):
                    raise bad_log(str(self.path), "an event without a time")
                yield Record(seq, when, _parse(kind, version, body, str(self.path)))
        except sqlite3.Error as error:
            raise bad_log(str(self.path), str(error)) from error

    def close(self) -> None:
        """See `EventStore`."""
        self._db.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _read_only(path: Path) -> str:
    """How a reader opens a log. One whose folder cannot be written (a colleague's run, an archive) and that no writer
    left half-way is opened as never changing: otherwise SQLite would want to make files beside it."""
    beside = path.with_name(f"{path.name}-wal")
    still = not os.access(path.parent, os.W_OK) and not (beside.exists() and beside.stat().st_size)
    return f"{path.absolute().as_uri()}?{'immutable=1' if still else 'mode=ro'}"


def _distrust(db: sqlite3.Connection) -> None:
    """Read a file that anybody may have written: no code in its schema, events a plain table.

    Raises:
        sqlite3.Error: it is something else.
    """
    db.execute("PRAGMA trusted_schema=OFF")
    db.execute("PRAGMA query_only=ON")
    kind = db.execute("SELECT type FROM sqlite_schema WHERE name = 'events'").fetchone()
    if kind is None or kind[0] != "table":
        raise sqlite3.DatabaseError("it holds no table of events")


def _parse(kind: str, version: int, body: str, path: str) -> events.Event:
    try:
        data = parse_json(body)
    except ValueError as error:
        raise bad_log(path, f"an event of kind {visible(kind, 40)!r} is not JSON") from error
    return events.from_json(kind, version, data, path)


def _take_lock(path: Path) -> IO[str]:
    """An advisory lock that the kernel drops when the holder dies, however it dies."""
    lock = path.with_suffix(".lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise run_locked(path.parent.name, holder) from error
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock

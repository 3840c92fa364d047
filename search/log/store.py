"""The event log of a run: append-only, one writer, any number of readers.

`EventStore` is the contract; `search.testing.StoreConformance` checks an implementation against it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from search.errors import bad_log, not_written, run_being_read, run_taken_over
from search.log import events, foreign, schema
from search.log.lock import WriterLock, steady_clock
from search.log.rows import row, unpack
from search.log.syncing import DiskSync
from search.log.texts import MemoryTexts, SqliteTexts, Texts
from vortex_core.files import parse_json
from vortex_core.text import visible

# A reader waits so often, so many seconds each, for the tables of a log that is being made.
_BIRTH_TRIES, _BIRTH_WAIT = 20, 0.1

_PART = 1000
"""Events read at once."""
_PATIENCE = 60.0
"""Seconds that a writer waits for readers where they keep each other out: a check of the whole file is one read."""

_BODY = json.JSONEncoder(separators=(",", ":"), check_circular=False)  # events are trees
_INSERT = (
    "INSERT INTO events (seq, time, kind, version, body, chain) "
    "SELECT ?, ?, ?, ?, ?, ? FROM writer WHERE token = ?"
)


@dataclass(frozen=True)
class Record:
    """An event with its place in the log and the Unix time it was written."""

    seq: int
    time: float
    event: events.Event


class EventStore(Protocol):
    """An append-only log.

    `append` is atomic (all events or none), outlives the process when it returns, and numbers events 1, 2, 3 ...
    without gaps; times never fall. `read` yields records in that order. A store has one writer and one thread.

    Attributes:
        texts: what events name; a new one is written with the next append.
    """

    texts: Texts

    def append(self, *new: events.Event) -> list[Record]:
        """Add events; returns their records."""
        ...

    def read(self, after: int = 0) -> Iterator[Record]:
        """Records with `seq > after`, in order.

        Raises:
            VortexError: `VS005`, if the log holds what this version cannot read.
        """
        ...

    @property
    def end(self) -> tuple[int, str]:
        """Number and link of the last event when the log was opened, or was last written here."""
        ...

    def close(self) -> None:
        """Give up the log. Closing twice does nothing."""
        ...


class MemoryEventStore:
    """A log that lives as long as the process, for tests and for evaluations nobody keeps."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.texts: Texts = MemoryTexts()
        self._records: list[Record] = []
        self._clock = clock

    def append(self, *new: events.Event) -> list[Record]:
        """See `EventStore`. Events pass through JSON, as they would on disk."""
        start = len(self._records)
        now = max(self._clock(), self._records[-1].time if self._records else 0.0)
        added = [
            Record(start + i + 1, now, parse(e.kind, e.version, json.dumps(e.to_json()), "memory"))
            for i, e in enumerate(new)
        ]
        self._records += added
        return added

    def read(self, after: int = 0) -> Iterator[Record]:
        """See `EventStore`."""
        yield from self._records[after:]

    @property
    def end(self) -> tuple[int, str]:
        """See `EventStore`. Nothing is chained."""
        return len(self._records), ""

    def close(self) -> None:
        """See `EventStore`."""


class SqliteEventStore:
    """The log as one SQLite file in WAL mode, so that readers never block the writer.

    On a network file system, where the shared memory of WAL mode does not exist, it keeps a rollback journal instead:
    readers and the writer then wait for each other, for as long as an append or the reading of a part takes.

    Args:
        path: the database file.
        readonly: open for reading only; the file must exist.
        clock: Unix time that does not step while this process lives.

    Raises:
        VortexError: `VS003`, if another process writes it; `VS046`, where no lock keeps others out; `VS005`, if it is
            not an event log; `VS017` if it cannot be written.
    """

    def __init__(
        self, path: Path, *, readonly: bool = False, clock: Callable[[], float] = steady_clock
    ) -> None:
        self.path = path
        self._clock = clock
        self._wanted = True
        self._synchronous = ""
        self._syncing = DiskSync(path.with_name(f"{path.name}-wal"))
        self._lock: WriterLock | None = None
        if not readonly:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._lock = WriterLock(path)
            except OSError as error:
                raise not_written(str(path), error.strerror or str(error)) from error
        try:
            foreign.refuse_odd_files(path)
            if self._lock is None:
                self._db = sqlite3.connect(read_only_uri(path), uri=True, isolation_level=None)
                _for_reading(self._db)
            else:
                patience = _PATIENCE if self._lock.shared else 5.0
                self._db = sqlite3.connect(path, patience, isolation_level=None)
                self._open_for_writing(self._lock)
            self._version = schema.version_of(self._db)
            if self._version > schema.VERSION:
                raise bad_log(
                    str(path), f"its tables have version {self._version}, this one reads {schema.VERSION}"
                )
            self._last = self._end()
            self._texts = SqliteTexts(self._db, path, self._version)
            self.texts: Texts = self._texts
        except sqlite3.Error as error:
            self.close()
            raise bad_log(str(path), str(error)) from error
        except BaseException:
            self.close()
            raise
        self._ahead = max(0.0, self._last.time - clock())

    def _open_for_writing(self, lock: WriterLock) -> None:
        foreign.distrust(self._db, schema.TABLES)
        foreign.refuse_triggers(self._db, schema.GUARDS)
        self._db.execute(f"PRAGMA journal_mode={'DELETE' if lock.shared else 'WAL'}")
        self._wait_for_disk(True)
        if schema.version_of(self._db) <= schema.VERSION:
            schema.bring_up_to_date(self._db)
            self._db.execute("INSERT OR REPLACE INTO writer VALUES (1, ?)", (lock.token,))

    def _end(self) -> _End:
        """The last event's number, time and link."""
        link = "chain" if self._version >= 2 else "''"
        found = self._db.execute(f"SELECT seq, time, {link} FROM events ORDER BY seq DESC LIMIT 1").fetchone()
        if found is not None:
            row(self.path, found[0], found[1], "", 0, "", "")
            return _End(*found)
        if self._version >= 2:
            packed = self._db.execute(
                "SELECT last, chain, body FROM packed ORDER BY first DESC LIMIT 1"
            ).fetchone()
            if packed is not None:
                if (type(packed[0]), type(packed[1])) != (int, str):
                    raise bad_log(str(self.path), "a segment without its number and link")
                return _End(packed[0], unpack(packed[2], str(self.path))[-1][0], packed[1])
        return _End(0, 0.0, schema.START)

    def append(self, *new: events.Event) -> list[Record]:
        """See `EventStore`."""
        try:
            return self._append(new)
        except sqlite3.Error as error:  # the disk is full, or another program holds the file
            raise not_written(str(self.path), str(error)) from error

    def _append(self, new: Sequence[events.Event]) -> list[Record]:
        assert self._lock is not None, "opened for reading"
        if (failed := self._syncing.error) is not None:
            raise not_written(str(self.path), failed.strerror or str(failed)) from failed
        # Never before the last event, and never standing still because the machine's clock was set back meanwhile.
        now = max(self._clock() + self._ahead, self._last.time)
        rows, records, last = [], [], self._last
        for event in new:
            body = _BODY.encode(event.to_json())
            seq = last.seq + 1
            chain = schema.link(last.chain, seq, now, event.kind, event.version, body)
            rows.append((seq, now, event.kind, event.version, body, chain, self._lock.token))
            # What the driver folds is what a later reader will fold: the parsed body, not the object.
            records.append(Record(seq, now, parse(event.kind, event.version, body, str(self.path))))
            last = _End(seq, now, chain)
        self._wait_for_disk(self._wanted and (self._lock.shared or any(map(_is_waited_for, new))))
        if len(rows) == 1 and not self._texts.waiting:  # one statement is a transaction
            self._insert(rows[0])
        else:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._texts.write()
                for added in rows:
                    self._insert(added)
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # a full disk may have rolled back by itself
                    self._db.execute("ROLLBACK")
                raise
        self._texts.written()
        self._last = last
        if self._wanted and not self._lock.shared and any(map(_is_paid, new)):
            self._syncing.begin()
        return records

    def _insert(self, row: tuple[int, float, str, int, str, str, str]) -> None:
        """Write an event, as long as its writer is the one that the log names.

        Raises:
            VortexError: `VS047`, if another has taken the run over.
        """
        if self._db.execute(_INSERT, row).rowcount != 1:
            raise run_taken_over(self.path.parent.name)

    def read(self, after: int = 0) -> Iterator[Record]:
        """See `EventStore`."""
        for seq, when, kind, version, body, _ in self.rows(after):
            yield Record(seq, when, parse(kind, version, body, str(self.path)))

    def rows(self, after: int = 0) -> Iterator[tuple[int, float, str, int, str, str]]:
        """The same as they are stored: number, time, kind, version, body, link (empty where it is not kept).

        Raises:
            VortexError: `VS005`, if they cannot be read.
        """
        # A part at a time, each read whole: who takes minutes to read all holds up neither a writer that waits for
        # readers nor the shortening of its journal.
        try:
            begun = 0
            while segment := self._segment(begun, after):
                begun, last, packed = segment
                if (type(begun), type(last)) != (int, int):
                    raise bad_log(str(self.path), "a segment without numbers")
                lines = unpack(packed, str(self.path))
                if len(lines) != last - begun + 1:
                    raise bad_log(str(self.path), f"segment {begun} holds {len(lines)} events")
                for seq, (when, kind, version, body) in enumerate(lines, begun):
                    if seq > after:
                        yield row(self.path, seq, when, kind, version, body, "")
            link = "chain" if self._version >= 2 else "''"
            select = f"SELECT seq, time, kind, version, body, {link} FROM events WHERE seq > ? ORDER BY seq LIMIT ?"
            while part := self._db.execute(select, (after, _PART)).fetchall():
                for found in part:
                    yield row(self.path, *found)
                after = part[-1][0]
        except sqlite3.Error as error:
            raise bad_log(str(self.path), str(error)) from error

    def _segment(self, begun: int, after: int) -> tuple[Any, Any, Any] | None:
        """First and last number of the next packed segment with events after one, and its body; None for the last."""
        if self._version < 2:
            return None
        found: tuple[Any, Any, Any] | None = self._db.execute(
            "SELECT first, last, body FROM packed WHERE first > ? AND last > ? ORDER BY first LIMIT 1",
            (begun, after),
        ).fetchone()
        return found

    @property
    def end(self) -> tuple[int, str]:
        """See `EventStore`."""
        return self._last.seq, self._last.chain

    def durable(self, wanted: bool) -> None:
        """Whether appends wait for the disk at all. Off for tests and simulations only: a power failure may then lose
        what was paid for."""
        self._wanted = wanted

    def _wait_for_disk(self, wait: bool) -> None:
        """Whether commits do, from here on.

        An append outlives the death of any process either way. Only the failure of power or kernel may take the
        last ones, never half of one and never an earlier one alone; what that would repeat is some computing, so only
        what is about to be paid for waits (and takes all before it along). What was paid for is on its way to the
        disk at once: who waited for it could not make it arrive earlier.
        """
        mode = "FULL" if wait else "NORMAL" if self._wanted else "OFF"
        if mode != self._synchronous:
            self._db.execute(f"PRAGMA synchronous={mode}")
            self._synchronous = mode

    def rest(self) -> None:
        """Fold everything into the one file and close it, so that another may take its place; the lock is kept.

        Raises:
            VortexError: `VS049`, while somebody else has it open.
        """
        try:
            self._db.execute("PRAGMA busy_timeout=500")
            (mode,) = self._db.execute("PRAGMA journal_mode=DELETE").fetchone()
            if mode != "delete":
                raise run_being_read(self.path.parent.name)
        except sqlite3.OperationalError as error:
            raise run_being_read(self.path.parent.name) from error
        self._db.close()

    def close(self) -> None:
        """See `EventStore`."""
        self._syncing.close()
        if hasattr(self, "_db"):
            self._db.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None


@dataclass(frozen=True)
class _End:
    seq: int
    time: float
    chain: str


def _is_waited_for(event: events.Event) -> bool:
    """Whether something follows that cannot be taken back: a call is sent, or people are told that all is written."""
    return isinstance(event, (events.CallBooked, events.CampaignPaused, events.CampaignFinished))


def _is_paid(event: events.Event) -> bool:
    """Whether to lose the event would be to pay again."""
    return isinstance(event, (events.Proposed, events.ProposalFailed)) and event.calls > 0


def read_only_uri(path: Path) -> str:
    """How a reader opens a log. One whose folder cannot be written (a colleague's run, an archive) and that no writer
    left half-way is opened as never changing: otherwise SQLite would want to make files beside it."""
    beside = path.with_name(f"{path.name}-wal")
    still = not os.access(path.parent, os.W_OK) and not (beside.exists() and beside.stat().st_size)
    return f"{path.absolute().as_uri()}?{'immutable=1' if still else 'mode=ro'}"


def _for_reading(db: sqlite3.Connection) -> None:
    """Read a file that anybody may have written.

    Raises:
        sqlite3.Error: it is something else than a log.
    """
    db.execute("PRAGMA query_only=ON")
    for _ in range(_BIRTH_TRIES):  # a writer may have made the file and not yet its tables
        if db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            break
        time.sleep(_BIRTH_WAIT)
    foreign.distrust(db, schema.TABLES)
    if not db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'events'").fetchone()[0]:
        raise sqlite3.DatabaseError("it holds no table of events")


def parse(kind: str, version: int, body: str, path: str) -> events.Event:
    """An event from what is stored of it.

    Raises:
        VortexError: `VS005`.
    """
    try:
        data = parse_json(body)
    except ValueError as error:
        raise bad_log(path, f"an event of kind {visible(kind, 40)!r} is not JSON") from error
    return events.from_json(kind, version, data, path)


__all__ = [
    "EventStore",
    "MemoryEventStore",
    "Record",
    "SqliteEventStore",
    "parse",
    "read_only_uri",
]

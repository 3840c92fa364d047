"""Packing a run that rests: its events compressed a thousand at a time, its texts one by one, all in the log.

The packed log says the same: the same numbers, times, bodies and links. It is written beside the old one, compared with
it record by record, and only then takes its place, so a crash at any point leaves one whole log.
"""

from __future__ import annotations

import errno
import itertools
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from search.errors import bad_log, not_written
from search.log import schema
from search.log.rows import pack
from search.log.run import LOG, Run
from search.log.store import SqliteEventStore
from search.log.texts import packed

SEGMENT = 1000
"""Events packed together."""


@dataclass(frozen=True)
class Compaction:
    """What packing did: bytes of the run's folder before and after, events and texts packed."""

    before: int
    after: int
    events: int
    texts: int


def size_of(folder: Path) -> int:
    """Bytes that a folder's files take on the disk."""
    return sum(p.stat().st_blocks * 512 for p in folder.rglob("*") if p.is_file())


def compact(run: Run) -> Compaction:
    """Pack a run that is open for writing. Its store is closed by it.

    Raises:
        VortexError: `VS049` while somebody reads it, `VS005` for a log that cannot be read, `VS017` for a disk
            without room.
    """
    store = run.store
    assert isinstance(store, SqliteEventStore)
    before = size_of(run.folder)
    log, new = run.folder / LOG, run.folder / f"{LOG}.packing"
    new.unlink(missing_ok=True)
    try:
        events = _write(run, new)
        texts = _compare(run, new)
        store.rest()
        os.replace(new, log)  # noqa: PTH105 - one atomic step
        _to_disk(run.folder)  # before anything goes that the old log needed
    except (sqlite3.Error, OSError) as error:
        raise not_written(str(new), str(error)) from error
    finally:
        new.unlink(missing_ok=True)
    try:
        run.files.older.remove(texts)  # their texts are in the log now
    except OSError as error:
        raise not_written(str(run.files.older.folder), error.strerror or str(error)) from error
    for shadow in run.folder.glob("live.sqlite*"):  # what a driver shows is made again from the log
        shadow.unlink()
    return Compaction(before, size_of(run.folder), events, len(texts))


def _write(run: Run, path: Path) -> int:
    """A packed copy of a run's log, with its texts; returns its number of events."""
    store = run.store
    assert isinstance(store, SqliteEventStore)
    db = sqlite3.connect(path, isolation_level=None)
    try:
        schema.bring_up_to_date(db)
        db.execute("BEGIN")
        count, chain, rows = 0, schema.START, store.rows()
        while segment := list(itertools.islice(rows, SEGMENT)):
            first = segment[0][0]
            for seq, when, kind, version, body, said in segment:
                chain = schema.link(chain, seq, when, kind, version, body)
                if said not in ("", chain):
                    raise bad_log(str(store.path), f"event {seq} is not the one that was written: see fsck")
            blob = pack([(when, kind, version, body) for _, when, kind, version, body, _ in segment])
            count = segment[-1][0]
            db.execute("INSERT INTO packed VALUES (?, ?, ?, ?)", (first, count, chain, blob))
        db.execute("INSERT INTO sqlite_sequence VALUES ('events', ?)", (count,))
        for name in sorted(run.files.names()):
            db.execute("INSERT INTO texts (name, body) VALUES (?, ?)", (name, packed(run.files.text(name))))
        db.execute("COMMIT")
    finally:
        db.close()
    return count


def _to_disk(folder: Path) -> None:
    """Wait until the disk has a folder's entries as they are, where a file system lets one wait for that."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _compare(run: Run, path: Path) -> set[str]:
    """Refuse a copy that does not say what the run says; returns the names of its texts."""
    store = run.store
    assert isinstance(store, SqliteEventStore)
    copy = SqliteEventStore(path, readonly=True)
    try:
        for ours, theirs in itertools.zip_longest(store.rows(), copy.rows()):
            assert ours is not None and theirs is not None and ours[:5] == theirs[:5], (
                "a packed event differs"
            )
        assert copy.end == store.end, "the packed log ends otherwise"
        names = run.files.names()
        assert {*copy.texts.names()} == names, "a packed text is missing"
        for name in names:
            assert copy.texts.get(name) == run.files.text(name), "a packed text differs"
        return names
    finally:
        copy.close()

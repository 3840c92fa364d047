"""The database of an event log: its tables, its version, and the steps that bring an older one up to date.

Version 1 held the events alone. Version 2 chains them (each row's hash covers the one before, so that a changed,
lost or exchanged event is found), names the one writer, and may hold events packed by `search.log.compact`. Version 3
holds the texts that events name, too, which were files of their own; those of older runs stay where they are.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable

VERSION = 3
START = "0" * 16
"""The link before the first event."""

_EVENTS = """
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    time REAL NOT NULL,
    kind TEXT NOT NULL,
    version INTEGER NOT NULL,
    body TEXT NOT NULL,
    chain TEXT NOT NULL DEFAULT ''
)"""
_PACKED = """
CREATE TABLE IF NOT EXISTS packed (
    first INTEGER PRIMARY KEY,
    last INTEGER NOT NULL,
    chain TEXT NOT NULL,
    body BLOB NOT NULL
)"""
_TEXTS = """
CREATE TABLE IF NOT EXISTS texts (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    body NOT NULL
)"""
_WRITER = "CREATE TABLE IF NOT EXISTS writer (id INTEGER PRIMARY KEY CHECK (id = 1), token TEXT NOT NULL)"


def _guards(*tables: str) -> list[str]:
    return [
        f"CREATE TRIGGER IF NOT EXISTS {table}_never_{word} BEFORE {action} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} are append-only'); END"
        for table in tables
        for word, action in (("change", "UPDATE"), ("go", "DELETE"))
    ]


_TO_2 = (_PACKED, _WRITER, *_guards("events", "packed"))
_TO_3 = (_TEXTS, *_guards("texts"))
TABLES = ("events", "packed", "texts", "writer", "sqlite_sequence")
GUARDS = frozenset(
    " ".join(guard.replace(" IF NOT EXISTS", "").split()) for guard in _guards("events", "packed", "texts")
)
"""The triggers of a log, as SQLite keeps their text."""


def link(before: str, seq: int, time: float, kind: str, version: int, body: str) -> str:
    """The hash of an event and of all before it: 16 hex digits of SHA-256."""
    text = f"{before}\n{seq}\n{time!r}\n{kind}\n{version}\n{body}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def version_of(db: sqlite3.Connection) -> int:
    """The version of a database's tables; 0 where there are none yet."""
    (stated,) = db.execute("PRAGMA user_version").fetchone()
    if stated > 0:
        return int(stated)
    if stated:
        raise sqlite3.DatabaseError(f"its tables have version {stated}")
    found = db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'events'").fetchone()
    return 1 if found[0] else 0


def bring_up_to_date(db: sqlite3.Connection) -> int:
    """Make the tables, or take an older database through every step up to `VERSION`, all or nothing.

    Returns:
        The version found.
    """
    found = version_of(db)
    if found == VERSION:
        return found
    db.execute("BEGIN IMMEDIATE")
    try:
        if found == 0:
            for statement in (_EVENTS, *_TO_2, *_TO_3):
                db.execute(statement)
        for version in range(found, VERSION) if found else ():
            STEPS[version](db)
        db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise
    return found


def _from_1_to_2(db: sqlite3.Connection) -> None:
    """Chain the events that are there. What an event says stays as it was written."""
    for name in ("events_never_change", "events_never_go"):
        db.execute(f"DROP TRIGGER IF EXISTS {name}")
    db.execute("ALTER TABLE events ADD COLUMN chain TEXT NOT NULL DEFAULT ''")
    chain = START
    rows = db.execute("SELECT seq, time, kind, version, body FROM events ORDER BY seq").fetchall()
    for row in rows:
        chain = link(chain, *row)
        db.execute("UPDATE events SET chain = ? WHERE seq = ?", (chain, row[0]))
    for statement in _TO_2:
        db.execute(statement)


def _from_2_to_3(db: sqlite3.Connection) -> None:
    """Make room for texts. Those that are files stay files."""
    for statement in _TO_3:
        db.execute(statement)


STEPS: dict[int, Callable[[sqlite3.Connection], None]] = {1: _from_1_to_2, 2: _from_2_to_3}
"""By the version each starts from."""

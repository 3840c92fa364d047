"""SQLite files that anybody may have written: opened only where they are plain tables in plain files."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Collection
from pathlib import Path

_LONGEST = 256 << 20
"""Bytes of one value at most: a forged file makes no larger one."""


def refuse_odd_files(path: Path) -> None:
    """Refuse a database that is no regular file, or has something else where SQLite looks for its journals: opening
    a pipe waits for ever.

    Raises:
        sqlite3.DatabaseError: says which.
    """
    for beside in ("", "-wal", "-shm", "-journal"):
        file = path.with_name(path.name + beside)
        try:
            mode = file.stat().st_mode
        except FileNotFoundError:
            if file.is_symlink():
                raise sqlite3.DatabaseError(f"{file.name} is a link to nowhere") from None
            continue
        except OSError as error:
            raise sqlite3.DatabaseError(f"{file.name}: {error.strerror}") from None
        if not stat.S_ISREG(mode):
            raise sqlite3.DatabaseError(f"{file.name} is no file")


def distrust(db: sqlite3.Connection, tables: Collection[str]) -> None:
    """Run no code of a file's schema, and take its `tables`, as far as they are there, only where they are plain:
    no view, no virtual table, no computed column; these may never end, or make gigabytes of a few bytes.

    Raises:
        sqlite3.Error: they are not.
    """
    db.execute("PRAGMA trusted_schema=OFF")
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST)
    for name, kind, sql in db.execute(
        "SELECT name, type, sql FROM sqlite_schema WHERE type IN ('table', 'view')"
    ):
        if str(name).lower() not in tables:
            continue
        if kind != "table" or not str(sql).lstrip().upper().startswith("CREATE TABLE"):
            raise sqlite3.DatabaseError(f"its {name} are no table")
        if any(column[6] for column in db.execute(f"PRAGMA table_xinfo({str(name).lower()})")):
            raise sqlite3.DatabaseError(f"its {name} hold computed columns")


def refuse_triggers(db: sqlite3.Connection, known: Collection[str]) -> None:
    """Before writing: refuse triggers that are not ours, which would run with every event.

    Raises:
        sqlite3.Error: there is one.
    """
    for name, sql in db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'"):
        if " ".join(str(sql).split()) not in known:
            raise sqlite3.DatabaseError(f"a trigger of its own, {name}")

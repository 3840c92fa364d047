"""Texts that events name, kept in the log itself: sources, programs, prompts, replies, dense answers.

A new text waits for the next append and is written by its transaction: an event and what it names are there together
or not at all, and nobody waits for a disk twice.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from search.errors import bad_log
from search.log import schema
from vortex_core.files import MAX_PROGRAM

_RECENT, _SHORT = 512, 32_768
"""Texts kept in memory, and characters of one at most."""


class Texts(Protocol):
    """Texts of a log by name. One of them never changes: a name stands for what it holds."""

    def keep(self, name: str, text: str) -> None:
        """Store a text with the next append; does nothing if there is one of that name."""
        ...

    def get(self, name: str) -> str | None:
        """A text, also one that still waits; None if there is none of that name.

        Raises:
            VortexError: `VS005`, if it cannot be read.
        """
        ...

    def names(self) -> Iterator[str]:
        """Names of all that are written."""
        ...


class MemoryTexts:
    """Texts that live as long as the process."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def keep(self, name: str, text: str) -> None:
        """See `Texts`."""
        self._texts.setdefault(name, text)

    def get(self, name: str) -> str | None:
        """See `Texts`."""
        return self._texts.get(name)

    def names(self) -> Iterator[str]:
        """See `Texts`."""
        yield from self._texts


class SqliteTexts:
    """Texts in a log's database.

    Args:
        db: the log's connection.
        path: of its file, for messages.
        version: of its tables. An older log has no texts until a writer brings it up to date, perhaps meanwhile.
    """

    def __init__(self, db: sqlite3.Connection, path: Path, version: int) -> None:
        self._db = db
        self._path = str(path)
        self._version = version
        self._waiting: dict[str, str] = {}
        self._recent: OrderedDict[str, str] = (
            OrderedDict()
        )  # written or read; parents are asked for again and again

    def keep(self, name: str, text: str) -> None:
        """See `Texts`."""
        if name not in self._recent:
            self._waiting.setdefault(name, text)

    def get(self, name: str) -> str | None:
        """See `Texts`."""
        known = self._waiting.get(name, self._recent.get(name))
        if known is None and (found := self._find(name)) is not None:
            known = _text(found, self._path)
            self._remember(name, known)
        return known

    def _remember(self, name: str, text: str) -> None:
        if len(text) <= _SHORT:
            self._recent[name] = text
            if len(self._recent) > _RECENT:
                self._recent.popitem(last=False)

    def _find(self, name: str) -> object:
        """What the row of a text holds; None if there is no such row."""
        try:
            if not self._there():
                return None
            found = self._db.execute("SELECT body FROM texts WHERE name = ?", (name,)).fetchone()
        except sqlite3.Error as error:
            raise bad_log(self._path, str(error)) from error
        return None if found is None else found[0]

    def _there(self) -> bool:
        if self._version < 3:
            self._version = schema.version_of(self._db)
        return self._version >= 3

    def names(self) -> Iterator[str]:
        """See `Texts`."""
        try:
            if self._there():
                yield from (str(name) for (name,) in self._db.execute("SELECT name FROM texts"))
        except sqlite3.Error as error:
            raise bad_log(self._path, str(error)) from error

    def write(self) -> None:
        """Write those that wait, in the transaction that is open."""
        for row in self._waiting.items():
            self._db.execute("INSERT OR IGNORE INTO texts (name, body) VALUES (?, ?)", row)

    def written(self) -> None:
        """The transaction is committed."""
        for name, text in self._waiting.items():
            self._remember(name, text)
        self._waiting.clear()

    @property
    def waiting(self) -> bool:
        """Whether some wait."""
        return bool(self._waiting)


def packed(text: str) -> bytes:
    """A text as a log that rests keeps it."""
    return zlib.compress(text.encode(), 6)


def inflated(body: bytes) -> str:
    """Inverse of `packed`.

    Raises:
        ValueError: it is something else, or larger than a program may be.
        zlib.error: the same.
    """
    inflater = zlib.decompressobj()
    data = inflater.decompress(body, MAX_PROGRAM)
    if not inflater.eof:
        raise ValueError(f"it is larger than {MAX_PROGRAM} bytes")
    return data.decode("utf-8")


def _text(body: object, path: str) -> str:
    if isinstance(body, str) and len(body) <= MAX_PROGRAM:
        return body
    try:
        if isinstance(body, bytes):
            return inflated(body)
    except (zlib.error, ValueError) as error:
        raise bad_log(path, f"a text cannot be read: {error}") from error
    raise bad_log(path, "a text that is none")

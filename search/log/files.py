"""Content-addressed files of a run: a name is the hash of what it holds, so a file is written once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import sqlite3
import zlib
from pathlib import Path
from typing import Any

from search.errors import bad_log, not_written
from search.log import foreign
from vortex_core.files import MAX_PROGRAM, parse_json, read_text
from vortex_core.text import visible

_NAME = re.compile(r"[0-9a-f]{16}")
_SORTED = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def digest(text: str) -> str:
    """16 hex digits of the SHA-256 of `text`."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_atomic(path: Path, text: str) -> None:
    """Write `text` so that `path` holds either the old content or all of the new one, even after a crash.

    A link is followed; a device or pipe is written to, never replaced.

    Raises:
        OSError: it cannot be written, for example because `path` is a folder.
    """
    path = Path(os.path.realpath(path))  # a loop of links is said by what follows
    if path.exists() and not path.is_file():
        # Without waiting for a reader of a pipe; opening a folder fails.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_NONBLOCK), "w", encoding="utf-8") as file:
            file.write(text)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_whole(str(path.parent), path.name, text)


def _write_whole(folder: str, name: str, text: str) -> None:
    """Write a file of a folder that is there, so that it holds the old content or all of the new one.

    Raises:
        OSError: it cannot be written.
    """
    path = f"{folder}/{name}"
    temporary = f"{folder}/.{name}.{secrets.token_hex(8)}"
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            left = memoryview(text.encode())
            while left:
                left = left[os.write(handle, left) :]
            os.fchmod(handle, 0o644)  # a run is meant to be shared
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(temporary, path)  # noqa: PTH105 - on the search's way, where a Path costs as much as the call
    except BaseException as error:
        with contextlib.suppress(OSError):  # what is wrong may be the folder
            os.unlink(temporary)  # noqa: PTH108
        if isinstance(error, OSError) and error.filename in (None, temporary):
            error.filename = path  # a full disk does not say whose
        raise


PACK = "packed.sqlite"
_MEMBERS = "CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID"


class ContentStore:
    """Texts by hash under one folder: a file each, or many of them compressed in one database (`pack`).

    Args:
        root: folder; made on the first write, so reading a run never changes it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folder = str(root)
        self._pack_path = f"{root}/{PACK}"
        self._pack: sqlite3.Connection | None = None

    def _packed(self, name: str) -> str | None:
        """A text of the pack, None if it holds none of that name."""
        if self._pack is None:
            if not os.path.isfile(self._pack_path):  # noqa: PTH113 - see `_write_whole`
                return None
            path = self.root / PACK
            try:
                foreign.refuse_odd_files(path)
                db = sqlite3.connect(
                    f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False
                )
                foreign.distrust(db, ("files",))
            except sqlite3.Error as error:
                raise bad_log(str(path), str(error)) from error
            self._pack = db
        try:
            found = self._pack.execute("SELECT body FROM files WHERE name = ?", (name,)).fetchone()
            if found is None:
                return None
            inflater = zlib.decompressobj()
            data = inflater.decompress(found[0], MAX_PROGRAM)
            if not inflater.eof:
                raise ValueError(f"it is larger than {MAX_PROGRAM} bytes")
            return data.decode("utf-8")
        except (sqlite3.Error, zlib.error, ValueError, TypeError) as error:
            raise bad_log(str(self.root / PACK), str(error)) from error

    def pack(self) -> int:
        """Move all single files into the pack; returns how many. Nobody else may write the run meanwhile.

        Raises:
            VortexError: `VS005` for a file that is not what its name says, `VS017` if the pack cannot be written.
        """
        loose = [p for p in sorted(self.root.glob("*.*")) if _NAME.fullmatch(p.stem) and p.is_file()]
        if not loose:
            return 0
        if self._pack is not None:
            self._pack.close()
            self._pack = None
        path = self.root / PACK
        try:
            foreign.refuse_odd_files(path)
            db = sqlite3.connect(path)
            try:
                foreign.distrust(db, ("files",))
                foreign.refuse_triggers(db, ())
                with db:  # all or none; the files go only after that
                    db.execute(_MEMBERS)
                    for file in loose:
                        body = zlib.compress(self.get(file.stem, file.suffix).encode(), 6)
                        db.execute("INSERT OR REPLACE INTO files VALUES (?, ?)", (file.name, body))
            finally:
                db.close()
            for file in loose:
                file.unlink()
        except (sqlite3.Error, OSError) as error:
            raise not_written(str(path), str(error)) from error
        return len(loose)

    def names(self) -> set[str]:
        """Names of everything stored, with suffix."""
        found = {p.name for p in self.root.glob("*.*") if _NAME.fullmatch(p.stem)}
        self._packed("")  # opens the pack, if there is one
        if self._pack is not None:
            found |= {name for (name,) in self._pack.execute("SELECT name FROM files")}
        return found

    def has(self, name: str, suffix: str) -> bool:
        """Whether a text is stored under a hash."""
        loose = os.path.exists(self._path(name, suffix))  # noqa: PTH110 - see `_write_whole`
        return loose or self._packed(f"{name}{suffix}") is not None

    def _path(self, name: str, suffix: str) -> str:
        return f"{self._folder}/{name}{suffix}"

    def put(self, text: str, suffix: str) -> str:
        """Store `text`; returns its hash. Storing the same text again does nothing.

        Raises:
            VortexError: `VS017`, if it cannot be written: a full disk, or one that is gone.
        """
        name = digest(text)
        try:
            if not self.has(name, suffix):
                try:
                    _write_whole(self._folder, f"{name}{suffix}", text)
                except FileNotFoundError:  # the first of its run
                    self.root.mkdir(parents=True, exist_ok=True)
                    _write_whole(self._folder, f"{name}{suffix}", text)
        except OSError as error:
            raise not_written(self._path(name, suffix), error.strerror or str(error)) from error
        return name

    def get(self, name: str, suffix: str) -> str:
        """The text stored under a hash.

        Raises:
            VortexError: `VS005`, if `name` is no hash, nothing is stored under it, or something else is.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise bad_log(self._folder, f"{visible(name, 40)!r} names no stored file")
        path = self._path(name, suffix)
        try:
            text = read_text(path, MAX_PROGRAM)
        except OSError as error:
            packed = self._packed(f"{name}{suffix}")
            if packed is None:
                raise bad_log(path, str(error.strerror)) from error
            text = packed
        if digest(text) != name:
            raise bad_log(path, "its content is not what its name says")
        return text

    def put_json(self, value: Any) -> str:
        """Store a JSON value; keys are sorted, so equal values share one file."""
        return self.put(_SORTED.encode(value), ".json")

    def get_json(self, name: str) -> Any:
        """Inverse of `put_json`."""
        try:
            return parse_json(self.get(name, ".json"))
        except ValueError as error:
            raise bad_log(str(self.root / f"{name}.json"), str(error)) from error

"""Content-addressed texts of a run: a name is the hash of what it holds, so a text is written once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
from pathlib import Path
from typing import Any

from search.errors import bad_log
from search.log.older import OlderFiles
from search.log.texts import Texts
from vortex_core.files import parse_json
from vortex_core.text import visible

_STORED = re.compile(r"[0-9a-f]{16}\.[a-z]+")
_SORTED = json.JSONEncoder(sort_keys=True, separators=(",", ":"), check_circular=False)


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
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
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
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # what is wrong may be the folder
            temporary.unlink()
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)  # a full disk does not say whose
        raise


class ContentStore:
    """Texts by hash: in the log, and of a run that is older than this in files beside it.

    Args:
        texts: of the log.
        older: folder of an older run's files; what is new is never written there.
    """

    def __init__(self, texts: Texts, older: Path) -> None:
        self._texts = texts
        self.older = OlderFiles(older)

    def names(self) -> set[str]:
        """Names of everything stored, with suffix."""
        return {name for name in (*self._texts.names(), *self.older.names()) if _STORED.fullmatch(name)}

    def put(self, text: str, suffix: str) -> str:
        """Store `text` with the next append; returns its hash. Storing the same text again does nothing."""
        name = digest(text)
        stored = f"{name}{suffix}"
        if self.older.get(stored) is None:
            self._texts.keep(stored, text)
        return name

    def get(self, name: str, suffix: str) -> str:
        """The text stored under a hash.

        Raises:
            VortexError: `VS005`, if `name` is no hash, nothing is stored under it, or something else is.
        """
        return self.text(f"{name}{suffix}")

    def text(self, stored: str) -> str:
        """The text stored under a name, hash and suffix; see `get`."""
        if not _STORED.fullmatch(stored):
            raise bad_log("of this run", f"{visible(stored, 40)!r} names no stored text")
        text = self._texts.get(stored)
        if text is None:
            text = self.older.get(stored)
        if text is None:
            raise bad_log("of this run", f"it holds no text {stored}")
        if digest(text) != stored.partition(".")[0]:
            raise bad_log("of this run", f"the content of text {stored} is not what its name says")
        return text

    def put_json(self, value: Any) -> str:
        """Store a JSON value; keys are sorted, so equal values share one text."""
        return self.put(_SORTED.encode(value), ".json")

    def get_json(self, name: str) -> Any:
        """Inverse of `put_json`."""
        try:
            return parse_json(self.get(name, ".json"))
        except ValueError as error:
            raise bad_log("of this run", f"text {name}.json: {error}") from error

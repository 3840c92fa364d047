"""Content-addressed files of a run: a name is the hash of what it holds, so a file is written once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from search.errors import bad_log, not_written
from vortex_core.files import MAX_PROGRAM, parse_json, read_text
from vortex_core.text import visible

_NAME = re.compile(r"[0-9a-f]{16}")


def digest(text: str) -> str:
    """16 hex digits of the SHA-256 of `text`."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_atomic(path: Path, text: str) -> None:
    """Write `text` so that `path` holds either the old content or all of the new one, even after a crash.

    A link is followed; a device or pipe is written to, never replaced.

    Raises:
        OSError: it cannot be written, for example because `path` is a folder.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        # Without waiting for a reader of a pipe; opening a folder fails.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_NONBLOCK), "w", encoding="utf-8") as file:
            file.write(text)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # noqa: PTH101 - mkstemp makes it private; a run is meant to be shared
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


class ContentStore:
    """Texts by hash under one folder.

    Args:
        root: folder; made on the first write, so reading a run never changes it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, text: str, suffix: str) -> str:
        """Store `text`; returns its hash. Storing the same text again does nothing.

        Raises:
            VortexError: `VS017`, if it cannot be written: a full disk, or one that is gone.
        """
        name = digest(text)
        path = self.root / f"{name}{suffix}"
        try:
            if not path.exists():
                write_atomic(path, text)
        except OSError as error:
            raise not_written(str(path), error.strerror or str(error)) from error
        return name

    def get(self, name: str, suffix: str) -> str:
        """The text stored under a hash.

        Raises:
            VortexError: `VS005`, if `name` is no hash, nothing is stored under it, or something else is.
        """
        path = self.root / f"{name}{suffix}"
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise bad_log(str(self.root), f"{visible(name, 40)!r} names no stored file")
        try:
            text = read_text(path, MAX_PROGRAM)
        except OSError as error:
            raise bad_log(str(path), str(error.strerror)) from error
        if digest(text) != name:
            raise bad_log(str(path), "its content is not what its name says")
        return text

    def put_json(self, value: Any) -> str:
        """Store a JSON value; keys are sorted, so equal values share one file."""
        return self.put(json.dumps(value, sort_keys=True, separators=(",", ":")), ".json")

    def get_json(self, name: str) -> Any:
        """Inverse of `put_json`."""
        try:
            return parse_json(self.get(name, ".json"))
        except ValueError as error:
            raise bad_log(str(self.root / f"{name}.json"), str(error)) from error

"""Content-addressed files of a run: a name is the hash of what it holds, so a file is written once."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from search.errors import not_written


def digest(text: str) -> str:
    """16 hex digits of the SHA-256 of `text`."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_atomic(path: Path, text: str) -> None:
    """Write `text` so that `path` holds either the old content or all of the new one, even after a crash."""
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
            FileNotFoundError: nothing of that name was stored.
        """
        return (self.root / f"{name}{suffix}").read_text(encoding="utf-8")

    def put_json(self, value: Any) -> str:
        """Store a JSON value; keys are sorted, so equal values share one file."""
        return self.put(json.dumps(value, sort_keys=True, separators=(",", ":")), ".json")

    def get_json(self, name: str) -> Any:
        """Inverse of `put_json`."""
        return json.loads(self.get(name, ".json"))

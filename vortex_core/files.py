"""Files of others, read with care: regular ones, of a bounded size, as UTF-8 text, JSON of a bounded depth.

A path that a user or a stranger's file names may lead to a device that never ends, a pipe that nobody writes to, or
a file larger than the memory. Nothing of it is read before that is known.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

MAX_TEXT = 4 << 20  # bytes of a text or JSON file, unless the reader says otherwise
MAX_PROGRAM = 128 << 20  # of a program with its learned values
MAX_DEPTH = 100  # of nested lists and objects


def named_path(text: str | Path) -> Path:
    """The path a user names: `~` and `~name` are home folders; of a name that nobody has, they stay as they are."""
    return Path(os.path.expanduser(text))  # noqa: PTH111  Path's own raises RuntimeError then


class UnfitFileError(OSError):
    """A file that is not what is read here; `strerror` says why, in words."""

    def __init__(self, why: str, path: str | Path) -> None:
        super().__init__(0, why, str(path))


def read_bytes(path: str | Path, limit: int = MAX_TEXT) -> bytes:
    """A regular file's content.

    Raises:
        OSError: it cannot be read; `UnfitFileError` if it is no regular file or larger than `limit` bytes.
    """
    # Opened without waiting: a pipe without a writer would never answer.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        found = os.fstat(file.fileno())
        if stat.S_ISDIR(found.st_mode):
            raise UnfitFileError("it is a folder", path)
        if not stat.S_ISREG(found.st_mode):
            raise UnfitFileError("it is no regular file", path)
        # As much as it says to hold, in one piece of memory; what is more than it says is seen below.
        data = b"" if found.st_size > limit else file.read(found.st_size + 1)
        if len(data) > found.st_size:
            data += file.read(limit + 1 - len(data))
        if found.st_size > limit or len(data) > limit:
            raise UnfitFileError(f"it is larger than {limit} bytes", path)
    return data


def read_text(path: str | Path, limit: int = MAX_TEXT) -> str:
    """A regular file's UTF-8 text; a byte order mark is dropped.

    Raises:
        OSError: as `read_bytes`, and `UnfitFileError` if it is not UTF-8.
    """
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UnfitFileError("it is not UTF-8 text", path) from None


def read_json(path: str | Path, limit: int = MAX_TEXT) -> Any:
    """The JSON value in a regular file.

    Raises:
        OSError: as `read_text`, and `UnfitFileError` if it is no JSON or too deep.
    """
    try:
        return parse_json(read_text(path, limit))
    except ValueError as error:
        raise UnfitFileError(str(error), path) from None


def parse_json(text: str | bytes) -> Any:
    """A JSON value of at most `MAX_DEPTH` nested lists and objects.

    Raises:
        ValueError: what is wrong, in words.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("no JSON: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"no JSON: {str(error)[:200]}") from None
    plain = text if isinstance(text, str) else text.decode("utf-8", "replace")
    if plain.count("{") + plain.count("[") <= MAX_DEPTH:
        return value  # too few of them to be nested deeper: most texts are answered here
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return value
    raise ValueError(f"no JSON: nested more than {MAX_DEPTH} deep")


def _inside(value: Any) -> list[Any]:
    found = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [inner for inner in found if isinstance(inner, dict | list)]

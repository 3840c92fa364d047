"""Checksums of an exported folder: what lies there is what was written, and only that is ever removed again."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from search.log.files import write_atomic
from vortex_core.files import read_text

NAME = "checksums.txt"
_LINE = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9_.][A-Za-z0-9_./+-]{0,199})")
_MOST = 1_000
_MAX_FILE = 1 << 30
"""Bytes of one file of an export at most: learned values take an eighth of it."""


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(folder: Path, names: list[str]) -> None:
    """Write `checksums.txt`, in the format of sha256sum."""
    write_atomic(folder / NAME, "".join(f"{digest(folder / name)}  {name}\n" for name in sorted(names)))


def read(folder: Path) -> dict[str, str]:
    """Digests by relative name; empty where there is no such file. Names that leave the folder are passed over."""
    try:
        text = read_text(folder / NAME, _MOST * 300)
    except OSError:
        return {}
    found = {}
    for line in text.splitlines()[:_MOST]:
        match = _LINE.fullmatch(line)
        if match and ".." not in Path(match[2]).parts and not Path(match[2]).is_absolute():
            found[match[2]] = match[1]
    return found


def disagreements(folder: Path) -> list[str]:
    """What is not as written, in words."""
    listed = read(folder)
    said = [] if listed else [f"{NAME} is missing or unreadable"]
    for name, wanted in listed.items():
        path = folder / name
        try:
            if not path.is_file():
                said.append(f"{name} is missing")
            elif not _same(path, wanted):
                said.append(f"{name} was changed")
        except OSError as error:
            said.append(f"{name} cannot be read ({error.strerror})")
    return said


def remove(folder: Path) -> list[str]:
    """Remove what an export wrote. A file that somebody changed since is kept as `NAME.kept`; links are left alone.

    Returns:
        The names kept so.
    """
    kept = []
    folders: set[Path] = set()
    for name, wanted in read(folder).items():
        path = folder / name
        if path.is_symlink() or not path.is_file() or not _inside(path, folder):
            continue
        if make_room(path, wanted):
            kept.append(name)
        folders.add(path.parent)
    (folder / NAME).unlink(missing_ok=True)
    for inner in sorted(folders - {folder}, key=lambda p: -len(p.parts)):
        if not any(inner.iterdir()):
            inner.rmdir()
    return kept


def make_room(path: Path, wanted: str | None) -> bool:
    """Have no file at `path`: one of this digest goes, another is kept as `NAME.kept`. Returns whether one was kept."""
    if not os.path.lexists(path):
        return False
    if not path.is_symlink() and path.is_file() and _same(path, wanted):
        path.unlink()
        return False
    path.rename(_free(path))
    return True


def _same(path: Path, wanted: str | None) -> bool:
    return path.stat().st_size <= _MAX_FILE and digest(path) == wanted


def _inside(path: Path, folder: Path) -> bool:
    """Whether a path lies in a folder, links of folders on the way followed."""
    return os.path.commonpath([path.parent.resolve(), folder.resolve()]) == str(folder.resolve())


def _free(path: Path) -> Path:
    number, free = 1, path.with_name(f"{path.name}.kept")
    while os.path.lexists(free):
        number, free = number + 1, path.with_name(f"{path.name}.kept{number}")
    return free

"""Texts of older runs, which were files of their own under one folder, or packed in one database there. Read only."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

from search.errors import bad_log
from search.log import foreign
from search.log.texts import inflated
from vortex_core.files import MAX_PROGRAM, read_text

PACK = "packed.sqlite"


class OlderFiles:
    """Files of a run that was begun before texts were kept in the log.

    Args:
        folder: where they lie; there need be none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._there = folder.is_dir()
        self._pack: sqlite3.Connection | None = None

    def get(self, name: str) -> str | None:
        """A text by name, None if there is none.

        Raises:
            VortexError: `VS005`, if it cannot be read.
        """
        if not self._there:
            return None
        path = self.folder / name
        try:
            return read_text(path, MAX_PROGRAM)
        except FileNotFoundError:
            return self._packed(name)
        except OSError as error:
            raise bad_log(str(path), error.strerror or str(error)) from error

    def names(self) -> Iterator[str]:
        """Names of all."""
        if not self._there:
            return
        yield from (path.name for path in self._loose())
        try:
            if (pack := self._opened()) is not None:
                yield from (str(name) for (name,) in pack.execute("SELECT name FROM files"))
        except sqlite3.Error as error:
            raise bad_log(str(self.folder / PACK), str(error)) from error

    def remove(self, taken: Collection[str]) -> None:
        """Remove what is kept elsewhere now, and the folder if nothing else is in it. Of a folder that is a link, the
        link alone goes: whose the files are that it leads to is not known.

        Args:
            taken: names of the texts that are kept.

        Raises:
            OSError: they cannot be removed.
        """
        if self._pack is not None:
            self._pack.close()
            self._pack = None
        if self.folder.is_symlink():
            self.folder.unlink()
        elif self._there:
            for path in self._loose():
                if path.name in taken:
                    path.unlink(missing_ok=True)
            (self.folder / PACK).unlink(missing_ok=True)
            if not any(self.folder.iterdir()):
                self.folder.rmdir()
        self._there = self.folder.is_dir()

    def _loose(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*.*") if path.name != PACK)

    def _packed(self, name: str) -> str | None:
        try:
            if (pack := self._opened()) is None:
                return None
            found = pack.execute("SELECT body FROM files WHERE name = ?", (name,)).fetchone()
            return None if found is None else inflated(found[0])
        except (sqlite3.Error, zlib.error, ValueError, TypeError) as error:
            raise bad_log(str(self.folder / PACK), str(error)) from error

    def _opened(self) -> sqlite3.Connection | None:
        """The pack; None where there is none.

        Raises:
            sqlite3.Error: it is something else.
        """
        path = self.folder / PACK
        if self._pack is None and path.exists():
            foreign.refuse_odd_files(path)
            found = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
            try:
                foreign.distrust(found, ("files",))
            except BaseException:  # whoever asks again is refused again
                found.close()
                raise
            self._pack = found
        return self._pack

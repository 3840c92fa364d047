"""Things by name: one registry for every extension point, ours and those of installed distributions.

A registry maps names to places of the form `module:attribute`, imported when the name is first asked for, so
that listing names costs nothing and a missing optional package matters only to whoever asks for what needs it.
A third party adds to it through an entry point of the registry's group; see `docs/extending/`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from vortex_core.errors import VortexError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names of one kind of thing, each imported when it is asked for.

    Args:
        what: the kind in words, for messages: `backend`, `evaluation task`.
        ours: places `module:attribute` of those that ship, in the order they are listed.
        group: entry-point group through which installed distributions add more.
        code: of the error for an unknown name.
    """

    def __init__(self, what: str, ours: Mapping[str, str], *, group: str, code: str) -> None:
        self.what, self.group, self.code = what, group, code
        self._ours = {name: EntryPoint(name, place, group) for name, place in ours.items()}

    def names(self) -> tuple[str, ...]:
        """All names: those that ship in their order, then those of other distributions, sorted."""
        theirs = {point.name for point in entry_points(group=self.group)}
        return (*self._ours, *sorted(theirs - self._ours.keys()))

    def get(self, name: str) -> T:
        """What a name stands for, imported now if nobody asked before.

        Raises:
            VortexError: the registry's code for an unknown name, with the nearest names; `VX001` for an entry
                point that cannot be imported; `VX002` for a name that two distributions give.
        """
        points = [*entry_points(group=self.group, name=name)]
        points += [self._ours[name]] if name in self._ours else []
        if not points:
            raise unknown_name(self.code, self.what, name, self.names())
        if len(points) > 1:
            raise VortexError(
                "VX002",
                f"{self.what} {name!r} is given by {' and by '.join(point.value for point in points)}",
                "uninstall or rename all but one",
            )
        if name in self._ours:  # a failure to import what ships is a bug, or says which package is missing
            found: T = points[0].load()
            return found
        try:
            found = points[0].load()
        except Exception as error:  # whatever a stranger's module raises when it is imported
            raise VortexError(
                "VX001",
                f"{self.what} {name!r} ({points[0].value}) cannot be imported: {type(error).__name__}: {error}",
                "reinstall the distribution that provides it, or mend its entry point",
            ) from error
        return found


def unknown_name(code: str, what: str, name: str, known: Iterable[str]) -> VortexError:
    """The error for a name that does not exist: the nearest ones first, then all."""
    names = tuple(known)
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    return VortexError(code, f"no {what} {name!r}", f"{meant}there are: {', '.join(names) or 'none yet'}")

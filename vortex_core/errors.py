"""Errors that users and agents read: one stable code, one message, one remedy, and whose fault it is.

Every error a user can cause derives from `VortexError`. Internal invariants use `assert`. A code is declared
once with `declare`, in the catalogue of the layer that raises it: `vortex_core.ir.mistakes` (`VF`, the
language), `vortex_core.codes` (`VE`, `VK`, `VM`, `VX`), `evaluators.errors` (`VV`), `agents.errors` (`VA`),
`search.errors` (`VS`). `docs/errors.md` is generated from all of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from vortex_core.text import MAX_MESSAGE, visible

if TYPE_CHECKING:
    from types import TracebackType

Fault = Literal["candidate", "infrastructure", "user", "budget"]
"""Whose fault an error is, which decides what happens next:

* `candidate`: the program or its knobs. It is a result, scored and fed back to its author.
* `infrastructure`: a machine, a service or our own code. Nobody's result; another try may succeed.
* `user`: the command, a configuration or an account. Nothing goes on until a person changes something.
* `budget`: what was allowed (money, tokens, time, the space of programs) is used up. Nothing is wrong.
"""

# No pathlib here: every traced program pays for what this module imports.
_ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__))) + os.sep
_OURS = ("vortex_core", "agents", "evaluators", "search")


@dataclass(frozen=True)
class ErrorCode:
    """One declared code.

    Attributes:
        code: stable, a family of two letters and three digits.
        title: what it means, in a few words.
        rule: what must hold, or what happened.
        fault: whose fault it is unless the place that raises it knows better.
        retryable: whether the same thing may succeed later with nothing changed; the same exception applies.
        home: folder or file whose code raises it, from the root of the project.
    """

    code: str
    title: str
    rule: str
    fault: Fault
    retryable: bool
    home: str


_CODES: dict[str, ErrorCode] = {}


def declare(
    code: str, title: str, rule: str, fault: Fault, *, retryable: bool = False, home: str
) -> ErrorCode:
    """Add a code to the registry. A code means one thing: declaring it again is a defect."""
    assert code not in _CODES, f"{code} is declared twice: {_CODES[code].title!r} and {title!r}"
    _CODES[code] = ErrorCode(code, title, rule, fault, retryable, home)
    return _CODES[code]


def declared() -> dict[str, ErrorCode]:
    """Every code that is declared by now: those of `vortex_core`, and of the layers imported."""
    from vortex_core import codes  # noqa: F401 - importing a catalogue declares its codes
    from vortex_core.ir import mistakes  # noqa: F401

    return dict(sorted(_CODES.items()))


def _meaning(code: str) -> ErrorCode | None:
    """The declaration of a code; None for one of a plug-in that declares none."""
    return _CODES.get(code) or declared().get(code)


@dataclass(frozen=True)
class Location:
    """A place in the user's source."""

    file: str
    line: int
    text: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "file", visible(self.file))
        object.__setattr__(self, "text", visible(self.text))

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}"
        return f"{where}\n    {self.text.strip()}" if self.text.strip() else where


@dataclass(frozen=True)
class Replacement:
    """Lines of the user's source that mend it: `lines[first - 1 : last]` become `text`."""

    first: int
    last: int
    text: str

    def apply(self, source: str) -> str:
        """The mended source."""
        lines = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        return "\n".join([*lines[: self.first - 1], *self.text.split("\n"), *lines[self.last :]])


class VortexError(Exception):
    """An error with a stable code, the fact that was found, and one thing to do about it.

    Args:
        code: stable identifier, e.g. `VM001`.
        message: what is wrong, with the values found.
        remedy: one action that mends it.
        location: the user's line, where there is one.
        fault: whose fault it is. By default as the code declares; a code that nobody declared is
            `infrastructure`, so that it is never held against a program.
        retryable: whether the same thing may succeed later with nothing changed. By default as declared, else no.
        place: where our own code raised it (`file:line in function`). By default read from the traceback.
        log: a file that says more, on the machine it happened on.

    Attributes:
        facts: what filled the catalogue's templates; stays in the process that raised it.
        replacement: the mended lines of the user's source, where a script can name them.
        further: what else is wrong, found with earlier errors mended.
    """

    def __init__(
        self,
        code: str,
        message: str,
        remedy: str = "",
        location: Location | None = None,
        *,
        fault: Fault | None = None,
        retryable: bool | None = None,
        place: str = "",
        log: str = "",
    ) -> None:
        # What a program, a file or a server wrote may stand in any of these: one visible, bounded line each.
        self.code = visible(code, 20)
        self.message = visible(message, MAX_MESSAGE)
        self.remedy = visible(remedy, MAX_MESSAGE)
        self.location = location
        super().__init__(self.message)
        meaning = _meaning(self.code)
        self.fault: Fault = fault or (meaning.fault if meaning else "infrastructure")
        self.retryable = meaning is not None and meaning.retryable if retryable is None else retryable
        self._place = place
        self.log = log
        self.facts: Mapping[str, object] = {}
        self.replacement: Replacement | None = None
        self.further: tuple[VortexError, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        # By default an exception is made anew of its message alone, which kills the pool that a process answers to.
        return _restored, (type(self), {**self.__dict__, "_place": self.place, "facts": {}})

    def __str__(self) -> str:
        parts = [f"{self.code}: {self.message}"]
        if self.location is not None:
            parts.append(f"  at {self.location}")
        if self.remedy:
            parts.append(f"  fix: {self.remedy}")
        if self.replacement is not None:
            parts += ["  write:", *(f"    {line.strip()}" for line in self.replacement.text.split("\n"))]
        parts += [f"then {error}" for error in self.further]
        return "\n".join(parts)

    @property
    def place(self) -> str:
        """Where our own code raised it, as `file:line in function`; empty before it was raised."""
        return self._place or place_of(self.__traceback__)

    @place.setter
    def place(self, place: str) -> None:
        """Where what it stands for was raised, if that is elsewhere."""
        self._place = place

    def to_json(self) -> dict[str, Any]:
        """The same facts for programs: `{code, message, remedy, location, fault, retryable}`.

        `replacement` and `further` are there only where there are any.
        An infrastructure error also says `place` and `log`, where it has them: nobody else needs our line numbers.
        """
        facts: dict[str, Any] = {
            "code": self.code,
            "message": self.message,
            "remedy": self.remedy,
            "location": asdict(self.location) if self.location else None,
            "fault": self.fault,
            "retryable": self.retryable,
        }
        if self.fault == "infrastructure":
            facts |= {name: value for name in ("place", "log") if (value := getattr(self, name))}
        if self.replacement is not None:
            facts["replacement"] = asdict(self.replacement)
        if self.further:
            facts["further"] = [error.to_json() for error in self.further]
        return facts

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> VortexError:
        """Rebuild an error that crossed a process boundary or was read from a log.

        JSON of versions that did not say whose fault an error is gets what its code declares.
        """
        where = data.get("location")
        error = VortexError(
            data["code"],
            data["message"],
            data.get("remedy", ""),
            Location(**where) if where else None,
            fault=data.get("fault"),
            retryable=data.get("retryable"),
            place=data.get("place", ""),
            log=data.get("log", ""),
        )
        if data.get("replacement"):
            error.replacement = Replacement(**data["replacement"])
        error.further = tuple(map(cls.from_json, data.get("further", ())))
        return error


def _restored(kind: type[VortexError], held: dict[str, Any]) -> VortexError:
    error = kind.__new__(kind, held["message"])
    error.__dict__.update(held)
    return error


def write_to_log(error: BaseException) -> str:
    """Print a traceback to this process's log, where it has one: the file that stderr goes to.

    Returns:
        `host:path` of the log; empty where stderr is a terminal or a pipe, whose reader sees the error anyway.
    """
    import socket
    import traceback

    try:
        target = os.readlink("/proc/self/fd/2")
    except OSError:  # no /proc, or no stderr
        return ""
    if not os.path.isfile(target):
        return ""
    traceback.print_exception(error)
    return f"{socket.gethostname()}:{target}"


def place_of(at: TracebackType | None) -> str:
    """The innermost line of our own code in a traceback, as `file:line in function`; empty if there is none."""
    found = ""
    while at is not None:
        code, line = at.tb_frame.f_code, at.tb_lineno
        inside = code.co_filename.removeprefix(_ROOT)
        if inside != code.co_filename and inside.split(os.sep)[0] in _OURS:
            found = f"{inside}:{line} in {code.co_qualname}"
        at = at.tb_next
    return found

"""Errors that users and agents read: one stable code, one message, one remedy.

Every error a user can cause derives from `VortexError`. Internal invariants use `assert`.
The codes of the language (`VF...`) are catalogued in `vortex_core.flow.errors`; the other
layers use the prefixes `VM` (models and weights), `VE` (engine), `VS` (search and command line).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Location:
    """A place in the user's source."""

    file: str
    line: int
    text: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}"
        return f"{where}\n    {self.text.strip()}" if self.text.strip() else where


class VortexError(Exception):
    """An error with a stable code, the fact that was found, and one thing to do about it.

    Args:
        code: stable identifier, e.g. `VM001`.
        message: what is wrong, with the values found.
        remedy: one action that mends it.
        location: the user's line, where there is one.
    """

    def __init__(self, code: str, message: str, remedy: str = "", location: Location | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.remedy = remedy
        self.location = location

    def __str__(self) -> str:
        parts = [f"{self.code}: {self.message}"]
        if self.location is not None:
            parts.append(f"  at {self.location}")
        if self.remedy:
            parts.append(f"  fix: {self.remedy}")
        return "\n".join(parts)

    def to_json(self) -> dict[str, Any]:
        """The same facts for programs: `{code, message, remedy, location}`."""
        return {
            "code": self.code,
            "message": self.message,
            "remedy": self.remedy,
            "location": asdict(self.location) if self.location else None,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> VortexError:
        """Rebuild an error that crossed a process boundary."""
        where = data.get("location")
        return VortexError(
            data["code"], data["message"], data.get("remedy", ""), Location(**where) if where else None
        )

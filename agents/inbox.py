"""Programs handed in from outside: by a coding agent through the tools, or by a person who writes files to a folder."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from agents.base import Proposal, ProposalRequest, Proposer
from agents.errors import ProposerError
from agents.prompting import line
from agents.reply import MAX_SOURCE
from vortex_core.files import read_text

_LOOK = 0.25  # seconds between two looks into the folder
CLOSED = "closed"
"""The file that says that nothing more comes."""


class InboxProposer(Proposer):
    """Proposes what is handed in, in order of arrival, and waits where there is nothing.

    Args:
        argument: the folder. Each program is a JSON file `{"source": ..., "idea": ...}`; taken ones move to `taken`.
        idle: seconds without a program after which the search ends.
    """

    repairs = False
    needs_language = False

    def __init__(self, argument: str, *, idle: float = 900.0, **_: Any) -> None:
        if not argument:
            raise ProposerError("VA001", "inbox needs a folder", "write inbox:FOLDER")
        self.name = "inbox"
        self._folder = Path(argument)
        self._idle = float(idle)

    async def propose(self, request: ProposalRequest) -> Proposal:
        """The next program handed in.

        Raises:
            ProposerError: `VA029` once the folder is closed, or nothing came for too long.
        """
        began = time.monotonic()
        while True:
            found = self._next()
            if found is not None:
                return found
            closed = (self._folder / CLOSED).exists()
            if closed or time.monotonic() - began > self._idle:
                why = "it is closed" if closed else f"nothing came for {self._idle:g} s"
                raise ProposerError("VA029", f"no further program is handed in: {why}", "start the run again")
            await asyncio.sleep(_LOOK)

    def _next(self) -> Proposal | None:
        for path in sorted(self._folder.glob("*.json")):
            taken = self._folder / "taken" / path.name
            taken.parent.mkdir(parents=True, exist_ok=True)
            try:
                path.replace(taken)  # whoever moves it has it
            except FileNotFoundError:
                continue
            try:
                return read_handed_in(taken, self.name)
            except ProposerError:
                return Proposal("", "", self.name)  # refused as any file that holds no flow
        return None


def read_handed_in(path: Path, by: str) -> Proposal:
    """A program that was handed in as a file, by whom.

    Raises:
        ProposerError: `VA033`, if the file is gone or holds no program.
    """
    try:
        data = json.loads(read_text(path, 4 * MAX_SOURCE))
        return Proposal(str(data["source"])[:MAX_SOURCE], line(str(data.get("idea", ""))), by)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProposerError(
            "VA033", f"{path.name} holds no program that was handed in: {error}", "hand it in again"
        ) from None


def hand_in(folder: Path, source: str, idea: str) -> str:
    """Put a program into a folder; returns its number there."""
    folder.mkdir(parents=True, exist_ok=True)
    number = f"{time.time_ns():020d}"
    part = folder / f"{number}.part"
    part.write_text(json.dumps({"source": source, "idea": idea}), encoding="utf-8")
    part.replace(folder / f"{number}.json")
    return number


def close(folder: Path) -> None:
    """Say that nothing more comes: the search ends, finals follow."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CLOSED).touch()

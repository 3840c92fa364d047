"""Programs that a user hands to a campaign while it searches: files of its folder, each asked for once."""

from __future__ import annotations

from pathlib import Path

from agents.base import Proposal as Answer
from agents.inbox import hand_in, read_handed_in
from search.log.state import USER, CampaignState


class Queue:
    """What was handed in, the first first. A file stays where it is: which were asked for is in the log.

    Args:
        folder: of the run.
        state: read only.
    """

    def __init__(self, folder: Path, state: CampaignState) -> None:
        self._folder = folder / "queue"
        self._state = state
        self._taken: set[str] = set()
        self._heard = 0

    def waiting(self) -> list[str]:
        """Numbers of the programs that nobody has asked for, in order of arrival."""
        if not self._folder.is_dir():
            return []
        asked = self._state.asks(USER)
        if asked != self._heard:
            self._taken = {p.by for p in self._state.proposals.values() if p.arm == USER}
            self._heard = asked
        return sorted(number for p in self._folder.glob("*.json") if (number := p.stem) not in self._taken)

    def read(self, number: str) -> Answer:
        """A program that was handed in.

        Raises:
            ProposerError: `VA033`, if its file is gone or holds no program.
        """
        return read_handed_in(self._folder / f"{number}.json", USER)


def enqueue(folder: Path, source: str, idea: str) -> str:
    """Hand a program to the run in a folder; returns its number."""
    return hand_in(folder / "queue", source, idea)

"""Turns at the engines: as many at once as there are engines, whose number changes."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from types import TracebackType


class Turns:
    """A semaphore whose capacity is asked for anew each time. Who waited longest goes first.

    Args:
        capacity: turns that may be taken at once.
    """

    def __init__(self, capacity: Callable[[], int]) -> None:
        self._capacity = capacity
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.taken = 0

    @property
    def waiting(self) -> int:
        """How many wait for a turn."""
        return len(self._waiting)

    async def __aenter__(self) -> None:
        if self.taken >= self._capacity() or self._waiting:
            mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(mine)
            try:
                await mine
            except asyncio.CancelledError:
                if mine.done() and not mine.cancelled():  # the turn was given just then
                    self.taken -= 1
                    self.changed()
                else:
                    self._waiting.remove(mine)
                raise
        else:
            self.taken += 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.taken -= 1
        self.changed()

    def changed(self) -> None:
        """The capacity may have grown, or a turn has come back."""
        while self._waiting and self.taken < self._capacity():
            first = self._waiting.popleft()
            if not first.done():
                self.taken += 1
                first.set_result(None)


_RECENT = 16
"""Candidates whose seconds say how many are to be under way."""


class Supply:
    """How many candidates must be under way to each engine so that none waits, by the seconds that candidates took."""

    def __init__(self) -> None:
        self._before: deque[float] = deque(maxlen=_RECENT)
        self._held: deque[float] = deque(maxlen=_RECENT)

    def came(self, seconds: float) -> None:
        """A candidate was ready for an engine after so long."""
        self._before.append(seconds)

    def held(self, seconds: float) -> None:
        """It held the engine for so long."""
        self._held.append(seconds)

    def ahead(self, least: int, engines: int, workers: int) -> int:
        """Candidates under way to each engine beside the one it serves: those that come while it serves one, and one
        that waits for it.

        Args:
            least: what the campaign says.
            engines: there are.
            workers: CPU workers, of which these candidates may take half.
        """
        if not least or not self._before or not self._held:
            return least
        before, held = sum(self._before) / len(self._before), sum(self._held) / len(self._held)
        wanted = math.ceil(before / max(held, 1e-3)) + 1
        return max(least, min(wanted, workers // 2 // max(1, engines)))

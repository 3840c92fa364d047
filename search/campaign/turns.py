"""Turns at the engines: as many at once as there are engines, whose number changes."""

from __future__ import annotations

import asyncio
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

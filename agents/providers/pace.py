"""How many calls to one server may be under way: more while it keeps up, half as many when it does not (AIMD)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

_MOST = 64


@dataclass
class Turn:
    """One call's leave to be sent. `pushed`: the server asked to slow down, by a rate limit or an overload."""

    pushed: bool = False


class Pace:
    """Bounds the calls under way. One event loop at a time owns it: no locks.

    Each call that went well widens the bound by one part of it, so that a full round adds one; a call that was pushed
    back halves it (Chiu and Jain 1989).

    Args:
        start: calls at once before anything is known.
    """

    def __init__(self, start: float = 8.0) -> None:
        self.bound = start
        self._under_way = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """Wait for leave, and learn from how the call went."""
        while self._under_way >= max(1, int(self.bound)):
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter in self._waiting:
                    self._waiting.remove(waiter)
                else:
                    self._wake()  # its leave goes to the next
                raise
        self._under_way += 1
        turn = Turn()
        try:
            yield turn
        finally:
            self._under_way -= 1
            self.bound = max(1.0, self.bound / 2) if turn.pushed else min(_MOST, self.bound + 1 / self.bound)
            self._wake()

    def _wake(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done() and not waiter.get_loop().is_closed():
                waiter.set_result(None)
                return

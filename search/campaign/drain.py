"""Stopping without waste: what runs may end, nothing new begins, and after a stated time the rest is cut off."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable


class Drain:
    """Counts what is under way and holds back what would begin once it was asked to stop.

    Args:
        seconds: that what is under way may take to end.
        said: called once with what is being waited for, in words.
    """

    def __init__(self, seconds: float, said: Callable[[str], None] = lambda words: None) -> None:
        self.seconds = seconds
        self.stopping = False
        self.running = 0
        self._said = said
        self._ended = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def work(self) -> Drain:
        """One piece of work that is recorded when it ends. Once stopping, it never begins: who asks is cancelled."""
        return self

    async def __aenter__(self) -> None:
        if self.stopping:
            await asyncio.Event().wait()
        self.running += 1

    async def __aexit__(self, *ended: object) -> None:
        self.running -= 1
        if not self.running:
            self._ended.set()

    def stop(self, whole: asyncio.Task[object]) -> None:
        """Cancel `whole` when nothing is under way any more, or after `seconds`. A second time: at once."""
        if self.stopping:
            whole.cancel()
            return
        self.stopping = True
        if self.running:
            self._said(
                f"stopping: {self.running} under way may end, for {self.seconds:g} s at most; "
                "once more stops at once"
            )
        self._task = asyncio.create_task(self._wait(whole))

    async def _wait(self, whole: asyncio.Task[object]) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.seconds):
                while self.running:
                    self._ended.clear()
                    await self._ended.wait()
                    await asyncio.sleep(0)  # what ended records itself, and does not begin the next piece
        whole.cancel()

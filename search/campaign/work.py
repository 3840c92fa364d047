"""Tasks of a search under way, by what they are."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any


class Work:
    """Tasks under way, by what they are."""

    def __init__(self) -> None:
        self.tasks: dict[asyncio.Task[None], str] = {}
        self._count: Counter[str] = Counter()

    def add(self, kind: str, work: Coroutine[Any, Any, None]) -> None:
        """Begin."""
        self.tasks[asyncio.create_task(work)] = kind
        self._count[kind] += 1

    def count(self, kind: str) -> int:
        """How many of a kind are under way."""
        return self._count[kind]

    async def some_done(self, changed: asyncio.Event) -> None:
        """Wait for one or more, or for `changed`, which is cleared first; the first failure is raised."""
        changed.clear()
        news = asyncio.create_task(changed.wait())
        await asyncio.wait({*self.tasks, news}, return_when=asyncio.FIRST_COMPLETED)
        news.cancel()
        done = [task for task in self.tasks if task.done()]
        failures = [error for task in done if (error := task.exception()) is not None]
        for task in done:
            self._count[self.tasks.pop(task)] -= 1
        if failures:  # all were read: asyncio reports what nobody asked for
            raise failures[0]

    async def cancel(self) -> None:
        """End all that is left."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

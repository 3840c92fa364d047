"""Resident workers of one kind: who is free, who is preferred, and what becomes of those that fail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from vortex_core.errors import VortexError


class Worker(Protocol):
    """What a pool keeps."""

    async def kill(self) -> None:
        """End it and all it started."""
        ...


W = TypeVar("W", bound=Worker)


class Pool(Generic[W]):
    """Gives out workers one at a time. A lost one is replaced in the background, while the others work on.

    Args:
        start: makes a worker that is ready for work.
        lost: called when one could not be replaced: the pool goes on with those that are left.
        tries: times a replacement is attempted.
    """

    def __init__(
        self, start: Callable[[], Awaitable[W]], lost: Callable[[VortexError], None], *, tries: int = 2
    ) -> None:
        self._start = start
        self._lost = lost
        self._tries = tries
        self._free: list[W] = []
        self._all: list[W] = []
        self._changed = asyncio.Condition()
        self._replacing: set[asyncio.Task[None]] = set()
        self._error: VortexError | None = None

    @property
    def size(self) -> int:
        """Workers that are there or coming."""
        return len(self._all) + len(self._replacing)

    @property
    def workers(self) -> list[W]:
        """Those that are there, at work or free."""
        return list(self._all)

    async def fill(self, count: int) -> None:
        """Start workers together. Those that start are kept; if none does, or one cannot by any means, it is an error.

        Raises:
            VortexError: the first worker's reason.
        """
        started = await asyncio.gather(*(self._start() for _ in range(count)), return_exceptions=True)
        errors = [found for found in started if isinstance(found, BaseException)]
        for found in started:
            if not isinstance(found, BaseException):
                self._all.append(found)
                await self.give_back(found)
        for error in errors:
            if not isinstance(error, VortexError) or not self._all:
                raise error
            self._lost(error)

    async def take(self, rank: Callable[[W], int] = lambda worker: 0) -> W:
        """A free worker, of those the one with the highest rank.

        Raises:
            VortexError: there is none left and none can be started; the last reason.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._free or self.size == 0)
            if not self._free:
                assert self._error is not None
                raise self._error
            worker = max(self._free, key=rank)
            self._free.remove(worker)
            return worker

    async def give_back(self, worker: W) -> None:
        """It is free again."""
        async with self._changed:
            self._free.append(worker)
            self._changed.notify()

    async def drop(self, worker: W) -> None:
        """End a worker without another in its place."""
        if worker in self._all:
            self._all.remove(worker)
        await worker.kill()

    async def replace(self, worker: W) -> None:
        """End a worker; another takes its place as soon as it is ready, and nobody waits for it here."""
        task = asyncio.create_task(self._refill())
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)
        await self.drop(worker)

    async def _refill(self) -> None:
        error: VortexError | None = None
        for _ in range(self._tries):
            try:
                worker = await self._start()
            except VortexError as found:
                error = found
                continue
            self._all.append(worker)
            await self.give_back(worker)
            return
        assert error is not None
        self._error = error
        self._lost(error)
        # This task still counts as a replacement under way: who waits must look again once it does not.
        task = asyncio.current_task()
        assert task is not None
        self._replacing.discard(task)
        async with self._changed:
            self._changed.notify_all()

    async def close(self) -> None:
        """End all."""
        tasks = list(self._replacing)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for worker in self.workers:
            await self.drop(worker)
        self._free.clear()

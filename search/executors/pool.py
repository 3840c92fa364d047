"""Resident workers of one kind: how many there should be, who is given one next, what becomes of those that fail.

The number wanted may change at any time. Workers that find no place yet are waited for in the background, which is how
Ray's autoscaler learns that they are wanted; meanwhile those that are there work on.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

from search.errors import engine_lost
from vortex_core.errors import VortexError


class Worker(Protocol):
    """What a pool keeps."""

    async def kill(self) -> None:
        """End it and all it started."""
        ...


W = TypeVar("W", bound=Worker)


@dataclass(frozen=True)
class Change(Generic[W]):
    """A worker `joined`, or `left` (`waiting`: for another in its place), or one was `lost`: it could not be started
    although there was a place."""

    kind: Literal["joined", "left", "lost"]
    worker: W | None = None
    error: VortexError | None = None
    waiting: bool = False


@dataclass(eq=False)
class _Ticket(Generic[W]):
    number: int
    who: str
    rank: Callable[[W], int]
    urgent: bool
    given: asyncio.Future[W]


class Pool(Generic[W]):
    """Gives out workers one at a time, fairly between those who ask.

    Args:
        start: finds a place for a worker, however long that takes, and makes it ready for work.
        heard: called with every change.
        tries: times that starting one is attempted.
        patience: seconds for which those who ask wait while there is no worker at all.
    """

    def __init__(
        self,
        start: Callable[[], Awaitable[W]],
        heard: Callable[[Change[W]], None] = lambda change: None,
        *,
        tries: int = 2,
        patience: float = 1800.0,
    ) -> None:
        self._start = start
        self._heard = heard
        self._tries = tries
        self._patience = patience
        self._wanted = 0
        self._given_up = 0
        self._free: list[W] = []
        self._all: list[W] = []
        self._leaving: list[W] = []
        self._coming: dict[asyncio.Task[None], None] = {}
        self._tickets: list[_Ticket[W]] = []
        self._numbers = itertools.count()
        self._held: dict[int, tuple[str, float]] = {}
        self._spent: dict[str, float] = {}
        self._shares: dict[str, float] = {}
        self._error: VortexError | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._arrived = asyncio.Event()

    # -- who asks ----------------------------------------------------------------------------------------

    def join(self, who: str, share: float) -> None:
        """Somebody will ask. They begin level with whoever had least, not with a credit for the past."""
        least = min((self._spent_by(other) / s for other, s in self._shares.items()), default=0.0)
        self._shares[who] = share
        self._spent[who] = least * share

    def leave(self, who: str) -> None:
        """Somebody asks no more."""
        self._shares.pop(who, None)
        self._spent.pop(who, None)

    @property
    def shares(self) -> dict[str, float]:
        """Weights of those who ask."""
        return dict(self._shares)

    def spent(self) -> dict[str, float]:
        """Seconds for which each of them held a worker, since they joined and with what levelled them then."""
        return {who: self._spent_by(who) for who in self._shares}

    def _spent_by(self, who: str) -> float:
        now = time.monotonic()
        return self._spent.get(who, 0.0) + sum(now - since for w, since in self._held.values() if w == who)

    # -- how many ----------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Workers that are there or coming."""
        return len(self._all) + len(self._coming)

    @property
    def workers(self) -> list[W]:
        """Those that are there, at work or free."""
        return list(self._all)

    @property
    def queue(self) -> int:
        """How many wait for one."""
        return len(self._tickets)

    @property
    def coming(self) -> int:
        """How many are being started, or wait for a place."""
        return len(self._coming)

    def want(self, count: int) -> None:
        """There should be so many. Surplus ones go: first those without a place, then the idle, then the others as
        they become free."""
        if count != self._wanted:
            self._wanted, self._given_up = count, 0
        self._match()

    def _match(self) -> None:
        target = max(0, self._wanted - self._given_up)
        there = [w for w in self._all if w not in self._leaving]
        for _ in range(target - len(there) - len(self._coming)):
            task = asyncio.create_task(self._bring())
            self._coming[task] = None
            task.add_done_callback(lambda t: self._coming.pop(t, None))
        surplus = len(there) + len(self._coming) - target
        for task in list(self._coming)[: max(0, surplus)]:
            self._coming.pop(task)
            task.cancel()
            surplus -= 1
        idle = [w for w in there if w in self._free]
        for worker in [*idle, *(w for w in there if w not in idle)][: max(0, surplus)]:
            self.drain(worker, engine_lost("others need its place"))

    async def ready(self, *, every: bool = False) -> None:
        """Wait until one worker is there, or `every` one that is wanted and can be started.

        Raises:
            VortexError: none can be; the last reason.
        """
        while not self._all or (every and self._coming):
            if not self._coming and not self._all:
                raise self._reason()
            self._arrived.clear()
            arrived = asyncio.create_task(self._arrived.wait())
            await asyncio.wait({arrived, *self._coming}, return_when=asyncio.FIRST_COMPLETED)
            arrived.cancel()
            await asyncio.sleep(0)

    async def _bring(self) -> None:
        error: VortexError | None = None
        for _ in range(self._tries):
            try:
                worker = await self._start()
            except VortexError as found:
                error = found
                continue
            self._all.append(worker)
            self._heard(Change("joined", worker))
            self._arrived.set()
            self._set_free(worker)
            return
        assert error is not None
        self._error = error
        self._given_up += 1
        self._heard(Change("lost", error=error))
        # This task still counts as coming: who waits must learn that nothing is, if so.
        task = asyncio.current_task()
        assert task is not None
        self._coming.pop(task, None)
        self._grant()

    # -- taking and giving back --------------------------------------------------------------------------

    async def take(
        self, rank: Callable[[W], int] = lambda worker: 0, who: str = "", *, urgent: bool = False
    ) -> W:
        """A free worker, of those the one with the highest rank, of equals the one that worked last.

        Args:
            rank: of a worker for this purpose.
            who: asks.
            urgent: goes before what the same asked for earlier without urgency.

        Raises:
            VortexError: there is none left and none can be started; the last reason.
        """
        given: asyncio.Future[W] = asyncio.get_running_loop().create_future()
        ticket = _Ticket(next(self._numbers), who, rank, urgent, given)
        self._tickets.append(ticket)
        self._grant()
        try:
            return await given
        except asyncio.CancelledError:
            if given.done() and not given.cancelled() and given.exception() is None:
                await self.give_back(given.result())
            elif ticket in self._tickets:
                self._tickets.remove(ticket)
            raise

    def take_idle(self, who: str = "", other_than: W | None = None) -> W | None:
        """A worker that nobody waits for, if there is one."""
        free = [w for w in self._free if w is not other_than]
        if self._tickets or not free:
            return None
        self._give(free[-1], who)
        return free[-1]

    def _grant(self) -> None:
        """Give free workers to those who had least of what is their share, then to what is urgent, then to who
        asked first."""
        while self._free and self._tickets:
            due = {t.who: self._spent_by(t.who) / self._shares.get(t.who, 1.0) for t in self._tickets}
            ticket = min(self._tickets, key=lambda t: (due[t.who], not t.urgent, t.number))
            self._tickets.remove(ticket)
            if ticket.given.done():
                continue
            # The one that worked last, of equals: a process that has done nothing yet has everything to import first.
            worker = max(reversed(self._free), key=ticket.rank)
            self._give(worker, ticket.who)
            ticket.given.set_result(worker)
        if self._tickets and not self._all:
            if not self._coming:
                self._refuse()
            elif self._alarm is None:
                self._alarm = asyncio.get_running_loop().call_later(self._patience, self._refuse)

    def _give(self, worker: W, who: str) -> None:
        self._free.remove(worker)
        self._held[id(worker)] = (who, time.monotonic())

    def _refuse(self) -> None:
        """Nobody has a worker and none comes in time: who waits is told why."""
        self._alarm = None
        if self._all:
            return
        for ticket in self._tickets:
            if not ticket.given.done():
                ticket.given.set_exception(self._reason())
        self._tickets.clear()

    def _reason(self) -> VortexError:
        return self._error or engine_lost(f"none is left, and none found a place in {self._patience:g} s")

    def _set_free(self, worker: W) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._free.append(worker)
        self._grant()

    async def give_back(self, worker: W) -> None:
        """It is free again; one that was to go goes now."""
        self._account(worker)
        if worker in self._leaving:
            await self._end(worker)
        elif worker in self._all:
            self._set_free(worker)

    def _account(self, worker: W) -> None:
        who, since = self._held.pop(id(worker), ("", 0.0))
        if who in self._shares:
            self._spent[who] += time.monotonic() - since

    async def _end(self, worker: W) -> None:
        for members in (self._all, self._free, self._leaving):
            if worker in members:
                members.remove(worker)
        self._account(worker)
        await worker.kill()

    def drain(self, worker: W, error: VortexError) -> None:
        """It shall go: now if it is free, else when it is given back. Another one is started if one is wanted."""
        if worker not in self._all or worker in self._leaving:
            return
        self._leaving.append(worker)
        self._match()
        self._heard(Change("left", worker, error, waiting=bool(self._coming)))
        if worker in self._free:
            self._free.remove(worker)
            task = asyncio.create_task(self._end(worker))
            _BACKGROUND.add(task)
            task.add_done_callback(_BACKGROUND.discard)

    async def replace(self, worker: W, error: VortexError) -> None:
        """End a worker; another takes its place as soon as it is ready, and nobody waits for it here."""
        if worker not in self._all:
            return
        told = worker in self._leaving
        self._all.remove(worker)  # what is wanted is started before the old one is dead
        self._match()
        if not told:
            self._heard(Change("left", worker, error, waiting=bool(self._coming)))
        await self._end(worker)
        self._grant()

    async def close(self) -> None:
        """End all."""
        self._wanted = 0
        tasks = list(self._coming)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._coming.clear()
        await asyncio.gather(*(self._end(worker) for worker in self.workers))
        if self._alarm is not None:
            self._alarm.cancel()


_BACKGROUND: set[asyncio.Task[Any]] = set()

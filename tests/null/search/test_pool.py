"""Who gets a worker, how many there are, and what becomes of one that fails: without processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from itertools import count
from typing import Any

import pytest

from search.errors import engine_lost
from search.executors.pool import Change, Pool
from vortex_core.errors import VortexError

NO_MEMORY = VortexError("VM008", "no memory for the weights", "use another machine")
GONE = engine_lost("its node is gone")


class Fake:
    """A worker that is only its number."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.killed = False

    async def kill(self) -> None:
        self.killed = True


class Factory:
    """Starts workers while it is healthy and has places."""

    def __init__(self) -> None:
        self.healthy = True
        self.numbers = count()
        self.changes: list[Change[Fake]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def start(self) -> Fake:
        await self.gate.wait()
        if not self.healthy:
            raise NO_MEMORY
        return Fake(next(self.numbers))

    def pool(self, **options: Any) -> Pool[Fake]:
        return Pool(self.start, self.changes.append, **options)

    def heard(self, kind: str) -> list[VortexError | None]:
        return [change.error for change in self.changes if change.kind == kind]


async def filled(factory: Factory, size: int) -> Pool[Fake]:
    pool = factory.pool()
    pool.want(size)
    await pool.ready(every=True)
    return pool


def within(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 10))


def test_the_highest_rank_is_preferred_and_else_who_worked_last():
    async def scenario() -> None:
        pool = await filled(Factory(), 3)
        first = await pool.take()
        await pool.give_back(first)
        again = await pool.take()
        assert again is first  # what it imported and compiled is there; the others have done nothing yet
        highest, lowest = sorted({0, 1, 2} - {first.number}, reverse=True)
        assert (await pool.take(lambda w: w.number)).number == highest
        assert (await pool.take(lambda w: w.number)).number == lowest

    within(scenario())


def test_the_others_work_while_a_lost_one_is_replaced():
    async def scenario() -> None:
        factory = Factory()
        pool = await filled(factory, 2)
        lost, other = await pool.take(), await pool.take()
        factory.gate.clear()
        await pool.replace(lost, GONE)
        assert lost.killed
        assert (pool.size, pool.coming) == (2, 1), "one at work, one coming"
        assert [(c.kind, c.waiting) for c in factory.changes[2:]] == [("left", True)]
        await pool.give_back(other)
        assert await pool.take() is other
        waiting = asyncio.create_task(pool.take())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        factory.gate.set()
        assert (await waiting).number == 2

    within(scenario())


def test_one_that_cannot_be_replaced_leaves_the_others_and_the_last_one_says_why():
    async def scenario() -> None:
        factory = Factory()
        pool = await filled(factory, 3)
        workers = [await pool.take() for _ in range(3)]
        factory.healthy = False
        await pool.replace(workers[0], GONE)
        await asyncio.sleep(0.01)
        assert (pool.size, factory.heard("lost")) == (2, [NO_MEMORY])
        # The last two at once: who waits for either learns that nothing is coming.
        waiting = asyncio.create_task(pool.take())
        await asyncio.gather(pool.replace(workers[1], GONE), pool.replace(workers[2], GONE))
        with pytest.raises(VortexError) as error:
            await waiting
        assert error.value is NO_MEMORY
        assert (pool.size, len(factory.heard("lost"))) == (0, 3)
        assert all(worker.killed for worker in workers)

    within(scenario())


def test_some_of_many_may_fail_to_start_and_all_may_not():
    async def scenario() -> None:
        factory = Factory()
        starts = iter([True, False, True, False])

        async def sometimes() -> Fake:
            factory.healthy = next(starts)
            return await factory.start()

        pool = Pool(sometimes, factory.changes.append, tries=1)
        pool.want(3)
        await pool.ready(every=True)
        assert (pool.size, factory.heard("lost")) == (2, [NO_MEMORY])
        pool = factory.pool()
        factory.healthy = False
        pool.want(2)
        with pytest.raises(VortexError, match="no memory"):
            await pool.ready()
        await pool.close()

    within(scenario())


def test_it_grows_and_shrinks_without_cutting_off_work():
    async def scenario() -> None:
        factory = Factory()
        pool = await filled(factory, 2)
        busy = await pool.take()
        pool.want(4)
        await pool.ready(every=True)
        assert len(pool.workers) == 4
        pool.want(1)
        await asyncio.sleep(0.01)
        assert pool.workers == [busy], "the idle ones go first"
        pool.want(0)
        await asyncio.sleep(0.01)
        assert not busy.killed, "it may end what it does"
        await pool.give_back(busy)
        assert busy.killed and not pool.workers
        assert len(factory.heard("left")) == 4

    within(scenario())


def test_waiting_for_a_place_ends_with_patience_only_while_nobody_is_there():
    async def scenario() -> None:
        factory = Factory()
        factory.gate.clear()
        pool = factory.pool(patience=0.05)
        pool.want(1)
        with pytest.raises(VortexError, match="none found a place"):
            await pool.take()
        waiting = asyncio.create_task(pool.take())
        await asyncio.sleep(0.02)
        factory.gate.set()  # a node came in time
        assert (await waiting).number == 0
        await pool.close()

    within(scenario())


@pytest.mark.parametrize(("shares", "expected"), [((1.0, 1.0), 0.5), ((3.0, 1.0), 0.75)])
def test_two_who_ask_for_one_worker_get_their_shares(shares: tuple[float, float], expected: float):
    async def scenario() -> None:
        pool = await filled(Factory(), 1)
        for who, share in zip("ab", shares, strict=True):
            pool.join(who, share)
        held = {"a": 0.0, "b": 0.0}
        end = time.monotonic() + 0.6

        async def ask(who: str, seconds: float) -> None:
            while time.monotonic() < end:
                worker = await pool.take(who=who)
                began = time.monotonic()
                await asyncio.sleep(seconds)
                held[who] += time.monotonic() - began
                await pool.give_back(worker)

        # One asks for long turns and from twice as many places: that wins it nothing.
        await asyncio.gather(
            ask("a", 0.004), ask("a", 0.004), ask("b", 0.012), ask("b", 0.012), ask("b", 0.012)
        )
        assert held["a"] / sum(held.values()) == pytest.approx(expected, abs=0.06)

    within(scenario())


def test_who_joins_late_has_no_credit_for_the_past():
    async def scenario() -> None:
        pool = await filled(Factory(), 1)
        pool.join("a", 1.0)
        worker = await pool.take(who="a")
        await asyncio.sleep(0.05)
        await pool.give_back(worker)
        pool.join("b", 1.0)
        assert pool.spent()["b"] == pytest.approx(pool.spent()["a"])

    within(scenario())


def test_an_idle_one_is_taken_only_where_nobody_waits():
    async def scenario() -> None:
        pool = await filled(Factory(), 2)
        first = await pool.take()
        second = pool.take_idle(other_than=first)
        assert second is not None and second is not first
        assert pool.take_idle() is None
        waiting = asyncio.create_task(pool.take())
        await asyncio.sleep(0)
        await pool.give_back(second)
        assert pool.take_idle() is None, "who waited has it"
        assert await waiting is second

    within(scenario())


def test_what_is_urgent_goes_before_what_the_same_asked_for_earlier_and_not_before_others():
    async def scenario() -> None:
        pool = await filled(Factory(), 1)
        pool.join("a", 1.0)
        pool.join("b", 1.0)
        worker = await pool.take(who="a")
        given: list[str] = []

        async def ask(name: str, who: str, urgent: bool) -> None:
            mine = await pool.take(who=who, urgent=urgent)
            given.append(name)
            await asyncio.sleep(0.02)
            await pool.give_back(mine)

        asks = (("first", "a", False), ("second", "a", False), ("urgent", "a", True), ("other", "b", False))
        waiting = [asyncio.create_task(ask(*each)) for each in asks]
        await asyncio.sleep(0.02)
        await pool.give_back(worker)
        await asyncio.gather(*waiting)
        assert given == ["other", "urgent", "first", "second"]  # `a` had the worker's time before

    within(scenario())


def test_who_gives_up_waiting_takes_no_worker_along():
    async def scenario() -> None:
        pool = await filled(Factory(), 1)
        only = await pool.take()
        waiting = asyncio.create_task(pool.take())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await pool.give_back(only)
        assert await pool.take() is only

    within(scenario())

"""Who gets a worker, and what becomes of one that fails: without processes."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest

from search.executors.pool import Pool
from vortex_core.errors import VortexError

NO_MEMORY = VortexError("VM008", "no memory for the weights", "use another machine")


class Fake:
    """A worker that is only its number."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.killed = False

    async def kill(self) -> None:
        self.killed = True


class Factory:
    """Starts workers while it is healthy."""

    def __init__(self) -> None:
        self.healthy = True
        self.numbers = count()
        self.lost: list[VortexError] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def start(self) -> Fake:
        await self.gate.wait()
        if not self.healthy:
            raise NO_MEMORY
        return Fake(next(self.numbers))

    def pool(self) -> Pool[Fake]:
        return Pool(self.start, self.lost.append)


def test_the_highest_rank_is_preferred_and_else_who_waited_longest():
    async def scenario() -> None:
        pool = Factory().pool()
        await pool.fill(3)
        first = await pool.take()
        await pool.give_back(first)
        assert (await pool.take()).number == 1
        assert (await pool.take(lambda w: w.number)).number == 2
        assert (await pool.take(lambda w: w.number)).number == 0

    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_the_others_work_while_a_lost_one_is_replaced():
    async def scenario() -> None:
        factory = Factory()
        pool = factory.pool()
        await pool.fill(2)
        lost, other = await pool.take(), await pool.take()
        factory.gate.clear()
        await pool.replace(lost)
        assert lost.killed
        assert pool.size == 2, "one at work, one coming"
        await pool.give_back(other)
        assert await pool.take() is other
        waiting = asyncio.create_task(pool.take())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        factory.gate.set()
        assert (await waiting).number == 2

    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_one_that_cannot_be_replaced_leaves_the_others_and_the_last_one_says_why():
    async def scenario() -> None:
        factory = Factory()
        pool = factory.pool()
        await pool.fill(3)
        workers = [await pool.take() for _ in range(3)]
        factory.healthy = False
        await pool.replace(workers[0])
        await asyncio.sleep(0.01)
        assert (pool.size, factory.lost) == (2, [NO_MEMORY])
        # The last two at once: who waits for either learns that nothing is coming.
        waiting = asyncio.create_task(pool.take())
        await asyncio.gather(pool.replace(workers[1]), pool.replace(workers[2]))
        with pytest.raises(VortexError) as error:
            await waiting
        assert error.value is NO_MEMORY
        assert (pool.size, len(factory.lost)) == (0, 3)
        assert all(worker.killed for worker in workers)

    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_some_of_many_may_fail_to_start_and_all_may_not():
    async def scenario() -> None:
        factory = Factory()
        pool = factory.pool()
        starts = iter([True, False, True])

        async def sometimes() -> Fake:
            factory.healthy = next(starts)
            return await factory.start()

        pool._start = sometimes
        await pool.fill(3)
        assert (pool.size, factory.lost) == (2, [NO_MEMORY])
        pool = factory.pool()
        factory.healthy = False
        with pytest.raises(VortexError, match="no memory"):
            await pool.fill(2)
        await pool.close()

    asyncio.run(asyncio.wait_for(scenario(), 10))

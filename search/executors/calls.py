"""Calls of workers' methods: which worker takes one, what happens when it fails, stragglers, and dense answers."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from search.config import Cluster
from search.errors import engine_lost
from search.executors.base import WorkerLostError
from search.executors.rooms import Call, Guest, Kind, Live, Room
from vortex_core.errors import VortexError

_FEW = 8  # runs of a stage before its usual time is known
_SHORT = 2.0  # seconds: nothing shorter is worth a second worker
_LOOK = 0.5  # seconds between two looks at a call that is under way


_FORGOTTEN: dict[str, Any] = {
    "lost": engine_lost("the cluster took this campaign for dead, and it joins again").to_json(),
    "timed_out": False,
    "died": False,
}


class Calls:
    """See the module.

    Args:
        guests: campaigns that are here, by name.
        make_way: gives a campaign's place of its engines to SGLang.
        spawn: runs something in the background.
    """

    def __init__(
        self,
        guests: Mapping[str, Guest],
        make_way: Callable[[Guest], Awaitable[None]],
        spawn: Callable[[Any], asyncio.Task[Any]],
    ) -> None:
        self._guests = guests
        self._make_way = make_way
        self._spawn = spawn
        self._usual: dict[str, deque[float]] = {}

    async def run(self, campaign: str, kind: Kind, call: Call) -> dict[str, Any]:
        """Run one call on a worker of a kind; a worker that fails under it is replaced.

        Returns:
            `{"value", "worker", "doubled"}`, `{"error"}` of an answer, or `{"lost", "timed_out", "died"}`.
        """
        guest = self._guests.get(campaign)
        if guest is None:
            return _FORGOTTEN
        guest.seen = time.monotonic()
        if kind == "serving" and "serving" not in guest.rooms:
            await self._make_way(guest)
        room = guest.rooms[kind]
        try:
            worker = await room.pool.take(lambda w: w.suits(call), campaign, urgent=call.urgent)
        except VortexError as error:
            return {"error": error.to_json()}
        first = self._spawn(self._on(room, worker, campaign, call))
        try:
            began, other = time.monotonic(), None
            # What is usual may be learned meanwhile, and where all are busy one may be idle later: who hangs stays so.
            while other is None:
                done, _ = await asyncio.wait({first}, timeout=_LOOK)
                if done:
                    return first.result()
                slow = self._slow(room, guest.member.config, call)
                if slow is not None and time.monotonic() - began >= slow:
                    other = room.pool.take_idle(campaign, other_than=worker)
            second = self._spawn(self._on(room, other, campaign, call))
            return await _first_answer(first, second)
        except asyncio.CancelledError:
            first.cancel()
            raise

    def _slow(self, room: Room, config: Cluster, call: Call) -> float | None:
        """Seconds after which a call takes unusually long; None while that is not known, or not asked for."""
        taken = self._usual.get(call.stage, ())
        if not config.double_after or room.kind == "serving" or len(taken) < _FEW:
            return None
        usual = statistics.quantiles(taken, n=20, method="inclusive")[-1]
        return max(_SHORT, config.double_after * usual)

    async def _on(self, room: Room, worker: Live, campaign: str, call: Call) -> dict[str, Any]:
        """One call on a worker that was taken; gives it back or has it replaced."""
        pool = room.pool
        try:
            if call.seed is not None and call.seed not in worker.prepared and call.seed in room.dense:
                await self._prepare(room, worker, call.seed, campaign)
            worker.took(call)
            worker.doing = (campaign, call.stage, call.key, time.time())
            began = time.monotonic()
            value = await worker.actors.call(
                lambda actor: getattr(actor, call.method).remote(*call.arguments), call.deadline
            )
            self._usual.setdefault(call.stage, deque(maxlen=200)).append(time.monotonic() - began)
        except VortexError as error:  # an answer like any other: the worker is well
            worker.doing = None
            await pool.give_back(worker)
            return {"error": error.to_json(), "worker": worker.actors.label}
        except TimeoutError:
            why = engine_lost(f"stage {call.stage} was killed after {call.deadline:g} s", worker.actors.log)
            await pool.replace(worker, why)
            return {"lost": why.to_json(), "timed_out": True, "died": True}
        except WorkerLostError as lost:
            await pool.replace(worker, lost.error)
            return {"lost": lost.error.to_json(), "timed_out": False, "died": lost.died}
        except BaseException:  # cancelled in the middle of a stage: its state is unknown
            self._spawn(pool.replace(worker, engine_lost("its stage was cut off")))
            raise
        worker.doing = None
        await pool.give_back(worker)
        return {"value": value, "worker": worker.actors.label, "doubled": False}

    async def reference(
        self, campaign: str, seed: int, known: dict[str, Any] | None, deadline: float
    ) -> dict[str, Any]:
        """Prefill a seed's prompts and answer them densely: `{"value"}`, `{"error"}` or `{"lost", ...}`.

        All idle engines begin at once. The first one's answers stand for all: the others take them over.
        """
        guest = self._guests.get(campaign)
        if guest is None:
            return _FORGOTTEN
        room = guest.rooms["engine"]
        async with room.measuring.setdefault(seed, asyncio.Lock()):
            if room.dense.get(seed) is not None and known is None:
                return {"value": room.dense[seed]}
            room.dense[seed] = known
            try:
                engines = [await room.pool.take(who=campaign)]
            except VortexError as error:
                return {"error": error.to_json()}
            while (more := room.pool.take_idle(campaign)) is not None:
                engines.append(more)
            waiting = {self._spawn(self._answers(room, engine, seed, campaign)) for engine in engines}
            failed: dict[str, Any] = {}
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    answer = task.result()
                    if "value" in answer:
                        return answer
                    failed = answer
            return failed

    async def _answers(self, room: Room, engine: Live, seed: int, campaign: str) -> dict[str, Any]:
        """One engine's dense answers; taken over from the first one where that was faster."""
        try:
            value = await self._prepare(room, engine, seed, campaign)
            if room.dense[seed] is None:
                room.dense[seed] = value
            elif value != room.dense[seed]:
                value = await self._prepare(room, engine, seed, campaign)
        except WorkerLostError as lost:
            await room.pool.replace(engine, lost.error)
            return {"lost": lost.error.to_json(), "timed_out": lost.timed_out, "died": lost.died}
        except VortexError as error:
            await room.pool.give_back(engine)
            return {"error": error.to_json()}
        except BaseException:
            self._spawn(room.pool.replace(engine, engine_lost("its prefill was cut off")))
            raise
        await room.pool.give_back(engine)
        return {"value": value}

    async def _prepare(self, room: Room, worker: Live, seed: int, campaign: str) -> dict[str, Any]:
        """Have an engine prefill a seed's prompts, with the deadline of a start: a stage's is for the stage."""
        config = self._guests[campaign].member.config if campaign in self._guests else None
        deadline = config.start_deadline if config is not None else 1800.0
        known = room.dense[seed]
        worker.doing = (campaign, "prefill", "", time.time())
        try:
            answer: dict[str, Any] = await worker.actors.call(
                lambda actor: actor.reference.remote(seed, known), deadline
            )
        except TimeoutError as error:
            why = engine_lost(f"prefill was not done in {deadline:g} s", worker.actors.log)
            raise WorkerLostError(why, timed_out=False) from error
        worker.prepared.add(seed)
        worker.doing = None
        return answer


async def _first_answer(*tasks: asyncio.Task[dict[str, Any]]) -> dict[str, Any]:
    """The first answer of several who do the same; the others go on and give their workers back. A lost worker's is
    taken only if there is no other."""
    waiting, last = set(tasks), {}
    while waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            last = task.result()
            if "lost" not in last:
                return last | {"doubled": True}
    return last

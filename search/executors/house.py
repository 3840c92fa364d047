"""The workers of a cluster: resident engines by what they hold, CPU workers, SGLang's. Campaigns come and go.

In a campaign on its own machine a house lives in the driver. On a joined cluster it is one actor that all campaigns
find by name (`search.executors.shared`), so engines of one model serve them all, outlive a campaign for a while, and
are shared out by weight. Where workers run, and on which nodes, is Ray's decision: the house only says how many it
wants.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import statistics
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from search.config import Cluster
from search.errors import engine_lost
from search.executors.actors import Actors, for_serving, kill_now, on_cpu, on_engine
from search.executors.base import WorkerLostError
from search.executors.division import Claim, divide
from search.executors.nodes import Nodes
from search.executors.placement import Placement, Resources, place
from search.executors.pool import Change, Pool
from search.executors.workers import CpuWorker, EngineSetup, EngineWorker, ServingWorker
from vortex_core.errors import VortexError

Kind = Literal["engine", "cpu", "serving"]
_COMPILED = 512  # programs an engine is remembered to have compiled
_POLL = 2.0  # seconds between looks at the nodes
_GONE = 60.0  # seconds without a sign of life after which a campaign counts as dead
_FEW = 8  # runs of a stage before its usual time is known
_SHORT = 2.0  # seconds: nothing shorter is worth a second worker


@dataclass(frozen=True)
class Member:
    """A campaign that joins.

    Attributes:
        campaign: its name, unique.
        config: what it wishes of the cluster.
        setup: what its engines load.
        engine, cpu, serving: what workers run.
    """

    campaign: str
    config: Cluster
    setup: EngineSetup
    engine: type[EngineWorker] = EngineWorker
    cpu: type[CpuWorker] = CpuWorker
    serving: type[ServingWorker] = ServingWorker


@dataclass(frozen=True)
class Call:
    """One call of a worker's method.

    Attributes:
        method, arguments: what to call.
        stage: for how long it usually takes.
        deadline: seconds it may run. Waiting for a worker does not count.
        key, ir_hash: candidate and program; an engine that holds or has compiled them is preferred.
        seed: of the items that the engine must have prefilled, None for none.
    """

    method: str
    arguments: tuple[Any, ...]
    stage: str
    deadline: float
    key: str = ""
    ir_hash: str = ""
    seed: int | None = None


@dataclass(eq=False)
class Live:
    """A live worker: one actor, or the ranks of one engine.

    Attributes:
        actors: and how to kill them.
        facts: what it runs on.
        ran: key of the candidate it ran last: its flow is loaded and its answers are remembered.
        compiled: programs it has run, the latest last.
        prepared: seeds whose prompts it has prefilled.
        doing: campaign, stage and candidate, and since when (Unix time).
    """

    actors: Actors
    facts: dict[str, Any] = field(default_factory=dict)
    ran: str = ""
    compiled: OrderedDict[str, None] = field(default_factory=OrderedDict)
    prepared: set[int] = field(default_factory=set)
    doing: tuple[str, str, str, float] | None = None

    async def kill(self) -> None:
        """End all its processes and what they started."""
        await asyncio.to_thread(kill_now, self.actors)

    def suits(self, call: Call) -> int:
        """2 if the candidate is loaded, 1 if its program is compiled, else 0."""
        return 2 if self.ran == call.key else int(call.ir_hash in self.compiled)

    def took(self, call: Call) -> None:
        """Note what it runs now."""
        if not call.key:
            return
        self.ran = call.key
        self.compiled[call.ir_hash] = None
        self.compiled.move_to_end(call.ir_hash)
        if len(self.compiled) > _COMPILED:
            self.compiled.popitem(last=False)


@dataclass
class _Room:
    """Workers that can stand in for each other: a pool, and what engines of it know."""

    kind: Kind
    setup: EngineSetup
    pool: Pool[Live]
    placed: Placement
    members: dict[str, Member] = field(default_factory=dict)
    dense: dict[int, dict[str, Any] | None] = field(default_factory=dict)
    measuring: dict[int, asyncio.Lock] = field(default_factory=dict)
    empty_since: float | None = None


@dataclass
class _Guest:
    """A campaign that is here."""

    member: Member
    rooms: dict[Kind, _Room]
    heard: deque[dict[str, Any]] = field(default_factory=deque)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    seen: float | None = None  # once it has joined: until then it waits for us, and says nothing


class House:
    """See the module.

    Args:
        resources: what there is now; where it may change, `watch` looks again.
        elastic: whether nodes come and go.
        deserted: called when nobody is left and engines were kept long enough.
    """

    def __init__(
        self,
        resources: Callable[[], Resources],
        *,
        elastic: bool = False,
        deserted: Callable[[], None] = lambda: None,
    ) -> None:
        self._resources = resources
        self._elastic = elastic
        self._deserted = deserted
        self._nodes = Nodes()
        self._guests: dict[str, _Guest] = {}
        self._rooms: dict[str, _Room] = {}
        self._usual: dict[str, deque[float]] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._watching: asyncio.Task[None] | None = None
        self._joining = asyncio.Lock()
        self._kept = 0.0

    # -- coming and going --------------------------------------------------------------------------------

    async def join(self, member: Member) -> dict[str, Any]:
        """Take a campaign in, and wait until an engine for it is ready; on one machine, until all are.

        Returns:
            `placement`, and `engines`: what each runs on, with its name; or `error`.
        """
        try:
            async with self._joining:
                found = self._resources()
                placed = place(member.config, found, growing=self._elastic)
                setup = replace(
                    member.setup, device=placed.device, threads=placed.threads, ranks=placed.ranks
                )
                member = replace(member, setup=setup)
                engines = self._room("engine", member, placed)
                cpu = self._room("cpu", member, placed)
                guest = _Guest(member, {"engine": engines, "cpu": cpu})
                self._guests[member.campaign] = guest
                self._kept = max(self._kept, member.config.keep)
                for room in guest.rooms.values():
                    self._enter(room, member)
                self._share_out()
                if self._elastic and self._watching is None:
                    self._watching = self._spawn(self._watch())
            ready = await asyncio.gather(
                *(room.pool.ready(every=not self._elastic) for room in guest.rooms.values()),
                return_exceptions=True,
            )
            for failure in ready:  # both are over by now: nothing starts behind the back of `leave`
                if failure is not None:
                    raise failure
        except VortexError as error:
            await self.leave(member.campaign)
            return {"error": error.to_json()}
        guest.heard.clear()  # those that are ready are the answer
        guest.seen = time.monotonic()
        return {"placement": placed, "engines": [_named(worker) for worker in engines.pool.workers]}

    def _room(self, kind: Kind, member: Member, placed: Placement) -> _Room:
        """The workers of a kind that a campaign may use; made if nobody used such before."""
        worker = {"engine": member.engine, "cpu": member.cpu, "serving": member.serving}[kind]
        what = asdict(member.setup) if kind == "engine" else {"device": placed.device, "ranks": placed.ranks}
        text = json.dumps(
            [kind, f"{worker.__module__}.{worker.__qualname__}", what if kind != "cpu" else 0], sort_keys=True
        )
        key = hashlib.sha256(text.encode()).hexdigest()
        if key not in self._rooms:

            async def start() -> Live:
                return await self._start(room, worker)

            patience = member.config.start_deadline
            pool: Pool[Live] = Pool(start, lambda change: self._tell(room, change), patience=patience)
            room = self._rooms[key] = _Room(kind, member.setup, pool, placed)
        return self._rooms[key]

    def _enter(self, room: _Room, member: Member) -> None:
        room.members[member.campaign] = member
        room.pool.join(member.campaign, member.config.share)
        room.empty_since = None

    def _exit(self, room: _Room, campaign: str) -> None:
        if room.members.pop(campaign, None) is not None:
            room.pool.leave(campaign)
            if not room.members:
                room.empty_since = time.monotonic()

    async def leave(self, campaign: str) -> None:
        """A campaign is over. Its engines stay for a while, if others may come."""
        guest = self._guests.pop(campaign, None)
        if guest is None:
            return
        for room in guest.rooms.values():
            self._exit(room, campaign)
        if not self._elastic:
            await self.close()
        else:
            self._share_out()

    async def close(self) -> None:
        """End everything."""
        tasks = list(self._background)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(room.pool.close() for room in self._rooms.values()))
        self._rooms.clear()

    # -- how many of each --------------------------------------------------------------------------------

    def _share_out(self) -> None:
        """Say how many workers of each kind there should be, from what there is and who is here."""
        found = self._resources()
        claims: dict[int, Claim] = {}
        rooms = [room for room in self._rooms.values() if room.members or room.pool.size]
        for number, room in enumerate(rooms):
            wishes = [member.config for member in room.members.values()]
            share = sum(config.share for config in wishes)
            claims[number] = Claim(room.kind, room.placed, share, [_wish(room, config) for config in wishes])
        for number, count in divide(found, claims, growing=self._elastic).items():
            if rooms[number].members:
                rooms[number].pool.want(count)

    async def _watch(self) -> None:
        """Follow the cluster: nodes that go take their workers along, nodes that come give room for more."""
        while True:
            await asyncio.sleep(_POLL)
            dead, draining = await asyncio.to_thread(self._nodes.look)
            for room in list(self._rooms.values()):
                for worker in room.pool.workers:
                    nodes = {node for node, _ in worker.actors.places}
                    if nodes & dead:
                        await room.pool.replace(
                            worker, engine_lost(f"the node of {worker.actors.label} is gone")
                        )
                    elif nodes & draining:
                        room.pool.drain(
                            worker, engine_lost(f"the node of {worker.actors.label} is being drained")
                        )
            for campaign, guest in list(self._guests.items()):
                if guest.seen is not None and time.monotonic() - guest.seen > _GONE:
                    await self.leave(campaign)
            await self._forget_the_empty()
            with contextlib.suppress(VortexError):
                self._share_out()

    async def _forget_the_empty(self) -> None:
        """End workers that nobody has used for as long as they are kept, or whose place others wait for."""
        now = time.monotonic()
        wanted = any(room.members and room.pool.coming for room in self._rooms.values())
        for room in list(self._rooms.values()):
            if room.empty_since is not None and (wanted or now - room.empty_since > self._kept):
                await self._forget(room)
        if not self._rooms and not self._guests:
            self._deserted()

    async def make_room(self) -> None:
        """End workers that are only kept in case somebody comes: somebody did, and cannot use them."""
        for room in list(self._rooms.values()):
            if room.empty_since is not None:
                await self._forget(room)

    async def _forget(self, room: _Room) -> None:
        for key, found in list(self._rooms.items()):
            if found is room:
                del self._rooms[key]
        await room.pool.close()

    # -- work --------------------------------------------------------------------------------------------

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
            worker = await room.pool.take(lambda w: w.suits(call), campaign)
        except VortexError as error:
            return {"error": error.to_json()}
        first = self._spawn(self._on(room, worker, campaign, call))
        try:
            slow = self._slow(room, guest.member.config, call)
            done, _ = await asyncio.wait({first}, timeout=slow)
            if done:
                return first.result()
            other = room.pool.take_idle(campaign, other_than=worker)
            if other is None:
                return await first
            second = self._spawn(self._on(room, other, campaign, call))
            return await _first_answer(first, second)
        except asyncio.CancelledError:
            first.cancel()
            raise

    def _slow(self, room: _Room, config: Cluster, call: Call) -> float | None:
        """Seconds after which a call takes unusually long; None while that is not known, or not asked for."""
        taken = self._usual.get(call.stage, ())
        if not config.double_after or room.kind == "serving" or len(taken) < _FEW:
            return None
        usual = statistics.quantiles(taken, n=20, method="inclusive")[-1]
        return max(_SHORT, config.double_after * usual)

    async def _on(self, room: _Room, worker: Live, campaign: str, call: Call) -> dict[str, Any]:
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

    async def _answers(self, room: _Room, engine: Live, seed: int, campaign: str) -> dict[str, Any]:
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

    async def _prepare(self, room: _Room, worker: Live, seed: int, campaign: str) -> dict[str, Any]:
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

    async def _make_way(self, guest: _Guest) -> None:
        """End a campaign's part in the engines and give their place to SGLang: two of its servers and an engine do
        not share a GPU."""
        async with self._joining:
            if "serving" in guest.rooms:
                return
            campaign = guest.member.campaign
            room = guest.rooms["engine"]
            serving = self._room("serving", guest.member, room.placed)
            self._exit(room, campaign)
            if not room.members:
                await room.pool.close()
            guest.rooms["serving"] = serving
            self._enter(serving, guest.member)
            self._share_out()

    # -- starting ----------------------------------------------------------------------------------------

    async def _start(self, room: _Room, worker: type[Any]) -> Live:
        """A worker in some place, ready for work; an engine has loaded its model."""
        member = next(iter(room.members.values()), None)
        deadline = member.config.start_deadline if member is not None else 1800.0
        if room.kind == "engine":
            actors = await asyncio.to_thread(on_engine, worker, room.setup)
        elif room.kind == "serving":
            actors = await asyncio.to_thread(for_serving, worker, room.setup)
        else:
            actors = await asyncio.to_thread(on_cpu, worker)
        live = Live(actors)
        try:
            # How long a place is waited for is the pool's business, unless all that will ever be is here already.
            await actors.locate(None if self._elastic else deadline)
            if room.kind == "engine":
                live.facts = await actors.start(deadline)
        except TimeoutError as error:
            await live.kill()
            did = "the model was not loaded" if actors.places else f"no place was found for {actors.wants}"
            raise engine_lost(f"{did} in {deadline:g} s", actors.log) from error
        except WorkerLostError as lost:
            await live.kill()
            raise lost.error from lost
        except BaseException:
            self._spawn(live.kill())
            raise
        return live

    # -- telling -----------------------------------------------------------------------------------------

    def _tell(self, room: _Room, change: Change[Live]) -> None:
        """Let the campaigns that use a worker's kind know that it came or went."""
        if room.kind != "engine":
            return
        said: dict[str, Any] = {"kind": change.kind, "waiting": change.waiting}
        if change.worker is not None:
            said |= {"worker": change.worker.actors.label, "device": _named(change.worker)}
        if change.error is not None:
            said["error"] = change.error.to_json()
        for campaign in room.members:
            if campaign in self._guests:
                self._guests[campaign].heard.append(said)
                self._guests[campaign].news.set()

    async def look(self, campaign: str, patience: float) -> dict[str, Any]:
        """What a campaign should know: `notices`, as soon as there are any; `engines` that are its share now; `workers`
        and what they do; the `queue`. A sign that it lives."""
        guest = self._guests.get(campaign)
        if guest is None:
            return {"forgotten": True}
        guest.seen = time.monotonic()
        guest.news.clear()
        if not guest.heard:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(guest.news.wait(), patience)
        notices = list(guest.heard)
        guest.heard.clear()
        guest.seen = time.monotonic()
        return {"notices": notices, **self.view(campaign)}

    def view(self, campaign: str) -> dict[str, Any]:
        """See `look`."""
        guest = self._guests[campaign]
        pool = guest.rooms["engine"].pool
        shares = pool.shares
        mine = shares.get(campaign, 0.0) / (sum(shares.values()) or 1.0)
        return {
            "engines": max(1, -(-int(len(pool.workers) * mine * 1000) // 1000)),
            "workers": [
                {
                    "kind": kind,
                    "name": w.actors.label,
                    "doing": w.doing,
                    "pid": [p for _, p in w.actors.places],
                }
                for kind, room in guest.rooms.items()
                for w in room.pool.workers
            ],
            "coming": pool.coming,
            "queue": {kind: room.pool.queue for kind, room in guest.rooms.items()},
            "campaigns": {other: round(spent, 1) for other, spent in pool.spent().items()},
        }

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


_FORGOTTEN: dict[str, Any] = {
    "lost": engine_lost("the cluster took this campaign for dead, and it joins again").to_json(),
    "timed_out": False,
    "died": False,
}


def _wish(room: _Room, config: Cluster) -> int | None:
    """How many workers a campaign wants of a kind; None is as many as fit."""
    if room.kind == "serving":
        return 1
    if room.kind == "cpu":
        return config.cpu_tasks
    return config.engines or (None if config.gpus is None else config.gpus // config.tensor_parallel)


def _named(worker: Live) -> dict[str, Any]:
    return worker.facts | {"worker": worker.actors.label}


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

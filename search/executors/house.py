"""The workers of a cluster: resident engines by what they hold, CPU workers, SGLang's. Campaigns come and go.

In a campaign on its own machine a house lives in the driver. On a joined cluster it is one actor that all campaigns
find by name (`search.executors.shared`), so engines of one model serve them all, outlive a campaign for a while, and
are shared out by weight. Where workers run, and on which nodes, is Ray's decision: the house only says how many it
wants. `search.executors.calls` gives them work.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from search.errors import engine_lost
from search.executors.actors import for_serving, on_cpu, on_engine
from search.executors.base import WorkerLostError
from search.executors.calls import Calls
from search.executors.division import Claim, divide
from search.executors.nodes import Nodes
from search.executors.placement import Placement, Resources, place
from search.executors.pool import Change, Pool
from search.executors.rooms import Call, Guest, Kind, Live, Member, Room, named, wish
from vortex_core.errors import VortexError

_POLL = 2.0  # seconds between looks at the nodes
_GONE = 60.0  # seconds without a sign of life after which a campaign counts as dead


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
        self._guests: dict[str, Guest] = {}
        self._rooms: dict[str, Room] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._watching: asyncio.Task[None] | None = None
        self._joining = asyncio.Lock()
        self._kept = 0.0
        self._calls = Calls(self._guests, self._make_way, self._spawn)

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
                    member.setup, device=placed.device, threads=placed.threads, ranks=placed.ranks,
                    screeners=placed.beside(member.setup.screeners),
                )  # fmt: skip
                member = replace(member, setup=setup)
                engines = self._room("engine", member, placed)
                cpu = self._room("cpu", member, placed)
                guest = Guest(member, {"engine": engines, "cpu": cpu})
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
        return {"placement": placed, "engines": [named(worker) for worker in engines.pool.workers]}

    def _room(self, kind: Kind, member: Member, placed: Placement) -> Room:
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
            room = self._rooms[key] = Room(kind, member.setup, pool, placed)
        return self._rooms[key]

    def _enter(self, room: Room, member: Member) -> None:
        room.members[member.campaign] = member
        room.pool.join(member.campaign, member.config.share)
        room.empty_since = None

    def _exit(self, room: Room, campaign: str) -> None:
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
            claims[number] = Claim(room.kind, room.placed, share, [wish(room, config) for config in wishes])
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

    async def _forget(self, room: Room) -> None:
        for key, found in list(self._rooms.items()):
            if found is room:
                del self._rooms[key]
        await room.pool.close()

    # -- work --------------------------------------------------------------------------------------------

    async def run(self, campaign: str, kind: Kind, call: Call) -> dict[str, Any]:
        """See `Calls.run`."""
        return await self._calls.run(campaign, kind, call)

    async def reference(
        self, campaign: str, seed: int, known: dict[str, Any] | None, deadline: float
    ) -> dict[str, Any]:
        """See `Calls.reference`."""
        return await self._calls.reference(campaign, seed, known, deadline)

    async def _make_way(self, guest: Guest) -> None:
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

    async def _start(self, room: Room, worker: type[Any]) -> Live:
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

    def _tell(self, room: Room, change: Change[Live]) -> None:
        """Let the campaigns that use a worker's kind know that it came or went."""
        if room.kind != "engine":
            return
        said: dict[str, Any] = {"kind": change.kind, "waiting": change.waiting}
        if change.worker is not None:
            said |= {"worker": change.worker.actors.label, "device": named(change.worker)}
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

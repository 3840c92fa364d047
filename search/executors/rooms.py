"""What a house is made of: campaigns, their calls, live workers, and rooms of those that stand in for each other."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any, Literal

from search.config import Cluster
from search.executors.actors import Actors, kill_now
from search.executors.placement import Placement
from search.executors.pool import Pool
from search.executors.workers import CpuWorker, EngineSetup, EngineWorker, ServingWorker

Kind = Literal["engine", "cpu", "serving"]
_COMPILED = 512  # programs an engine is remembered to have compiled


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
        urgent: goes before the campaign's other calls: an engine waits for its candidate, or soon will.
    """

    method: str
    arguments: tuple[Any, ...]
    stage: str
    deadline: float
    key: str = ""
    ir_hash: str = ""
    seed: int | None = None
    urgent: bool = False


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
class Room:
    """Workers that can stand in for each other: a pool, and what engines of it know.

    Attributes:
        kind, setup, placed: what its workers are, what they load, and where they go.
        members: campaigns that use them.
        dense: dense answers by seed; None while an engine is at them.
        measuring: held while a seed's are measured.
        empty_since: when its last member left (monotonic), None while it has members.
    """

    kind: Kind
    setup: EngineSetup
    pool: Pool[Live]
    placed: Placement
    members: dict[str, Member] = field(default_factory=dict)
    dense: dict[int, dict[str, Any] | None] = field(default_factory=dict)
    measuring: dict[int, asyncio.Lock] = field(default_factory=dict)
    empty_since: float | None = None


@dataclass
class Guest:
    """A campaign that is here.

    Attributes:
        heard, news: what it was not told yet, and whether there is any.
        seen: its last sign of life (monotonic); None until it has joined: until then it waits for us, and says nothing.
    """

    member: Member
    rooms: dict[Kind, Room]
    heard: deque[dict[str, Any]] = field(default_factory=deque)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    seen: float | None = None


def wish(room: Room, config: Cluster) -> int | None:
    """How many workers a campaign wants of a kind; None is as many as fit."""
    if room.kind == "serving":
        return 1
    if room.kind == "cpu":
        return config.cpu_tasks
    return config.engines or (None if config.gpus is None else config.gpus // config.tensor_parallel)


def named(worker: Live) -> dict[str, Any]:
    """What an engine runs on, with its name."""
    return worker.facts | {"worker": worker.actors.label}

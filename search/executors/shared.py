"""One house for all campaigns on a cluster: an actor that they find by name.

It is detached, so that engines outlive the campaign that started them, and ends itself when nobody has needed it for a
while. Its name holds a digest of the code: campaigns of different versions share a cluster, but no engines.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from functools import cache
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from search.errors import engine_lost
from search.executors.actors import last_line
from search.executors.base import WorkerLostError
from search.executors.house import House
from search.executors.placement import Resources
from search.executors.rooms import Call, Kind, Member

NAMESPACE = "vortex-search"
ROOT = Path(__file__).resolve().parents[2]
# A house that ends itself keeps its name for a moment: how often one is asked to be let in, and seconds in between.
_JOINS, _BETWEEN = 5, 1.0
# Seconds after which a house that lives but is not reached, on a busy host or network, is asked again.
_UNREACHED = (0.5, 1.0, 2.0, 4.0, 8.0)
PACKAGES = ("vortex_core", "evaluators", "agents", "search", "configs")


def resources_of_cluster() -> Resources:
    """What the nodes that are there now have together."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    total: dict[str, float] = {}
    for node in alive:
        for name, amount in node["Resources"].items():
            total[name] = total.get(name, 0.0) + amount
    with_gpus = [node for node in alive if node["Resources"].get("GPU")]
    return Resources(
        gpus=int(total.get("GPU", 0)),
        cores=int(total.get("CPU", 1)),
        nodes=len(with_gpus or alive) or 1,
        whose="the cluster",
    )


class SharedHouse:
    """The house of the cluster that this process has joined, with the methods of `House`.

    Raises:
        VortexError: of the house's own errors nothing passes but answers; a house that died is a `WorkerLostError`.
    """

    def __init__(self) -> None:
        self._handle: Any = None

    def _find(self) -> Any:
        if self._handle is None:
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
            self._handle = (
                ray.remote(_House)
                .options(
                    name=f"house-{code_digest()}",
                    namespace=NAMESPACE,
                    lifetime="detached",
                    get_if_exists=True,
                    num_cpus=0,
                    max_restarts=0,
                    max_concurrency=10_000,
                    scheduling_strategy=here,
                )
                .remote()
            )
        return self._handle

    async def join(self, member: Member) -> dict[str, Any]:
        """See `House`. Houses of other versions are asked to end what they only keep."""
        mine = f"house-{code_digest()}"
        for other in await asyncio.to_thread(ray.util.list_named_actors, all_namespaces=True):
            if (
                other["namespace"] == NAMESPACE
                and other["name"].startswith("house-")
                and other["name"] != mine
            ):
                with contextlib.suppress(ValueError):  # it has just ended itself
                    ray.get_actor(other["name"], NAMESPACE).make_room.remote()
        for left in reversed(range(_JOINS)):
            try:
                return await self._ask("join", member)
            except (
                WorkerLostError
            ):  # it was deserted and ended itself after it was found: the next one is new
                if not left:
                    raise
                await asyncio.sleep(_BETWEEN)
        raise AssertionError("unreachable")

    async def run(self, campaign: str, kind: Kind, call: Call) -> dict[str, Any]:
        """See `House`."""
        return await self._ask("run", campaign, kind, call)

    async def reference(
        self, campaign: str, seed: int, known: dict[str, Any] | None, deadline: float
    ) -> dict[str, Any]:
        """See `House`."""
        return await self._ask("reference", campaign, seed, known, deadline)

    async def look(self, campaign: str, patience: float) -> dict[str, Any]:
        """See `House`."""
        return await self._ask("look", campaign, patience)

    async def leave(self, campaign: str) -> None:
        """See `House`."""
        with contextlib.suppress(
            WorkerLostError, TimeoutError
        ):  # it is gone, or the cluster is: nothing is held
            await asyncio.wait_for(self._ask("leave", campaign), 30)

    async def _ask(self, method: str, *arguments: Any) -> Any:
        for wait in (*_UNREACHED, None):
            reference = getattr(self._find(), method).remote(*arguments)
            try:
                return await reference
            except asyncio.CancelledError:
                ray.cancel(reference)
                raise
            except ray.exceptions.RayTaskError:
                raise  # a defect of ours: with its traceback
            except ray.exceptions.RayError as error:
                # All that a campaign has under way fails in the same moment: without a pause it would use up every
                # retry of every candidate. What was asked may have run; a stage that runs twice says the same.
                if isinstance(error, ray.exceptions.ActorUnavailableError) and wait is not None:
                    await asyncio.sleep(wait)
                    continue
                self._handle = None
                raise WorkerLostError(engine_lost(f"the cluster's house: {last_line(str(error))}")) from error
        raise AssertionError("unreachable")


class _House:
    """`House` in a process of its own."""

    def __init__(self) -> None:
        me = ray.get_runtime_context().current_actor
        self.house = House(resources_of_cluster, elastic=True, deserted=lambda: ray.kill(me))

    async def join(self, member: Member) -> dict[str, Any]:
        return await self.house.join(member)

    async def run(self, campaign: str, kind: Kind, call: Call) -> dict[str, Any]:
        return await self.house.run(campaign, kind, call)

    async def reference(
        self, campaign: str, seed: int, known: dict[str, Any] | None, deadline: float
    ) -> dict[str, Any]:
        return await self.house.reference(campaign, seed, known, deadline)

    async def look(self, campaign: str, patience: float) -> dict[str, Any]:
        return await self.house.look(campaign, patience)

    async def leave(self, campaign: str) -> None:
        await self.house.leave(campaign)

    async def make_room(self) -> None:
        await self.house.make_room()


@cache
def code_digest() -> str:
    """16 hex digits of the project's own sources."""
    found = hashlib.sha256()
    for package in PACKAGES:
        for folder, folders, files in os.walk(ROOT / package):
            folders.sort()
            for name in sorted(files):
                if name.endswith((".py", ".j2", ".yaml")):
                    found.update(name.encode())
                    found.update((Path(folder) / name).read_bytes())
    return found.hexdigest()[:16]

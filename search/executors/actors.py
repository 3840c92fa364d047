"""Actors of Ray as workers: one process, or the ranks of one tensor-parallel engine in a placement group."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from search.errors import crashed, engine_lost
from search.executors.base import WorkerLostError
from search.executors.workers import CpuWorker, EngineSetup, EngineWorker, ServingWorker
from vortex_core.errors import VortexError


class Actors:
    """The processes of one worker. The first one speaks for all: ranks do the same work on the same input.

    Args:
        handles: Ray's actor handles, by rank.
        wants: the resources asked for, in words.
        group: placement group that holds them, if one does.
    """

    def __init__(self, handles: list[Any], wants: str, group: PlacementGroup | None = None) -> None:
        self.handles = handles
        self.wants = wants
        self.group = group
        self.label = ""
        self.log = ""  # of the first one, `host:path`
        self.places: list[tuple[str, int]] = []  # node, process group

    async def locate(self, deadline: float | None) -> None:
        """Wait until every process runs, and learn how to kill it. Without a deadline, for as long as that takes.

        Raises:
            TimeoutError: not within `deadline` seconds: no resources.
            WorkerLostError: it died.
        """
        found = await self._all([handle.locate.remote() for handle in self.handles], deadline)
        self.places = [(answer["node"], answer["group"]) for answer in found]
        self.label = found[0]["label"]
        self.log = found[0].get("log", "")
        self._address = (found[0].get("ip", ""), found[0].get("port", 0))

    async def call(self, work: Callable[[Any], Any], deadline: float) -> Any:
        """The first rank's answer (see `search.executors.workers`), once every rank has answered.

        Raises:
            TimeoutError: it took longer.
            WorkerLostError: a process died.
            VortexError: the error of an answer.
        """
        return (await self._all([work(handle) for handle in self.handles], deadline))[0]

    async def start(self, deadline: float) -> Any:
        """Have every rank load its part; errors as `call`."""
        ip, port = self._address
        ranks = [handle.start.remote(rank, ip, port) for rank, handle in enumerate(self.handles)]
        return (await self._all(ranks, deadline))[0]

    async def _all(self, references: list[Any], deadline: float | None) -> list[Any]:
        waiting = asyncio.gather(*(asyncio.wrap_future(reference.future()) for reference in references))
        try:
            answers = await asyncio.wait_for(waiting, deadline)
        except ray.exceptions.RayTaskError as error:  # raised around what `workers` catches
            found = crashed(error.cause or error)
            found.log = self.log
            raise WorkerLostError(found, died=False) from error
        except ray.exceptions.OutOfMemoryError as error:
            why = "its machine ran out of memory, and Ray killed it"
            raise WorkerLostError(engine_lost(why, self.log)) from error
        except ray.exceptions.RayError as error:
            raise WorkerLostError(engine_lost(last_line(str(error)), self.log)) from error
        for answer in answers:
            if "error" in answer:
                raise VortexError.from_json(answer["error"])
            if "crash" in answer:
                raise WorkerLostError(VortexError.from_json(answer["crash"]), died=False)
        return [answer["value"] for answer in answers]


def on_cpu(worker: type[CpuWorker]) -> Actors:
    """A CPU worker, on any node."""
    # max_restarts=0: a replacement is our decision, recorded as an event.
    handle = _located(worker).options(num_cpus=1, max_restarts=0, max_task_retries=0).remote()
    return Actors([handle], "1 CPU")


def for_serving(worker: type[ServingWorker], setup: EngineSetup) -> Actors:
    """A worker that holds as many GPUs as an engine did."""
    gpus = setup.ranks if setup.device == "cuda" else 0
    options = {"num_cpus": 1, "num_gpus": gpus, "max_restarts": 0, "max_task_retries": 0}
    return Actors([_located(worker).options(**options).remote()], f"1 CPU and {gpus} GPUs")


def on_engine(engine: type[EngineWorker], setup: EngineSetup) -> Actors:
    """An engine's processes. The ranks of one engine share a host: they exchange sums in every layer."""
    gpus = 1 if setup.device == "cuda" else 0
    options = {"num_cpus": 1, "num_gpus": gpus, "max_restarts": 0, "max_task_retries": 0}
    wants = "1 CPU" + " and 1 GPU" * gpus
    if setup.ranks == 1:
        return Actors([_located(engine).options(**options).remote(setup)], wants)
    bundle = {"CPU": 1, "GPU": 1} if gpus else {"CPU": 1}
    group = placement_group([bundle] * setup.ranks, strategy="STRICT_PACK")
    handles = [
        _located(engine)
        .options(
            **options,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
        )
        .remote(setup)
        for rank in range(setup.ranks)
    ]
    return Actors(handles, f"{setup.ranks} x ({wants}) on one machine", group)


def kill_now(actors: Actors) -> None:
    """End the processes and everything they started, wherever they run."""
    with contextlib.suppress(ray.exceptions.RayError):
        here = ray.get_runtime_context().get_node_id()
        for node, group in actors.places:
            if node == here:
                _kill_group(group)
            else:
                there = NodeAffinitySchedulingStrategy(node, soft=False)
                _kill_remote_group.options(scheduling_strategy=there).remote(group)
        for handle in actors.handles:
            ray.kill(handle)
        if actors.group is not None:
            remove_placement_group(actors.group)
    actors.places = []


def _located(worker: type[Any]) -> Any:
    """The class as an actor whose `locate` also names its node."""

    class Located(worker):  # type: ignore[misc]  # a class made of an argument
        def locate(self) -> dict[str, Any]:
            """See the base; with node id and address."""
            answer: dict[str, Any] = super().locate()
            if "value" in answer:
                node = ray.get_runtime_context().get_node_id()
                answer["value"] |= {"node": node, "ip": ray.util.get_node_ip_address()}
            return answer

    Located.__name__ = Located.__qualname__ = worker.__name__
    return ray.remote(Located)


@ray.remote(num_cpus=0, max_retries=0)
def _kill_remote_group(group: int) -> None:
    _kill_group(group)


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def last_line(text: str) -> str:
    """The last line of a traceback, bounded."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"

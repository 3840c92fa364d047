"""Where things run, decided from wishes and what there is."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from search.config import Cluster, Screen
from search.executors.placement import Device, Placement, Resources, place
from search.executors.ray_cluster import EngineSetup, RayExecutor
from vortex_core.errors import VortexError

LAPTOP = Resources(gpus=0, cores=8)
HOST = Resources(gpus=8, cores=128)


@pytest.mark.parametrize(
    ("found", "wishes", "placed"),
    [
        (LAPTOP, {}, Placement("cpu", 1, 1, 8, 1)),
        (LAPTOP, {"engines": 4}, Placement("cpu", 4, 1, 2, 1)),
        (LAPTOP, {"engines": 16}, Placement("cpu", 16, 1, 1, 1)),
        (LAPTOP, {"device": "cpu", "threads": 3}, Placement("cpu", 1, 1, 3, 1)),
        (LAPTOP, {"tensor_parallel": 2}, Placement("cpu", 1, 2, 4, 1)),
        (HOST, {}, Placement("cuda", 8, 1, 16, 8)),
        (HOST, {"gpus": 2}, Placement("cuda", 2, 1, 64, 8)),
        (HOST, {"tensor_parallel": 4}, Placement("cuda", 2, 4, 16, 8)),
        (HOST, {"tensor_parallel": 3}, Placement("cuda", 2, 3, 21, 8)),
        (HOST, {"engines": 3}, Placement("cuda", 3, 1, 42, 8)),
        (HOST, {"device": "cpu"}, Placement("cpu", 1, 1, 128, 1)),
        (HOST, {"device": "cuda", "cpu_tasks": 2}, Placement("cuda", 8, 1, 16, 2)),
        (Resources(16, 64, nodes=2), {}, Placement("cuda", 16, 1, 4, 8)),
    ],
)
def test_placement(found: Resources, wishes: dict[str, Any], placed: Placement):
    assert place(Cluster(**wishes), found) == placed
    assert placed.gpus <= found.gpus


@pytest.mark.parametrize(
    ("found", "wishes", "code", "words"),
    [
        (LAPTOP, {"device": "cuda"}, "VS040", "this machine has none"),
        (LAPTOP, {"gpus": 2}, "VS040", "this machine has none"),
        (HOST, {"gpus": 9}, "VS041", "9 GPUs are asked for, this machine has 8"),
        (HOST, {"tensor_parallel": 16}, "VS041", "need 16, 8 are there"),
        (HOST, {"engines": 3, "tensor_parallel": 4}, "VS041", "need 12, 8 are there"),
        (HOST, {"gpus": 2, "engines": 3}, "VS041", "need 3, 2 are there"),
        (HOST, {"device": "cpu", "gpus": 2}, "VS041", "on device cpu"),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(
    found: Resources, wishes: dict[str, Any], code: str, words: str
):
    with pytest.raises(VortexError) as error:
        place(Cluster(**wishes), found)
    assert error.value.code == code
    assert words in error.value.message
    assert error.value.remedy


def test_a_stage_without_an_engine_is_killed_soon_after_the_plans_deadline() -> None:
    """Compilers keep no deadline: one program held the end of a search for two minutes."""
    plan = {"deadlines": {"machine_code": 25, "decode": 60}}
    made = RayExecutor(Cluster(), EngineSetup("m", plan), lambda device: {}, found=Resources(gpus=0, cores=2))
    made._on_engine = {"machine_code": False, "decode": True, "static": False}
    assert made._deadline("machine_code") == 40
    assert made._deadline("decode") == made._deadline("static") == Cluster().deadline
    made.config = Cluster(deadlines={"machine_code": 200})
    assert made._deadline("machine_code") == 200


def test_a_campaign_that_joins_again_asks_for_the_same_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found on the first time was asked for on the second, and the engine loaded anew."""
    joined: list[EngineSetup] = []

    class Seen:
        async def join(self, member: Any) -> dict[str, Any]:
            joined.append(member.setup)
            return {"placement": Placement("cpu", 1, 1, 4, 2), "engines": []}

        async def look(self, campaign: str, wait: float) -> dict[str, Any]:
            await asyncio.sleep(0.01)
            return {"forgotten": len(joined) < 3}

    async def tried() -> EngineSetup:
        made = RayExecutor(Cluster(), EngineSetup("m", {}), lambda device: {}, found=LAPTOP)
        monkeypatch.setattr(made, "_init_ray", Seen)
        await made.start(lambda notice: None)
        while len(joined) < 3:
            await asyncio.sleep(0.01)
        assert made._listening is not None
        made._listening.cancel()
        return made._told

    told = asyncio.run(tried())
    assert joined[0] == joined[1] == joined[2]
    assert told.cpu_workers == 2, "they share the memory of their machine"


def test_what_is_recorded_beside_ends_with_the_first_failure() -> None:
    """A campaign that ends because its engine is lost leaves no worker at a recording that nobody waits for."""
    ended: list[str] = []

    class Losing:
        async def run(self, campaign: str, kind: str, call: Any) -> dict[str, Any]:
            await asyncio.sleep(0.01)
            if kind == "engine":
                return {"error": VortexError("VS016", "gone", remedy="none").to_json()}
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ended.append(call.arguments[0])
                raise
            return {"value": "file"}

    async def tried() -> None:
        screen = Screen.model_validate({"models": [{"model": "second"}, {"model": "third"}]})
        made = RayExecutor(Cluster(), EngineSetup("m", {}), lambda device: {}, found=LAPTOP, screen=screen)
        made._house = Losing()  # type: ignore[assignment]
        with pytest.raises(VortexError, match="gone"):
            await made.record(0)
        assert ended == ["second", "third"]

    asyncio.run(tried())


@pytest.mark.parametrize(
    ("device", "engines", "beside"), [("cpu", 1, 2), ("cpu", 2, 1), ("cpu", 4, 1), ("cuda", 1, 0)]
)
def test_engines_on_a_cpu_leave_screeners_their_cores_between_them(device: Device, engines: int, beside: int):
    assert Placement(device, engines, 1, 4, 2).beside(2) == beside

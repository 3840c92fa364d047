"""A cluster with GPUs that are not there: Ray is told of them, and engines are fakes."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from evaluators.results import StageResult
from search.config import Cluster
from search.executors import workers
from search.executors.base import WorkerLostError
from search.executors.placement import Resources
from search.executors.ray_cluster import RayExecutor
from search.executors.workers import EngineSetup, EngineWorker
from vortex_core import library
from vortex_core.errors import VortexError
from vortex_core.ir.flow import Flow

STAGES: dict[Any, Any] = {
    "search": [("where", True), ("die", True)],
    "fresh": [],
    "holdout": [],
    "serving": [("serving", False)],
}


class FakeEngine(EngineWorker):
    """An engine without a model, which tells where it is. `model` is a folder: the file `full` there refuses starts."""

    def start(self, rank: int, address: str, port: int) -> dict[str, Any]:
        self.ranks = {"rank": rank, "address": address, "port": port}
        if (Path(self._setup.model) / "full").exists():
            return {"error": VortexError("VS042", "another process fills this GPU", "").to_json()}
        return {"value": {"kind": self._setup.device, "name": "fake", "ranks": self._setup.ranks}}

    def run(self, stage: str, candidate: dict[str, Any], seed: int) -> dict[str, Any]:
        if stage == "die":
            os._exit(1)
        info = {
            "gpu": os.environ["CUDA_VISIBLE_DEVICES"],
            "threads": self._setup.threads,
            "ranks": self.ranks,
        }
        return {"value": StageResult(stage, True, info=info).to_json()}

    def reference(self, seed: int, known: dict[str, Any] | None) -> dict[str, Any]:
        answer = known or {"by": os.getpid()}
        (Path(self._setup.model) / f"reference-{os.getpid()}").write_text(str(answer["by"]))
        return {"value": answer}


class FakeServing(workers.ServingWorker):
    """Says what it was given, and what it may use."""

    def run(self, stage: str, flow: dict[str, Any], setup: EngineSetup, seed: int) -> dict[str, Any]:
        limits = resource.getrlimit(resource.RLIMIT_DATA)
        info = {
            "gpu": os.environ["CUDA_VISIBLE_DEVICES"],
            "section": dict(setup.serving or {}),
            "bounded": limits[0] != resource.RLIM_INFINITY,
        }
        return {"value": StageResult(stage, True, info=info).to_json()}


def candidate(name: str, **knobs: Any) -> Flow:
    return library.load({"a": "quest", "b": "block_topk", "c": "streaming"}[name]).flow.with_knobs(**knobs)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.fixture
def start(tmp_path: Path, loop: asyncio.AbstractEventLoop) -> Iterator[Any]:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    made: list[RayExecutor] = []
    lost: list[VortexError] = []

    def begin(**cluster: Any) -> tuple[RayExecutor, list[VortexError]]:
        config = Cluster(start_deadline=120, cpu_tasks=1, **cluster)
        executor = RayExecutor(
            config,
            EngineSetup(str(tmp_path), {}, serving={"batch": 3}),
            lambda device: STAGES,
            FakeEngine,
            Resources(2, 8),
        )
        made.append(executor)
        loop.run_until_complete(
            executor.start(lambda said: lost.append(said) if isinstance(said, VortexError) else None)
        )
        return executor, lost

    yield begin
    for executor in made:
        loop.run_until_complete(executor.close())


def test_an_engine_on_each_gpu_which_sees_no_other(
    start: Any, loop: asyncio.AbstractEventLoop, tmp_path: Path
):
    executor, lost = start()
    assert (executor.placement.device, executor.engines) == ("cuda", 2)

    async def both() -> list[Any]:
        return await asyncio.gather(*(executor.run_stage("where", candidate(n), 0) for n in "ab"))

    ran = loop.run_until_complete(both())
    assert {r.result.info["gpu"] for r in ran} == {"0", "1"}
    assert {r.result.info["threads"] for r in ran} == {4}, "engines share the cores"
    assert {r.worker.split()[-1] for r in ran} == {"gpu0", "gpu1"}

    # A candidate goes back to the engine that holds it; its program under other knobs to where it is compiled.
    first = {name: r.worker for name, r in zip("ab", ran, strict=True)}
    for name in "baab":
        again = loop.run_until_complete(executor.run_stage("where", candidate(name), 0))
        assert again.worker == first[name]
    tuned = loop.run_until_complete(executor.run_stage("where", candidate("b", budget="128"), 0))
    assert tuned.worker == first["b"]

    # Dense answers are one engine's, and all pair candidates with them.
    answer = loop.run_until_complete(executor.reference("search", 5, None))
    # (The second engine takes them over behind our back, and has done so before it is given a stage.)
    loop.run_until_complete(both())
    said = {path.read_text() for path in tmp_path.glob("reference-*")}
    assert said == {str(answer["by"])}
    assert not lost


def test_engines_that_cannot_start_say_why(start: Any, tmp_path: Path):
    (tmp_path / "full").touch()
    with pytest.raises(VortexError) as error:
        start()
    assert error.value.code == "VS042"


def test_a_campaign_goes_on_without_an_engine_that_cannot_be_replaced(
    start: Any, loop: asyncio.AbstractEventLoop, tmp_path: Path
):
    executor, lost = start()
    (tmp_path / "full").touch()
    with pytest.raises(WorkerLostError):
        loop.run_until_complete(executor.run_stage("die", candidate("a"), 0))
    for name in "abc":
        assert loop.run_until_complete(executor.run_stage("where", candidate(name), 0)).result.passed

    async def settle() -> None:
        while not lost:
            await asyncio.sleep(0.05)

    loop.run_until_complete(asyncio.wait_for(settle(), 60))
    assert [error.code for error in lost] == ["VS042"]
    loop.run_until_complete(asyncio.sleep(0.5))
    assert executor.engines == 1
    # The last one gone, the reason is the answer, at once.
    with pytest.raises(WorkerLostError):
        loop.run_until_complete(executor.run_stage("die", candidate("a"), 0))
    with pytest.raises(VortexError) as error:
        loop.run_until_complete(asyncio.wait_for(executor.run_stage("where", candidate("a"), 0), 60))
    assert error.value.code == "VS042"


def test_the_ranks_of_one_engine_have_a_gpu_each_and_know_each_other(
    start: Any, loop: asyncio.AbstractEventLoop
):
    executor, _ = start(tensor_parallel=2)
    assert (executor.engines, executor.placement.ranks) == (1, 2)
    ran = loop.run_until_complete(executor.run_stage("where", candidate("a"), 0))
    ranks = ran.result.info["ranks"]
    assert ranks["rank"] == 0 and ranks["address"] and ranks["port"] > 0
    with pytest.raises(WorkerLostError):
        loop.run_until_complete(executor.run_stage("die", candidate("a"), 0))
    assert loop.run_until_complete(executor.run_stage("where", candidate("a"), 0)).result.passed


def test_sglang_gets_the_gpus_that_engines_gave_back(
    start: Any, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(workers, "ServingWorker", FakeServing)
    executor, lost = start(gpus=1)
    assert loop.run_until_complete(executor.run_stage("where", candidate("a"), 0)).result.info["gpu"] == "0"

    async def both() -> list[Any]:
        return await asyncio.gather(*(executor.run_stage("serving", candidate(n), 0) for n in "ab"))

    ran = loop.run_until_complete(asyncio.wait_for(both(), 120))
    for found in ran:
        assert found.result.info == {"gpu": "0", "section": {"batch": 3}, "bounded": False}
        assert found.worker.endswith("sglang")
    assert not lost


def test_ray_does_not_write_where_results_go(root: Path):
    script = (
        "import search.executors.ray_cluster, ray._private.worker as w;"
        "w.print_to_stdstream({'lines': ['A worker died'], 'pid': 'raylet', 'is_err': False}, ignore_prefix=False)"
    )
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == ""

"""The Ray executor: results, deadlines that kill, dead workers replaced, errors carried over."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from evaluators.results import StageResult
from search.config import Cluster
from search.executors.base import WorkerLostError
from search.executors.ray_cluster import RayExecutor, _Engine
from search.executors.workers import EngineWorker, become_group_leader
from vortex_core import library
from vortex_core.errors import VortexError

ON_ENGINE = ("fine", "hang", "die", "refuse", "crash", "environment")
STAGES: dict[Any, Any] = {
    "search": [("static", False), *((name, True) for name in ON_ENGINE)],
    "fresh": [],
    "holdout": [],
}


class FakeEngine(EngineWorker):
    """An engine without a model. `model` is a folder to leave traces in."""

    def start(self) -> dict[str, Any]:
        return {"value": become_group_leader()}

    def run(self, stage: str, candidate: dict[str, Any], seed: int) -> dict[str, Any]:
        info: dict[str, Any] = {"pid": os.getpid(), "seed": seed}
        if stage == "hang":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            (Path(self._model) / "grandchild").write_text(str(child.pid))
            time.sleep(600)
        if stage == "die":
            os._exit(1)
        if stage == "refuse":
            return {"error": VortexError("VX001", "refused", "because").to_json()}
        if stage == "crash":
            raise ZeroDivisionError("by zero")
        if stage == "environment":
            info |= {"secrets": [k for k in os.environ if "API_KEY" in k], "nice": os.nice(0)}
        return {"value": StageResult(stage, True, info=info).to_json()}

    def reference(self, seed: int, known: dict[str, Any] | None) -> dict[str, Any]:
        prepared = Path(self._model) / f"prepared-{seed}"
        prepared.write_text(f"{os.getpid()}")
        return {"value": known or {"dense": seed}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.fixture(scope="module")
def executor(folder: Path, loop: asyncio.AbstractEventLoop) -> Iterator[RayExecutor]:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    os.environ["TEST_API_KEY"] = "secret"
    config = Cluster(deadlines={"hang": 1.0}, start_deadline=120)
    made = RayExecutor(config, str(folder), {}, STAGES, FakeEngine)
    loop.run_until_complete(made.start())
    yield made
    loop.run_until_complete(made.close())
    del os.environ["TEST_API_KEY"]


CANDIDATE = library.load("quest").flow


def test_a_stage_runs_on_the_engine(executor: RayExecutor, loop: asyncio.AbstractEventLoop):
    result = loop.run_until_complete(executor.run_stage("fine", CANDIDATE, 7))
    assert result.passed
    assert result.info["seed"] == 7


def test_workers_get_no_secrets_and_no_lower_priority(executor: RayExecutor, loop: asyncio.AbstractEventLoop):
    result = loop.run_until_complete(executor.run_stage("environment", CANDIDATE, 0))
    assert result.info["secrets"] == []
    assert result.info["nice"] == os.nice(0)
    assert os.environ["TEST_API_KEY"] == "secret"


def test_tracing_runs_in_a_task_and_carries_errors(executor: RayExecutor, loop: asyncio.AbstractEventLoop):
    admission = loop.run_until_complete(executor.trace(library.source("quest")))
    assert admission.key == library.load("quest").key
    with pytest.raises(VortexError) as error:
        loop.run_until_complete(executor.trace("import os\n"))
    assert error.value.code == "VF002"
    assert error.value.remedy


def test_an_error_of_the_worker_arrives_typed(executor: RayExecutor, loop: asyncio.AbstractEventLoop):
    with pytest.raises(VortexError) as error:
        loop.run_until_complete(executor.run_stage("refuse", CANDIDATE, 0))
    assert (error.value.code, error.value.remedy) == ("VX001", "because")


@pytest.mark.parametrize(("stage", "code"), [("die", "VS008"), ("crash", "VS019")])
def test_a_lost_worker_is_replaced_and_prefilled_again(
    stage: str, code: str, executor: RayExecutor, loop: asyncio.AbstractEventLoop, folder: Path
):
    assert loop.run_until_complete(executor.reference("search", 3, None)) == {"dense": 3}
    before = (folder / "prepared-3").read_text()
    with pytest.raises(WorkerLostError) as lost:
        loop.run_until_complete(executor.run_stage(stage, CANDIDATE, 3))
    assert not lost.value.timed_out
    assert (lost.value.error.code, lost.value.died) == (code, stage == "die")
    assert lost.value.error.fault == "infrastructure"
    after = (folder / "prepared-3").read_text()
    assert after != before, "the new engine was not prepared"
    result = loop.run_until_complete(executor.run_stage("fine", CANDIDATE, 3))
    assert str(result.info["pid"]) == after


def test_known_dense_results_are_taken_over(executor: RayExecutor, loop: asyncio.AbstractEventLoop):
    known = {"dense": "of an earlier session"}
    assert loop.run_until_complete(executor.reference("fresh", 4, known)) == known


def test_a_deadline_kills_the_worker_and_all_it_started(
    executor: RayExecutor, loop: asyncio.AbstractEventLoop, folder: Path
):
    with pytest.raises(WorkerLostError) as lost:
        loop.run_until_complete(executor.run_stage("hang", CANDIDATE, 0))
    assert lost.value.timed_out
    grandchild = int((folder / "grandchild").read_text())
    deadline = time.monotonic() + 20
    while psutil.pid_exists(grandchild) and time.monotonic() < deadline:
        if psutil.Process(grandchild).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.1)
    else:
        assert not psutil.pid_exists(grandchild), "a grandchild survived"
    assert loop.run_until_complete(executor.run_stage("fine", CANDIDATE, 0)).passed


def test_an_engine_that_cannot_start_says_why(
    executor: RayExecutor, loop: asyncio.AbstractEventLoop, folder: Path
):
    class Unloadable(FakeEngine):
        def start(self) -> dict[str, Any]:
            return {"error": VortexError("VM004", "no weights", "fetch them").to_json()}

    other = RayExecutor(Cluster(start_deadline=60), str(folder), {}, STAGES, Unloadable)
    with pytest.raises(VortexError) as error:
        loop.run_until_complete(other._new_engine())
    assert error.value.code == "VM004"


class Unreplaceable(RayExecutor):
    """Engines without processes: the first ones start, later ones only while `healthy`."""

    def __init__(self, engines: int) -> None:
        super().__init__(Cluster(engines=engines), "model", {}, STAGES, FakeEngine)
        self.healthy = True
        self.killed: list[_Engine] = []

    async def _new_engine(self) -> _Engine:
        await asyncio.sleep(0.01)
        if not self.healthy:
            raise VortexError("VM008", "no memory for the weights", "use another machine")
        engine = _Engine(object(), 0, "")
        self._engines.append(engine)
        return engine

    def _kill(self, engine: _Engine) -> None:
        self._engines.remove(engine)
        self.killed.append(engine)

    async def fail(self) -> None:
        async def lost(actor: object) -> None:
            raise WorkerLostError(VortexError("VS008", "killed"))

        async def within(deadline: float, answer: Any) -> Any:
            return await answer

        self._within = within  # type: ignore[method-assign]
        await self._on_an_engine("die", 1.0, "key", lost)


def test_an_engine_that_cannot_be_replaced_leaves_the_others():
    async def scenario() -> None:
        executor = Unreplaceable(3)
        for _ in range(3):
            await executor._give_back(await executor._new_engine())
        executor.healthy = False
        with pytest.raises(WorkerLostError) as lost:
            await executor.fail()
        assert "could not be replaced (VM008: no memory for the weights), 2 others go on" in str(
            lost.value.error
        )
        assert len(executor._free) == 2
        # The last two at once: one of them notices that nothing is left, and nobody waits for ever.
        ends = await asyncio.gather(executor.fail(), executor.fail(), return_exceptions=True)
        assert sorted(type(end).__name__ for end in ends) == ["VortexError", "WorkerLostError"]
        assert len(executor.killed) == 3

    asyncio.run(asyncio.wait_for(scenario(), 10))

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
from search.executors import shared
from search.executors.base import WorkerLostError
from search.executors.placement import Resources
from search.executors.ray_cluster import RayExecutor
from search.executors.shared import SharedHouse
from search.executors.workers import EngineSetup, EngineWorker
from vortex_core import library
from vortex_core.errors import VortexError

ON_ENGINE = ("fine", "hang", "die", "refuse", "crash", "environment", "slow")
STAGES: dict[Any, Any] = {
    "search": [("static", False), *((name, True) for name in ON_ENGINE)],
    "fresh": [],
    "holdout": [],
}


SECRETS = {
    "TEST_API_KEY": "a-secret-of-the-test",
    "TEST_COPY": "x=a-secret-of-the-test",
    "TEST_DATABASE": "postgres://u:pw@h/d",
}


class FakeEngine(EngineWorker):
    """An engine without a model. `model` is a folder to leave traces in."""

    def start(self, rank: int, address: str, port: int) -> dict[str, Any]:
        return {"value": {"kind": self._setup.device, "name": "fake", "ranks": self._setup.ranks}}

    def run(self, stage: str, candidate: dict[str, Any], seed: int) -> dict[str, Any]:
        info: dict[str, Any] = {"pid": os.getpid(), "seed": seed}
        if stage == "hang":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            (Path(self._setup.model) / "grandchild").write_text(str(child.pid))
            time.sleep(600)
        if stage == "slow":
            time.sleep(0.5)
        if stage == "die":
            os._exit(1)
        if stage == "refuse":
            return {"error": VortexError("VX001", "refused", "because").to_json()}
        if stage == "crash":
            raise ZeroDivisionError("by zero")
        if stage == "environment":
            names = [k for k in os.environ if "API_KEY" in k or k.startswith("TEST_")]
            info |= {"secrets": names, "nice": os.nice(0)}
        return {"value": StageResult(stage, True, info=info).to_json()}

    def reference(self, seed: int, known: dict[str, Any] | None) -> dict[str, Any]:
        prepared = Path(self._setup.model) / f"prepared-{seed}"
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
    os.environ |= SECRETS
    config = Cluster(deadlines={"hang": 1.0}, start_deadline=120)
    made = RayExecutor(
        config, EngineSetup(str(folder), {}), lambda device: STAGES, FakeEngine, Resources(gpus=0, cores=2)
    )
    facts = loop.run_until_complete(made.start(lambda error: None))
    (fact,) = facts
    assert fact.pop("worker").split()[1] == "cpu"
    assert fact == {"kind": "cpu", "name": "fake", "ranks": 1}
    yield made
    loop.run_until_complete(made.close())
    for name in SECRETS:
        del os.environ[name]


CANDIDATE = library.load("quest").flow


def test_a_stage_runs_on_the_engine(executor: RayExecutor, loop: asyncio.AbstractEventLoop):
    ran = loop.run_until_complete(executor.run_stage("fine", CANDIDATE, 7))
    assert ran.result.passed
    assert ran.result.info["seed"] == 7
    assert " cpu " in ran.worker


def test_workers_get_no_secrets_and_no_lower_priority(executor: RayExecutor, loop: asyncio.AbstractEventLoop):
    result = loop.run_until_complete(executor.run_stage("environment", CANDIDATE, 0)).result
    assert result.info["secrets"] == []
    assert result.info["nice"] == os.nice(0)
    assert os.environ["TEST_API_KEY"] == SECRETS["TEST_API_KEY"]


def test_a_cluster_of_our_own_is_private(executor: RayExecutor) -> None:
    """It listens on the loopback alone, asks for a token, and keeps its files where nobody else looks."""
    from search.errors import engine_lost
    from search.executors.local_cluster import ray_folder

    here = psutil.Process()
    heard = [c.laddr.ip for p in (here, *here.children(recursive=True)) for c in p.net_connections("inet")
             if c.status == psutil.CONN_LISTEN]  # fmt: skip
    assert heard
    assert not [ip for ip in heard if ip.removeprefix("::ffff:") not in ("127.0.0.1", "::1")]
    private = ray_folder().parent
    assert private.stat().st_mode & 0o77 == 0
    assert (private / "token").stat().st_mode & 0o77 == 0
    assert Path(engine_lost("x").log).is_dir()
    assert not any("AUTH" in name for name in os.environ)
    address = ray.get_runtime_context().gcs_address
    code = f"import ray; ray.init(address={address!r}, logging_level=50); print('joined')"
    outside = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0" * 64,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=outside, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode != 0
    assert "joined" not in done.stdout
    assert "oken" in done.stderr


def test_a_long_tmpdir_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's sockets lie below its folder, and the system takes no path longer than 107."""
    import tempfile

    from search.executors.local_cluster import ray_folder

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 90)))
    assert len(str(ray_folder())) < 40
    assert str(ray_folder()).startswith("/tmp/")


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
    result = loop.run_until_complete(executor.run_stage("fine", CANDIDATE, 3)).result
    after = (folder / "prepared-3").read_text()
    assert after != before, "the new engine was not prepared"
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
    assert loop.run_until_complete(executor.run_stage("fine", CANDIDATE, 0)).result.passed


def test_waiting_for_a_worker_does_not_count_against_a_deadline(
    executor: RayExecutor, loop: asyncio.AbstractEventLoop
):
    async def many() -> list[Any]:
        return await asyncio.gather(*(executor.run_stage("slow", CANDIDATE, 0) for _ in range(4)))

    executor.config = executor.config.model_copy(update={"deadlines": {"hang": 1.0, "slow": 1.2}})
    assert all(ran.result.passed for ran in loop.run_until_complete(many())), "the last one waited 1.5 s"


@pytest.mark.parametrize(("deaths", "comes_in"), [(2, True), (50, False)])
def test_a_house_that_ended_itself_before_it_was_joined_is_made_anew(
    monkeypatch: pytest.MonkeyPatch, deaths: int, comes_in: bool
):
    found: list[Any] = []

    class House:
        """An actor's handle: the first ones are of actors that are dead."""

        def __init__(self) -> None:
            found.append(self)
            self.join = self
            self.dead = len(found) <= deaths

        async def remote(self, member: Any) -> Any:
            if self.dead:
                raise ray.exceptions.ActorDiedError
            return {"member": member}

    def find(self: SharedHouse) -> Any:
        self._handle = self._handle or House()
        return self._handle

    monkeypatch.setattr(SharedHouse, "_find", find)
    monkeypatch.setattr(shared, "_BETWEEN", 0.0)
    monkeypatch.setattr(ray.util, "list_named_actors", lambda all_namespaces: [])
    member: Any = "a campaign"
    if comes_in:
        assert asyncio.run(SharedHouse().join(member)) == {"member": member}
    else:
        with pytest.raises(WorkerLostError, match="house"):
            asyncio.run(SharedHouse().join(member))
    assert len(found) == (deaths + 1 if comes_in else 5)


@pytest.mark.parametrize("times", [2, 50])
def test_a_house_that_is_not_reached_for_a_moment_costs_no_candidate_a_retry(
    monkeypatch: pytest.MonkeyPatch, times: int
):
    asked: list[str] = []

    class House:
        """An actor's handle on a host that is too busy to answer at first."""

        def __init__(self) -> None:
            self.run = self

        async def remote(self, campaign: str, kind: str, call: Any) -> Any:
            asked.append(campaign)
            if len(asked) <= times:
                raise ray.exceptions.ActorUnavailableError("busy", None)
            return {"value": 1}

    monkeypatch.setattr(SharedHouse, "_find", lambda self: House())
    monkeypatch.setattr(shared, "_UNREACHED", (0.0,) * 5)
    call: Any = "a stage"
    if times < 5:
        assert asyncio.run(SharedHouse().run("c", "cpu", call)) == {"value": 1}
        assert len(asked) == times + 1
    else:
        with pytest.raises(WorkerLostError, match="house"):
            asyncio.run(SharedHouse().run("c", "cpu", call))
        assert len(asked) == 6

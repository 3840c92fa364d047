"""Clusters of several nodes on one machine, evaluators that only sleep, and campaigns in processes of their own."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from evaluators.results import StageResult
from search.executors.workers import EngineSetup, EngineWorker, _answer
from search.simulation import SimulatedExecutor, simulated_stage

ROOT = Path(__file__).resolve().parents[2]
STAGES: dict[Any, Any] = {
    "search": [("static", False), ("accuracy", True), ("modelled", True)],
    "fresh": [("accuracy", True), ("modelled", True)],
    "holdout": [("holdout", True)],
    "serving": [],
}


class SleepingEngine(EngineWorker):
    """Measures what `SimulatedExecutor` does, after a while. `model` is a folder: a file `STAGE-fault` there strikes
    the first engine that finds it, once; a number in a file `pace` is how many seconds a stage takes on average."""

    def start(self, rank: int, address: str, port: int) -> dict[str, Any]:
        """See `EngineWorker`."""
        return {"value": {"kind": self._setup.device, "name": "sleeper", "host": "simulated", "ranks": 1}}

    def run(self, stage: str, flow: dict[str, Any], seed: int) -> dict[str, Any]:
        """See `EngineWorker`."""
        folder = Path(self._setup.model)
        for fault in ("die", "hang", "memory", "raise"):
            try:
                (folder / f"{stage}-{fault}").rename(folder / f"{stage}-{fault}-struck-{os.getpid()}")
            except FileNotFoundError:
                continue
            if fault == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "hang":
                time.sleep(600)
            if fault == "memory":
                raise MemoryError("host memory")
            raise ZeroDivisionError("nobody expects it")
        mean = float((folder / "pace").read_text()) if (folder / "pace").exists() else 0.05
        time.sleep(mean * random.Random(f"{flow['key']}{stage}{seed}").expovariate(1.0))
        about = {"campaign": flow.get("campaign", ""), "stage": stage}
        return _answer(lambda: simulated_stage(stage, flow, seed).to_json(), self._log, self.role, about)

    def reference(self, seed: int, known: dict[str, Any] | None) -> dict[str, Any]:
        """See `EngineWorker`."""
        return {"value": known or {"seed": seed, "needle": [1.0] * 40}}


def add_node(made: Cluster, tries: int = 5, **options: Any) -> Any:
    """One more node. Ray gives one 30 s to start, which is too few on a machine that is busy with other things."""
    options.setdefault("object_store_memory", 100 << 20)
    for left in reversed(range(tries)):
        try:
            return made.add_node(**options)
        except Exception as error:  # Ray has no type of its own for it
            if not left or "timed out during startup" not in str(error):
                raise
    raise AssertionError("unreachable")


@contextmanager
def cluster(nodes: int, cpus: int, **head: Any) -> Iterator[Cluster]:
    """A head without CPUs for anybody, and nodes."""
    made = Cluster()
    try:
        add_node(made, **{"num_cpus": 2, "include_dashboard": False, **head})
        for _ in range(nodes):
            add_node(made, num_cpus=cpus)
        yield made
    finally:
        if ray.is_initialized():
            ray.shutdown()
        made.shutdown()


def driver(root: Path, run: str, address: str, **options: Any) -> subprocess.Popen[bytes]:
    """A campaign in a process of its own: `python -m tests.chaos.driver`."""
    command = [sys.executable, "-m", "tests.chaos.driver", str(root), run, address]
    command += [f"{name}={value}" for name, value in options.items()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    log = (root / f"{run}.log").open("ab")
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=root)


__all__ = [
    "STAGES",
    "EngineSetup",
    "SimulatedExecutor",
    "SleepingEngine",
    "StageResult",
    "cluster",
    "driver",
]

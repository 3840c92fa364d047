"""The cluster files of `examples/clusters`, tried on one machine: the commands they hold start what they say.

What needs machines that are not here stands in for them: `srun` runs its command in place, and the cloud is Ray's own
provider of nodes that are processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.log import events as ev
from search.log.run import open_run
from tests.chaos.clusters import ROOT, driver
from tests.chaos.driver import results

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(600)]
FILES = ROOT / "examples" / "clusters"
RAY = Path(sys.executable).with_name("ray")


def port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


class Started:
    """Processes to be ended with their groups: `ray stop` would end everybody's."""

    def __init__(self) -> None:
        self.all: list[subprocess.Popen[bytes]] = []

    def start(self, command: list[str], log: Path, **variables: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT), **variables}
        made = subprocess.Popen(
            command, stdout=log.open("ab"), stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        self.all.append(made)
        return made

    def end(self) -> None:
        for one in reversed(self.all):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(one.pid, signal.SIGTERM)
                one.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(one.pid, signal.SIGKILL)


@pytest.fixture
def started() -> Iterator[Started]:
    made = Started()
    yield made
    made.end()


def start_command(name: str, which: str) -> list[str]:
    """The `ray start` of a file, as a shell would read it, with this environment's `ray`."""
    commands = yaml.safe_load((FILES / name).read_text())[f"{which}_start_ray_commands"]
    (line,) = [c for c in commands if "ray start" in c]
    words = shlex.split(line.split(";")[-1])
    return [str(RAY), *words[1:], "--block", "--object-store-memory=100000000"]


def start_head(started: Started, command: list[str], log: Path, **variables: str) -> None:
    """Until it stands: Ray gives a node 30 s, which is too few on a machine that is busy with other things."""
    for _ in range(5):
        one = started.start(command, log, **variables)
        while one.poll() is None:
            if "Ray runtime started" in log.read_text():
                return
            time.sleep(0.5)
        assert "timed out during startup" in log.read_text(), log.read_text()[-3000:]
    raise AssertionError("the head did not come up")


def test_the_files_are_what_ray_takes() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    for name in ("on_premise.yaml", "cloud.yaml"):
        validate_config(prepare_config(yaml.safe_load((FILES / name).read_text())))


def test_on_premise(started: Started, tmp_path: Path) -> None:
    """A head without GPUs and a worker, started by the file's commands."""
    at, log = port(), tmp_path / "ray.log"
    host = subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split()
    address = f"{host[0] if host else '127.0.0.1'}:{at}"
    head = [w for w in start_command("on_premise.yaml", "head") if not w.startswith("--autoscaling-config")]
    head = [f"--port={at}" if w.startswith("--port=") else w for w in head if "metrics" not in w]
    start_head(started, [*head, "--num-cpus=1", "--include-dashboard=false"], log)
    worker = [w for w in start_command("on_premise.yaml", "worker") if "metrics" not in w]
    worker = [w.replace("$RAY_HEAD_IP:6379", address) for w in worker]
    started.start([*worker, "--num-cpus=3"], log)
    done = driver(tmp_path, "r", address, candidates=12, engines=2, cpu_tasks=1)
    assert done.wait(300) == 0, (tmp_path / "r.log").read_text()
    assert len(results(tmp_path, "r")) >= 12


def test_an_autoscaler_starts_nodes_for_engines_that_wait(started: Started, tmp_path: Path) -> None:
    """The file's node types with Ray's provider of local processes: a head with nothing to give, and no worker."""
    given = yaml.safe_load((FILES / "cloud.yaml").read_text())
    types = given["available_node_types"]
    worker = types["gpu"] | {"resources": {"CPU": 3}, "node_config": {}, "max_workers": 2}
    head = {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0}
    at = port()
    host = subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split()
    address = f"{host[0] if host else '127.0.0.1'}:{at}"
    unused: dict[str, Any] = {key: {} for key in ("auth", "docker", "file_mounts")}
    unused["cluster_synced_files"] = []
    for whose in ("head_", "worker_"):
        unused |= {f"{whose}setup_commands": [], f"{whose}start_ray_commands": []}
    unused |= {"initialization_commands": [], "setup_commands": []}
    config = unused | {
        "cluster_name": "fake_multinode",
        # Its nodes share this machine's address, and nobody logs in to set them up.
        "provider": {
            "type": "fake_multinode",
            "gcs_address": address,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {given["head_node_type"]: head, "gpu": worker},
        "head_node_type": given["head_node_type"],
        "max_workers": 2,
        "idle_timeout_minutes": given["idle_timeout_minutes"],
        "upscaling_speed": given["upscaling_speed"],
    }
    (tmp_path / "fake.yaml").write_text(json.dumps(config))
    log = tmp_path / "ray.log"
    start_head(
        started,
        [str(RAY), "start", "--head", f"--port={at}", "--num-cpus=1", "--include-dashboard=false", "--block",
         "--object-store-memory=100000000", f"--autoscaling-config={tmp_path / 'fake.yaml'}"],
        log, AUTOSCALER_UPDATE_INTERVAL_S="1", RAY_FAKE_CLUSTER="1",
    )  # fmt: skip
    done = driver(tmp_path, "r", address, candidates=30, engines=4, cpu_tasks=1)
    assert done.wait(400) == 0, (tmp_path / "r.log").read_text() + log.read_text()[-3000:]
    with open_run("r", readonly=True, root=tmp_path) as run:
        came = [r.event for r in run.store.read() if isinstance(r.event, ev.EngineJoined | ev.EnginesStarted)]
    assert came, "no node was started"
    assert len(results(tmp_path, "r")) >= 30


def test_slurm(started: Started, tmp_path: Path) -> None:
    """The script with two nodes that are this machine; what it is given as `vortex-search` is a simulated campaign."""
    shims = tmp_path / "bin"
    shims.mkdir()
    (shims / "scontrol").write_text("#!/bin/sh\necho here\necho there\n")
    (shims / "srun").write_text(
        '#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do [ "$1" = -w ] && shift; shift; done\nexec "$@"\n'
    )
    (shims / "search").write_text(
        f"#!/bin/sh\nexec {sys.executable} -m tests.chaos.driver {tmp_path} r $2 candidates=12 engines=2 cpu_tasks=1\n"
    )
    for shim in shims.iterdir():
        shim.chmod(0o755)
    job = started.start(
        ["bash", str(FILES / "slurm.sh")], tmp_path / "job.log", PATH=f"{shims}:{os.environ['PATH']}",
        SLURM_JOB_NODELIST="here,there", SLURM_CPUS_PER_TASK="3", RAY_PORT=str(port()), RAY=str(RAY),
        VORTEX_SEARCH=str(shims / "search"),
    )  # fmt: skip
    assert job.wait(400) == 0, (tmp_path / "job.log").read_text()
    assert len(results(tmp_path, "r")) >= 12

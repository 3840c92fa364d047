"""The fault matrix, its slow part: real processes on a real cluster, each fault beside an undisturbed run.

`make chaos` runs it and prints the table. The fast part, without processes: `tests/null/search/test_fault_matrix.py`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from search.campaign.live import read_live
from search.log import events as ev
from search.log.run import open_run
from tests.chaos.clusters import add_node, cluster, driver
from tests.chaos.driver import results

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(600)]
CANDIDATES = 24
RAY = str(Path(sys.executable).with_name("ray"))
ROWS: list[tuple[str, str, str, float]] = []


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A head and two nodes of two CPUs."""
    with cluster(2, 2) as made:
        yield made


@pytest.fixture(scope="module")
def undisturbed(nodes: Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """What a run finds that nothing happens to, and its seconds."""
    root = tmp_path_factory.mktemp("undisturbed")
    began = time.monotonic()
    assert driver(root, "r", nodes.address, **options()).wait(300) == 0, (root / "r.log").read_text()
    taken = time.monotonic() - began
    found = results(root, "r")
    ROWS.append(("none", "-", "-", taken))
    return found, taken


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    """Print the matrix at the end; write it where `CHAOS_TABLE` says."""
    yield
    lines = ["| fault | at | effect on results | seconds |", "|---|---|---|---|"]
    lines += [f"| {fault} | {stage} | {effect} | {seconds:.0f} |" for fault, stage, effect, seconds in ROWS]
    print("\n" + "\n".join(lines))
    if os.environ.get("CHAOS_TABLE"):
        Path(os.environ["CHAOS_TABLE"]).write_text("\n".join(lines) + "\n", encoding="utf-8")


def options(**more: Any) -> dict[str, Any]:
    return {"candidates": CANDIDATES, "engines": 2, "cpu_tasks": 1, "keep": 5, **more}


def slowly(folder: Path, **more: Any) -> dict[str, Any]:
    """Options of a campaign whose stages take so long that it is still at work when it is struck."""
    (folder / "pace").write_text("0.5")  # the folder of a run is what its engines load
    return options(**more)


def events(root: Path, run: str = "r") -> list[ev.Event]:
    with open_run(run, readonly=True, root=root) as opened:
        return [record.event for record in opened.store.read()]


def until(true: Callable[[], Any], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.1)


def finished(root: Path, count: int, run: str = "r") -> Callable[[], bool]:
    """Whether so many candidates are finished; asked of the database, since it is asked often."""
    log = root / run / "events.sqlite"

    def reached() -> bool:
        if not log.exists():
            return False
        with contextlib.closing(sqlite3.connect(f"{log.as_uri()}?mode=ro", uri=True)) as db:
            try:
                (found,) = db.execute(
                    "SELECT count(*) FROM events WHERE kind = 'candidate_finished'"
                ).fetchone()
            except sqlite3.OperationalError:  # it is being made
                return False
        return int(found) >= count

    return reached


def ends_alike(
    undisturbed: tuple[dict[str, Any], float], root: Path, fault: str, stage: str, began: float
) -> None:
    assert results(root, "r") == undisturbed[0]
    ROWS.append((fault, stage, "none", time.monotonic() - began))


# ---- workers


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("die", "worker killed"),
        ("hang", "worker hung"),
        ("memory", "out of host memory"),
        ("raise", "exception"),
    ],
)
@pytest.mark.parametrize("stage", ["accuracy", "holdout"])
def test_workers(
    nodes: Cluster,
    undisturbed: tuple[dict[str, Any], float],
    tmp_path: Path,
    fault: str,
    words: str,
    stage: str,
):
    began = time.monotonic()
    (tmp_path / f"{stage}-{fault}").touch()
    more = options(model=json.dumps(str(tmp_path)), deadline=5.0, double_after=0)
    done = driver(tmp_path, "r", nodes.address, **more)
    assert done.wait(300) == 0, (tmp_path / "r.log").read_text()
    assert list(tmp_path.glob(f"{stage}-{fault}-struck-*")), "nothing was struck"
    failed = [e for e in events(tmp_path) if isinstance(e, ev.InfrastructureFailed) and e.stage == stage]
    assert failed and failed[0].error.get("log"), "the log says what happened and where to read more"
    ends_alike(undisturbed, tmp_path, words, stage, began)


def test_a_hung_worker_is_overtaken_by_a_second(
    nodes: Cluster, undisturbed: tuple[dict[str, Any], float], tmp_path: Path
):
    """Long before its deadline, since others show how long the stage takes."""
    began = time.monotonic()
    done = driver(tmp_path, "r", nodes.address, **slowly(tmp_path, deadline=500.0))
    until(finished(tmp_path, 12))
    (tmp_path / "accuracy-hang").touch()
    assert done.wait(300) == 0, (tmp_path / "r.log").read_text()
    assert list(tmp_path.glob("accuracy-hang-struck-*")), "nothing was struck"
    assert any(e.doubled for e in events(tmp_path) if isinstance(e, ev.StageFinished))
    ends_alike(undisturbed, tmp_path, "worker hung, overtaken", "accuracy", began)


# ---- nodes


@pytest.mark.parametrize("how", ["removed", "drained"])
def test_nodes(nodes: Cluster, undisturbed: tuple[dict[str, Any], float], tmp_path: Path, how: str):
    began = time.monotonic()
    extra = add_node(nodes, num_cpus=2)
    try:
        # Three engines do not fit the two nodes beside the CPU worker and the other campaigns' engines.
        running = driver(tmp_path, "r", nodes.address, **slowly(tmp_path, engines=4))
        until(finished(tmp_path, 5))
        if how == "drained":
            subprocess.run(
                [RAY, "drain-node", "--address", nodes.address, "--node-id", extra.node_id, "--reason",
                 "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test", "--deadline-remaining-seconds", "600"],
                check=True, capture_output=True,
            )  # fmt: skip
        else:
            nodes.remove_node(extra, allow_graceful=False)
        assert running.wait(300) == 0, (tmp_path / "r.log").read_text()
    finally:
        if how == "drained":
            nodes.remove_node(extra)
    ends_alike(undisturbed, tmp_path, f"node {how}", "while searching", began)


def test_a_node_that_joins_is_used(nodes: Cluster, undisturbed: tuple[dict[str, Any], float], tmp_path: Path):
    began = time.monotonic()
    running = driver(tmp_path, "r", nodes.address, **slowly(tmp_path, engines=6, keep=0))
    until(finished(tmp_path, 3))
    extra = add_node(nodes, num_cpus=4)
    try:
        assert running.wait(300) == 0, (tmp_path / "r.log").read_text()
    finally:
        nodes.remove_node(extra)
    assert any(isinstance(e, ev.EngineJoined) for e in events(tmp_path))
    ends_alike(undisturbed, tmp_path, "node added", "while searching", began)


# ---- the driver


@pytest.mark.parametrize(
    ("number", "words", "within"),
    [(signal.SIGTERM, "SIGTERM", 25), (signal.SIGINT, "Ctrl-C", 25), (signal.SIGKILL, "driver killed", 5)],
)
def test_drivers(
    nodes: Cluster,
    undisturbed: tuple[dict[str, Any], float],
    tmp_path: Path,
    number: int,
    words: str,
    within: float,
):
    began = time.monotonic()
    running = driver(tmp_path, "r", nodes.address, **slowly(tmp_path))
    until(finished(tmp_path, 6))

    def told_what_runs() -> bool:
        live = read_live(tmp_path / "r")
        return live is not None and live.alive and bool(live.stands.get("workers"))

    until(told_what_runs)
    told = time.monotonic()
    running.send_signal(number)
    running.wait(60)
    assert time.monotonic() - told < within, "longer than the stated time"
    if number != signal.SIGKILL:
        assert isinstance(events(tmp_path)[-1], ev.CampaignPaused)
    assert driver(tmp_path, "r", nodes.address, **options()).wait(300) == 0, (tmp_path / "r.log").read_text()
    ends_alike(undisturbed, tmp_path, words, "while searching", began)


# ---- the disk


def test_a_locked_log(nodes: Cluster, undisturbed: tuple[dict[str, Any], float], tmp_path: Path):
    began = time.monotonic()
    running = driver(tmp_path, "r", nodes.address, **slowly(tmp_path))
    until(finished(tmp_path, 4))
    holder = sqlite3.connect(tmp_path / "r" / "events.sqlite", isolation_level=None, timeout=30)
    holder.execute("BEGIN IMMEDIATE")
    running.wait(60)  # it waits five seconds, then says VS017 and stops
    holder.execute("ROLLBACK")
    assert running.returncode != 0 and "VS017" in (tmp_path / "r.log").read_text()
    assert driver(tmp_path, "r", nodes.address, **options()).wait(300) == 0
    ends_alike(undisturbed, tmp_path, "database locked", "while searching", began)


def test_a_full_disk(nodes: Cluster, undisturbed: tuple[dict[str, Any], float], tmp_path: Path):
    began = time.monotonic()
    small = tmp_path / "disk"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(small)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small disk here")
    try:
        running = driver(small, "r", nodes.address, **options())
        assert running.wait(300) != 0
        free = {name: path.read_bytes() for path in small.rglob("*") if path.is_file() for name in [path]}
        shutil.copytree(small / "r", tmp_path / "r")
        assert free
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
    assert driver(tmp_path, "r", nodes.address, **options()).wait(300) == 0, (tmp_path / "r.log").read_text()
    ends_alike(undisturbed, tmp_path, "disk full", "while searching", began)


# ---- the cluster itself


def test_the_control_store_is_restarted(undisturbed: tuple[dict[str, Any], float], tmp_path: Path):
    """Ray's GCS keeps its tables in memory unless it is given a Redis: restarting it is a new cluster. The campaign
    ends with what it has, and the same command goes on with the new one."""
    began = time.monotonic()
    with cluster(1, 3) as first:
        running = driver(tmp_path, "r", first.address, **slowly(tmp_path))
        until(finished(tmp_path, 5))
        first.head_node.kill_gcs_server()
        try:
            running.wait(100)
        except subprocess.TimeoutExpired:
            running.kill()
    with cluster(1, 3) as second:
        assert driver(tmp_path, "r", second.address, **options()).wait(300) == 0, (
            tmp_path / "r.log"
        ).read_text()
    ends_alike(undisturbed, tmp_path, "GCS lost", "while searching", began)


# ---- several campaigns


def test_two_campaigns_share_engines_by_weight(nodes: Cluster, tmp_path: Path):
    began = time.monotonic()
    (tmp_path / "pace").write_text("0.2")
    many: dict[str, Any] = options(candidates=60, model=json.dumps(str(tmp_path)))
    pair = [driver(tmp_path, run, nodes.address, **many) for run in ("r", "s")]

    def spent() -> dict[str, float]:
        """Engine seconds of both, as the house accounts them; empty while one is alone."""
        found = [
            live.stands.get("campaigns", {}) for run in ("r", "s") if (live := read_live(tmp_path / run))
        ]
        newest = max(found, key=lambda each: sum(each.values()), default={})
        by = {name.rsplit("-", 1)[0]: seconds for name, seconds in newest.items()}
        return by if len(by) == 2 else {}

    until(lambda: all(finished(tmp_path, 3, run)() for run in ("r", "s")) and spent())
    before = spent()
    until(lambda: any(finished(tmp_path, 45, run)() for run in ("r", "s")))
    after = spent()
    assert [one.wait(300) for one in pair] == [0, 0]
    assert results(tmp_path, "r") == results(tmp_path, "s")
    names = [
        {e.worker for e in events(tmp_path, run) if isinstance(e, ev.StageFinished)} for run in ("r", "s")
    ]
    assert names[0] & names[1] - {""}, "no engine served both"
    got = {run: after[run] - before[run] for run in ("r", "s")}
    assert abs(got["r"] / sum(got.values()) - 0.5) <= 0.05, f"shares differ by more than 10%: {got}"
    ROWS.append(
        ("two campaigns", f"shares {got['r'] / sum(got.values()):.2f}", "none", time.monotonic() - began)
    )


def test_metrics_are_served_by_ray(tmp_path: Path):
    with cluster(1, 3, include_dashboard=True) as made:
        running = driver(tmp_path, "r", made.address, **slowly(tmp_path, candidates=80))
        # What a Prometheus server is pointed at.
        listed = Path(made.head_node.get_temp_dir_path()) / "prom_metrics_service_discovery.json"

        def served() -> bool:
            found = ""
            with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
                for target in {t for group in json.loads(listed.read_text()) for t in group["targets"]}:
                    with (
                        contextlib.suppress(OSError, http.client.HTTPException),
                        urllib.request.urlopen(f"http://{target}/metrics", timeout=20) as answer,
                    ):
                        found += answer.read().decode()
            return "vortex_stage_seconds" in found and "vortex_programs" in found

        until(served, 200)  # while it runs: Ray forgets the figures of processes that ended
        assert running.wait(300) == 0, (tmp_path / "r.log").read_text()

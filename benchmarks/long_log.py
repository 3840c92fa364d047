"""A run of a hundred thousand candidates: size of its log, time and memory to resume, check, pack and look at it.

    python -m benchmarks.long_log --candidates 100000 --out runs/long_log

The candidates are made up (`search.simulation`): eight stages each, with numbers, answers to 40 items and side
information of the size that the default plan leaves. Events and texts are written as a campaign writes them, but for
waiting for the disk. Each measurement is a process of its own; `leaderboard` and `status` are timed as a user calls
them, from the start of Python, while a driver appends and keeps its live view.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from evaluators.results import Metric, StageResult
from search.campaign.live import LiveView
from search.config import CampaignConfig
from search.log import events as ev
from search.log import store
from search.log.compact import size_of
from search.log.run import Run, open_run, read_state
from search.log.store import SqliteEventStore
from search.simulation import simulated_flow

STAGES = ("static", "compile", "parity", "modelled", "recall", "gate", "accuracy", "decode")
CONFIG = CampaignConfig.model_validate(
    {
        "references": ["dense"],
        "objective": {"gates": [{"metric": "accuracy_delta", "at_least": -0.25}]},
        "arms": [{"name": "random", "strategy": {"kind": "random"}}],
        "limits": {"candidates": 10_000_000},
    }
)


def candidate(number: int, run: Run) -> Iterator[ev.Event]:
    """The events of one candidate."""
    rng = random.Random(number)
    flow = simulated_flow(rng.randrange(101) / 100)
    key = f"{number:016x}"
    source = run.files.put(f"# candidate {number}\n" + "class Flow(vFlow):\n    pass\n" * 20, ".py")
    program = _program(run, flow.name)
    yield ev.Asked(number, "random", "seed", (), number, "grammar")
    yield ev.Proposed(number, source, "an idea in a sentence or two, as a model gives it", "grammar", 0.1)
    yield ev.Admitted(
        key, f"{number:016x}", f"point_{number}", "doc", source, program, flow.knobs.to_json(), number
    )
    for stage in STAGES:
        yield ev.StageFinished(key, "search", stage, 0, result(stage, rng).to_json(), "node1 gpu0")
    yield ev.CandidateFinished(key, "search", 0, passed=True)


@cache
def _program(run: Run, name: str) -> str:
    return run.files.put_json(simulated_flow(float(name.rpartition("_")[2])).program.to_json())


def result(stage: str, rng: random.Random) -> StageResult:
    """What a stage leaves: three metrics with intervals, answers where it asks, side information."""
    metrics = {f"{stage}_{i}": Metric(rng.random(), rng.random(), rng.random(), "x", n=40) for i in range(3)}
    items: dict[str, list[float]] = {}
    if stage == "accuracy":
        metrics |= {"accuracy_delta": Metric(rng.uniform(-0.3, 0.05), -0.35, 0.1, n=40)}
        items = {"needle": [float(rng.random() < 0.9) for _ in range(40)]}
    if stage == "modelled":
        metrics |= {"modelled_speedup_h200": Metric(rng.uniform(0.8, 5.0), how="modelled")}
    info = {
        "measured_on": "model on NVIDIA H200",
        "bottleneck": "score",
        "worst_head": [rng.random() for _ in range(8)],
    }
    return StageResult(stage, True, metrics, items, info, seconds=0.5)


def write(root: Path, count: int) -> None:
    """The run `r`."""
    with open_run("r", readonly=False, root=root) as run:
        assert isinstance(run.store, SqliteEventStore)
        run.store.durable(False)  # what is measured is not this disk
        store.parse = lambda *event: None  # type: ignore[assignment]  # nobody folds them here
        done = (run.store.end[0] - 2) // 12
        campaign = CONFIG.model_dump(mode="json", exclude={"limits", "cluster", "serving", "description"})
        limits = CONFIG.model_dump(mode="json", include={"limits", "cluster", "serving"})
        if done < 0:
            run.store.append(
                ev.CampaignStarted("r", {"campaign": campaign}, {}, {}, {}), ev.SessionStarted(1, limits)
            )
            done = 0
        batch: list[ev.Event] = []
        for number in range(done + 1, count + 1):
            batch += candidate(number, run)
            if number % 50 == 0 or number == count:
                run.store.append(*batch)
                batch = []


def fold(root: Path) -> dict[str, float]:
    """Fold the log."""
    began, worked = time.monotonic(), time.process_time()
    with open_run("r", readonly=True, root=root) as run:
        read_state(run)
    return {"fold_seconds": time.monotonic() - began, "fold_cpu_seconds": time.process_time() - worked}


def drive(root: Path, seconds: float) -> None:
    """Resume, then append five candidates a second, as a driver of a large cluster would."""
    with open_run("r", readonly=False, root=root) as run:
        began, worked = time.monotonic(), time.process_time()
        state = read_state(run)
        took = {"fold_seconds": time.monotonic() - began, "fold_cpu_seconds": time.process_time() - worked}
        view = LiveView(run.folder, CONFIG, lambda: {"workers": [], "engines": 200, "queue": {}})
        view.begin(state)
        took |= {"view_seconds": time.monotonic() - began, "view_cpu_seconds": time.process_time() - worked}
        took |= {"resume_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
        (root / "driving").write_text(json.dumps(took), encoding="utf-8")
        end, said, number = time.monotonic() + seconds, 0.0, len(state.proposals)
        while time.monotonic() < end:
            number += 1
            for record in run.store.append(*candidate(number, run)):
                state.apply(record)
                view.watch(record, state)
            if time.monotonic() - said > 1:
                view.say(state)
                said = time.monotonic()
            time.sleep(0.2)
        view.close(state)


def fsck(root: Path) -> dict[str, float]:
    """As the command does."""
    from search.log.fsck import check_run

    began, worked = time.monotonic(), time.process_time()
    with open_run("r", readonly=True, root=root) as run:
        found = check_run(run)
    assert not found.problems, found.findings
    took = {"fsck_seconds": time.monotonic() - began, "fsck_cpu_seconds": time.process_time() - worked}
    return took | {"events": found.events, "texts": found.texts}


def pack(root: Path) -> dict[str, float]:
    """As the command `compact` does."""
    from search.log.compact import compact

    began = time.monotonic()
    with open_run("r", readonly=False, root=root) as run:
        done = compact(run)
    return {
        "compact_seconds": time.monotonic() - began,
        "bytes_before": done.before,
        "bytes_after": done.after,
    }


def command(root: Path, *words: str) -> float:
    """Seconds of a command, from the start of Python to its end."""
    began = time.monotonic()
    environment = {**os.environ, "VORTEX_RUNS": str(root)}
    subprocess.run(
        [sys.executable, "-m", "search.cli", *words], env=environment, check=True, capture_output=True
    )
    return time.monotonic() - began


def alone(root: Path, what: str) -> dict[str, float]:
    """One measurement in a process of its own, with the most memory it held."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.long_log", "--only", what, "--out", str(root)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--candidates", type=int, default=100_000)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    root: Path = given.out
    single: dict[str, Callable[[Path], Any]] = {
        "fold": fold, "fsck": fsck, "pack": pack, "drive": lambda r: drive(r, 600.0),
    }  # fmt: skip
    if given.only:
        found = single[given.only](root) or {}
        found |= {f"{given.only}_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
        print(json.dumps(found))
        return
    root.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    write(root, given.candidates)
    found = {"candidates": given.candidates, "write_seconds": time.monotonic() - began}
    found |= {"log_bytes": (root / "r" / "events.sqlite").stat().st_size, "folder_bytes": size_of(root / "r")}
    found |= {"load": os.getloadavg()[0]}
    found |= alone(root, "fsck")
    print(json.dumps(found, indent=1), flush=True)
    driver = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.long_log", "--only", "drive", "--out", str(root)]
    )
    try:
        while not (root / "driving").exists():
            assert driver.poll() is None
            time.sleep(0.5)
        time.sleep(3)
        found |= json.loads((root / "driving").read_text(encoding="utf-8"))
        for words in (("status", "r"), ("leaderboard", "r", "--limit", "20")):
            times = sorted(command(root, *words) for _ in range(5))
            found[f"{words[0]}_seconds_median"], found[f"{words[0]}_seconds_most"] = times[2], times[-1]
        found["help_seconds"] = command(root, "status", "--help")
    finally:
        driver.terminate()
        driver.wait()
    found |= alone(root, "pack")
    found |= {"packed_log_bytes": (root / "r" / "events.sqlite").stat().st_size}
    found |= {f"packed_{name}": value for name, value in alone(root, "fold").items()}
    print(json.dumps(found, indent=1))
    (root / "long_log.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

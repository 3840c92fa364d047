"""Two campaigns on the GPUs of one host: whether engines are shared by weight, and what each campaign got.

    python -m benchmarks.shared_gpus --model smollm2-135m --plan quick --seconds 100 --out runs/shared_gpus

Starts a Ray cluster of this machine, then two drivers in processes of their own with the same model and plan and
different seeds. Both join the house of the cluster, whose engines, one a GPU, are given to whoever had least engine
time for its weight. Prints each campaign's engine seconds over the time in which both were searching, and its share;
shares within 10% of the weights pass. `--dry-run` does the same with CPU engines that sleep, for machines without GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ray

from search.campaign.live import read_live

RUNS = ("first", "second")


def driver(
    root: Path, run: str, address: str, given: argparse.Namespace, seed: int
) -> subprocess.Popen[bytes]:
    """One campaign."""
    if given.dry_run:
        command = [sys.executable, "-m", "tests.chaos.driver", str(root), run, address]
        command += ["candidates=100000", "engines=2", "cpu_tasks=1"]
    else:
        command = [
            sys.executable,
            "-m",
            "search.cli",
            "--address",
            address,
            "--device",
            "cuda",
            "--model",
            given.model,
        ]
        command += ["--plan", given.plan, "--run", run, "--seed", str(seed), "--max-candidates", "100000"]
    environment = {**os.environ, "VORTEX_RUNS": str(root), "RAY_USAGE_STATS_ENABLED": "0"}
    log = (root / f"{run}.log").open("wb")
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def spent(root: Path) -> dict[str, float]:
    """Engine seconds of each campaign, as the house accounts them."""
    for run in RUNS:
        live = read_live(root / run)
        found: dict[str, float] = {} if live is None else live.stands.get("campaigns", {})
        if len(found) == len(RUNS):
            return {name.rsplit("-", 1)[0]: seconds for name, seconds in found.items()}
    return {}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--plan", default="gpu")
    parser.add_argument("--seconds", type=float, default=100.0, help="in which both search")
    parser.add_argument("--patience", type=float, default=120.0, help="until both search")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    root: Path = given.out
    root.mkdir(parents=True, exist_ok=True)
    more: dict[str, Any] = {"num_cpus": 4, "num_gpus": 0} if given.dry_run else {}
    context = ray.init(address="local", include_dashboard=False, log_to_driver=False, **more)
    address = context.address_info["address"]
    drivers = [driver(root, run, address, given, seed) for seed, run in enumerate(RUNS)]
    try:
        end = time.monotonic() + given.patience
        while not spent(root) and time.monotonic() < end:
            assert all(one.poll() is None for one in drivers), "a campaign ended: see its log"
            time.sleep(1)
        before, began = spent(root), time.monotonic()
        assert before, "the campaigns did not come to share engines in time"
        time.sleep(given.seconds)
        after = spent(root)
        seconds = time.monotonic() - began
    finally:
        for one in drivers:
            one.send_signal(signal.SIGTERM)
        for one in drivers:
            try:
                one.wait(40)
            except subprocess.TimeoutExpired:
                one.kill()
    got = {run: after[run] - before[run] for run in RUNS}
    shares = {run: found / sum(got.values()) for run, found in got.items()}
    found = {
        "model": "sleepers" if given.dry_run else given.model, "plan": given.plan, "seconds": seconds,
        "engine_seconds": got, "shares": shares,
        "within_10_percent": all(abs(s - 0.5) <= 0.05 for s in shares.values()),
        "candidates": {run: live.stands["candidates"] for run in RUNS if (live := read_live(root / run))},
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    (root / "shared_gpus.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    ray.shutdown()


if __name__ == "__main__":
    main()

"""The installed command as a user meets it: hostile flows, wrong names, one evaluation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vortex_core.engine.models.weights import ModelPath

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

HEADER = (
    "from vortex_core import ops, vFlow\n\n\nclass Bad(vFlow):\n    def forward_indexer(self, q, cache):\n"
)
HOSTILE = {
    "imports os": ("import os\n" + HEADER + "        return ops.topk(q.sum('dim').max('head'))\n", "VF002"),
    "loops for ever": (HEADER + "        n = 0\n        while True:\n            n = n + 1\n", "VF006"),
    "allocates without end": (
        HEADER + "        x = [0]\n        while True:\n            x = x + x\n",
        "VF007",
    ),
    "has a shape error": (HEADER + "        return ops.topk(q.sum('page'))\n", "VF01"),
}


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).resolve().parents[2])
    return subprocess.run(
        [sys.executable, "-m", "search.cli", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": root, "VORTEX_RUNS": str(folder / "runs")},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.mark.parametrize("what", sorted(HOSTILE))
def test_a_hostile_flow_gets_one_message(what: str, tmp_path: Path):
    source, code = HOSTILE[what]
    (tmp_path / "flow.py").write_text(source)
    began = time.monotonic()
    done = command(tmp_path, "check", "flow.py")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(code)
    # One fix for the error, and one for each thing that is wrong beyond it.
    assert done.stderr.count("fix:") == 1 + done.stderr.count("\nthen VF")
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 120
    assert sorted(p.name for p in tmp_path.iterdir()) == ["flow.py"]


def test_an_unknown_model_stops_a_campaign_before_anything_is_written(tmp_path: Path):
    done = command(tmp_path, "--model", "smollm3-135m", "--run", "x")
    assert done.returncode == 2
    assert "smollm2-135m" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_model_that_is_too_large_says_what_is_missing(tmp_path: Path):
    done = command(
        tmp_path, "--model", "minimax-m2.7", "--campaign", "default", "--device", "cpu", "--run", "x"
    )
    assert done.returncode == 2
    assert "GiB" in done.stderr
    assert "fix:" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_campaign_made_for_gpus_says_so_where_there_is_none(tmp_path: Path):
    done = command(tmp_path, "--model", "minimax-m2.7", "--run", "x")
    assert done.returncode != 0
    assert done.stderr.startswith("VS040")
    assert "--device cpu" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.model
def test_evaluate_measures_a_file(tmp_path: Path, smollm2: ModelPath):
    from vortex_core import library

    source = library.source("block_topk")
    (tmp_path / "mine.py").write_text(source)
    done = command(tmp_path, "evaluate", "mine.py", "--plan", "quick", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["passed"] else 1), done.stderr
    stages = [stage["stage"] for stage in found["stages"]]
    assert stages[:3] == ["static", "compile", "parity"]
    metrics = {name: m for stage in found["stages"] for name, m in stage["metrics"].items()}
    assert metrics["modelled_speedup_h200"]["how"] == "modelled"
    assert 0 < metrics["recall"]["value"] <= 1

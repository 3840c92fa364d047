"""The programs of examples/ run as they are written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vortex_core.engine.models.weights import ModelPath

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(600)


def run(example: str, folder: Path, *arguments: str) -> str:
    """What an example prints, run in a folder of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "VORTEX_RUNS": str(folder / "runs")}
    command = [sys.executable, str(ROOT / "examples" / example), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_example_is_listed_and_run() -> None:
    listed = (ROOT / "examples/README.md").read_text(encoding="utf-8")
    here = Path(__file__).read_text(encoding="utf-8")
    names = [file.name for file in (ROOT / "examples").glob("*.py")]
    assert names
    assert [name for name in names if name not in listed or f'run("{name}"' not in here] == []


def test_a_flow_is_written_and_checked(tmp_path: Path) -> None:
    shown = run("write_and_check.py", tmp_path)
    assert "VF010" in shown
    assert "at wrong.py:18" in shown
    chosen = shown.split("pages chosen: [")[1].split("]")[0].split(",")
    assert len(chosen) == 3, "48 tokens are three pages of 16"
    assert float(shown.split("modelled: ")[1].split("x dense")[0]) > 1


def test_a_task_is_added(tmp_path: Path) -> None:
    shown = run("add_a_task.py", tmp_path)
    assert "right: 1.0, wrong: 0.0" in shown
    assert int(shown.splitlines()[-1].split()[0]) > 5, "the suite ran"


@pytest.mark.e2e
@pytest.mark.model
def test_a_flow_is_evaluated(tmp_path: Path, smollm2: ModelPath) -> None:
    shown = run("evaluate_flow.py", tmp_path)
    assert "parity: passed" in shown
    assert "modelled_speedup_h200 = " in shown
    assert "(modelled)" in shown


@pytest.mark.e2e
@pytest.mark.model
def test_a_campaign_is_run_and_resumed(tmp_path: Path, smollm2: ModelPath) -> None:
    first = run("run_campaign.py", tmp_path)
    assert "CampaignStarted" in first
    ranked = [line for line in first.splitlines() if line.startswith(("1. ", "2. "))]
    assert ranked  # a program that a gate stops is not ranked, and which are drawn is the grammar's affair
    again = run("run_campaign.py", tmp_path)
    assert "CampaignStarted" not in again
    assert [line for line in again.splitlines() if line.startswith(("1. ", "2. "))] == ranked

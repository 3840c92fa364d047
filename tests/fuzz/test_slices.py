"""A short slice of the fuzz runs (`python -m tests.fuzz.run` is the long one), and that the run itself can fail."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.fuzz import programs, run, sources
from vortex_core.compiler.oracle import OracleFlow


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("chunk", range(4))
def test_random_programs(chunk: int) -> None:
    counts: Counter[str] = Counter()
    wrong = [w for seed in range(12 * chunk, 12 * chunk + 12) for w in run.one_program(seed, counts)]
    assert wrong == []
    assert counts["the canonical form selects the same pages"] == 12
    assert counts["emitted source traces to the same program"] == 24
    assert counts["equivalent rewrites hash equal"] > 24


def test_damaged_sources() -> None:
    counts: Counter[str] = Counter()
    bases = sources.bases()
    wrong = [w for seed in range(250) for w in sources.check(seed, bases, counts, jailed=seed == 100)]
    assert wrong == []
    assert counts["accepted"] > 10
    assert len([what for what in counts if what.startswith("VF")]) > 12


def start(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["run", *arguments])
    return run.main()


def test_a_run_cut_short_goes_on_and_ends_with_the_same_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress, out = str(tmp_path / "progress.json"), tmp_path / "fuzz"
    same = ("--programs", "2", "--mutations", "20", "--seed", "7", "--out", str(out))
    assert start(monkeypatch, *same, "--progress", progress, "--seconds", "0") == 3
    assert not out.with_suffix(".json").exists()
    assert start(monkeypatch, *same, "--progress", progress) == 0
    first = json.loads(out.with_suffix(".json").read_text())
    assert start(monkeypatch, *same) == 0
    second = json.loads(out.with_suffix(".json").read_text())
    for part in ("programs", "sources"):
        assert first[part]["counts"] == second[part]["counts"]
        assert first[part]["done"] == second[part]["done"] > 0
    assert "20 damaged sources" in out.with_suffix(".md").read_text()
    monkeypatch.setattr(run, "code", lambda: "another")
    assert start(monkeypatch, *same, "--progress", progress) == 2


def test_a_wrong_selection_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the canonical form to drop the sign of a score, a slice would say so."""
    real = OracleFlow.__init__
    made = 0

    def negated(self, program, *rest):  # type: ignore[no-untyped-def]
        nonlocal made
        made += 1
        other = programs.tampered(program, programs.random.Random(1)) if made % 2 == 0 else None
        real(self, other or program, *rest)

    monkeypatch.setattr(OracleFlow, "__init__", negated)
    wrong = [w for seed in range(30) for w in run.one_program(seed, Counter())]
    assert any("the canonical form selects the same pages" in w for w in wrong)


def test_a_crash_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "verify", lambda program: 1 / 0)
    assert "a crash: ZeroDivisionError" in run.one_program(0, Counter())[0]

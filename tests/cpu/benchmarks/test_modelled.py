"""The benchmarks about candidates: their arithmetic, not their times."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import candidate_seconds, modelled
from evaluators.results import Metric, StageResult
from vortex_core import library
from vortex_core.errors import VortexError
from vortex_core.specs import load_gpu, load_model


def test_a_fit_recovers_the_factors_of_programs_it_has_not_seen() -> None:
    factors = {"streams": 1.3, "indexing": 2.0, "launches": 0.5, "layers": 1.1}
    row = modelled.Row("", 16, "512", 4096, 8, 0.0, 1.0, 2.0, 1.9, 2.1, 2.2, 0.1, {})
    rows = []
    for i in range(8):
        parts = {"streams": 1.0 + i, "indexing": 0.1 * i * i, "launches": 3.0 / (1 + i), "layers": 1.0}
        measured = sum(factors[name] * value for name, value in parts.items())
        rows.append(replace(row, flow=f"f{i}", parts=parts, measured_ms=measured))
    held, found = modelled.unseen(rows)
    assert held["typical"] == pytest.approx(1)
    assert found == pytest.approx(factors)


def test_errors_are_factors() -> None:
    found = modelled.errors([2.0, 0.5])
    assert found["bias"] == pytest.approx(1)
    assert found["typical"] == found["worst"] == pytest.approx(2)


def test_flows_are_named_with_page_and_budget() -> None:
    found = candidate_seconds.flows("quest@64:1024,block_topk@16,streaming")
    assert [(f.name, f.knobs.page_size, f.knobs.budget) for f in found][:2] == [
        ("quest", 64, "1024"),
        ("block_topk", 16, "max(256, length / 16)"),
    ]
    assert len(candidate_seconds.flows(candidate_seconds.FLOWS)) == 6


def test_a_run_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VORTEX_RUNS", str(tmp_path))
    with pytest.raises(VortexError, match="VS001"):
        modelled.of_run("absent", None)


def test_what_a_campaign_measured_stands_beside_the_model() -> None:
    point = {"batch": 16, "step_ms_p50": 2.0, "density": 0.1}
    speedup = Metric(1.5, 1.4, 1.6, unit="x", n=4)
    result = StageResult(
        "decode", passed=True, metrics={"decode_speedup@8192": speedup}, info={"points": {"8192": point}}
    )
    (row,) = modelled.rows_of(library.load("quest").flow, result, load_model("qwen3-8b"), load_gpu("h200"))
    assert (row.flow, row.context, row.batch, row.measured_ms, row.measured) == ("quest", 8192, 16, 2.0, 1.5)
    assert sum(row.parts.values()) == pytest.approx(row.modelled_ms)

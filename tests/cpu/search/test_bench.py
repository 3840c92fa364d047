"""`vortex-search bench` on a tiny random model: what it measures, prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from search.commands.bench import BenchPlan, bench
from vortex_core.engine.throughput import percentile
from vortex_core.errors import VortexError
from vortex_core.specs import load_model

SMALL = {
    "layers": 2, "hidden": 48, "q_heads": 4, "kv_heads": 2, "head_dim": 16, "intermediate": 64, "vocab": 256,
}  # fmt: skip


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    spec = load_model("qwen3-0.6b").model_copy(update=SMALL)
    monkeypatch.setattr("vortex_core.specs.load_model", lambda name: spec)


def test_every_kind_of_result_is_consistent_and_written(tiny: None, tmp_path: Path) -> None:
    from search.cli.bench import bench as command

    command(
        "tiny", "quest", batch="1,2", context="300", new_tokens=4, rounds=2, page_size=16, budget="64",
        device="cpu", random_weights=True, random_kv=True, serve=3, folder=tmp_path,
    )  # fmt: skip
    document = json.loads((tmp_path / "bench.json").read_text())
    rows: list[dict[str, Any]] = document["results"]
    assert [r["kind"] for r in rows] == ["parity", *["decode"] * 4, "serve", "serve"]
    assert "random weights, throughput only" in rows[0]["model"]
    assert rows[0]["agreed"] == 1.0
    for row in rows[1:5]:
        assert row["random_kv"] is True
        assert row["tokens_per_second"] == pytest.approx(row["batch"] / row["step_ms"] * 1e3)
        assert row["speedup"] == pytest.approx(row["dense_step_ms"] / row["step_ms"])
        assert row["step_ms"] <= row["step_ms_p95"]
        assert 0 < row["attention_share"] < 1
    dense, quest = rows[1:3]
    assert (dense["ir_hash"], dense["density"], dense["speedup"]) == ("dense", 1.0, 1.0)
    assert quest["density"] == pytest.approx(64 / 304, rel=0.02)
    for row in rows[5:]:
        assert row["ttft_ms_p50"] <= row["ttft_ms_p95"]
        assert row["output_tokens_per_second"] == pytest.approx(3 * 4 / row["seconds"])


def test_a_flow_that_is_not_dense_with_everything_selected_is_not_measured(
    tiny: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vortex_core.engine.decode.batch as batch

    real = batch.sparse_decode
    monkeypatch.setattr(batch, "sparse_decode", lambda *a, **k: (real(*a, **k)[0] * -30.0, real(*a, **k)[1]))
    plan = BenchPlan("tiny", "quest", device="cpu", random_weights=True)
    with pytest.raises(VortexError) as caught:
        next(bench(plan))
    assert caught.value.code == "VE025"


def test_a_flow_that_selects_by_value_is_not_compared_with_dense(tiny: None) -> None:
    from search.cli.bench import _line

    parity = next(bench(BenchPlan("tiny", "twilight", device="cpu", random_weights=True)))
    assert parity["density"] < 1.0
    assert "not compared" in _line(parity)


def test_numbers_on_the_command_line_are_checked() -> None:
    from search.cli.bench import bench as command

    with pytest.raises(VortexError, match="--batch"):
        command("smollm2-135m", "quest", batch="1,zero")


def test_percentiles_are_ranks() -> None:
    values = [float(x) for x in range(1, 101)]
    assert [percentile(values, p) for p in (0.5, 0.95, 1.0)] == [50.0, 95.0, 100.0]
    assert percentile([7.0], 0.95) == 7.0

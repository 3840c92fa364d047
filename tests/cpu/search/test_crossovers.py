"""The crossover map: measured where it was measured, else modelled, and labelled as what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.commands.crossovers import crossover_map, modelled_crossover
from search.commands.explain import explanation, sentences
from search.report.program import crossover_of
from vortex_core import library
from vortex_core.compiler.triton.tuning import crossover as module
from vortex_core.compiler.triton.tuning import results
from vortex_core.compiler.triton.tuning.crossover import Measured, crossover_path, store_crossover
from vortex_core.compiler.triton.tuning.results import Machine
from vortex_core.ir.crossover import BATCHES, Crossover
from vortex_core.specs import load_gpu, load_model

SPEC, GPU = load_model("qwen3-1.7b"), load_gpu("h200")


def test_where_nothing_was_measured_it_is_modelled_and_says_so() -> None:
    traced = library.load("quest").with_knobs(page_size=64, budget="2048")
    found = crossover_map(
        traced.program, traced.knobs, SPEC, GPU, command="vortex-search tune quest --crossover"
    )
    assert found["how"] == "modelled"
    assert found["points"] == modelled_crossover(traced.program, traced.knobs, SPEC, GPU)
    assert [batch for batch, _ in found["points"]] == list(BATCHES)
    known = [tokens for _, tokens in found["points"] if tokens]
    assert known and known == sorted(known, reverse=True), (
        "more sequences, a longer share of the step is attention's"
    )
    assert "modelled for" in found["words"] and "tune quest --crossover" in found["words"]


def test_a_measured_one_is_shown_as_measured_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine("NVIDIA H200", "580.95.05", "2.11.0", "3.6.0")
    monkeypatch.setenv("VORTEX_CACHE", str(tmp_path))
    for place in (results, module):
        monkeypatch.setattr(place, "this_machine", lambda: machine)
    traced = library.load("quest")
    path = crossover_path(traced.program, traced.knobs, SPEC.geometry())
    assert path is not None
    store_crossover(Measured(Crossover(((1, 8192), (2, 4096), (4, 4096))), 32768, "2026-11-29", ()), path)
    found = crossover_map(traced.program, traced.knobs, SPEC, GPU)
    assert found["how"] == "measured" and found["points"] == [[1, 8192], [2, 4096], [4, 4096]]
    assert found["words"].startswith(
        "batch 1: 8,192 tokens, batch 2 to 4: 4,096 tokens (measured on NVIDIA H200"
    )
    explained = explanation(traced, "qwen3-1.7b", GPU, batch=1, length=8192)
    assert explained["crossover"] == found
    assert any("batch 2 to 4: 4,096 tokens" in line for line in sentences(explained))
    assert crossover_of(traced.flow, "qwen3-1.7b") == found


def test_flows_that_can_have_none_say_why() -> None:
    traced = library.load("h2o")
    found = crossover_map(traced.program, traced.knobs, SPEC, GPU)
    assert found["how"] == "none" and not found["points"]
    assert "states change" in found["words"]

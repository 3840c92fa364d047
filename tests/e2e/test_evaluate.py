"""A candidate's whole evaluation on the real model: good selections must be told from bad ones."""

from __future__ import annotations

import json
from typing import Any

import pytest

from evaluators import SEARCH, EvaluationWorker, evaluate, load_plan
from evaluators.results import StageResult
from vortex_core import library
from vortex_core.engine.models.weights import ModelPath
from vortex_core.ir.flow import Flow

pytestmark = [pytest.mark.e2e, pytest.mark.model, pytest.mark.timeout(900)]

BUDGET = "96"  # of 512 tokens: six pages of sixteen


def candidate(flow: str, **knobs: Any) -> Flow:
    traced = library.load(flow).with_knobs(**knobs)
    return traced.flow


@pytest.fixture(scope="module")
def worker(smollm2: ModelPath) -> EvaluationWorker:
    made = EvaluationWorker("smollm2-135m", load_plan("quick"))
    made.prepare()
    return made


@pytest.fixture(scope="module")
def results(worker: EvaluationWorker) -> dict[str, dict[str, StageResult]]:
    """All stages of three flows at one budget, gates or no gates."""
    flows = {"dense": candidate("dense")} | {
        name: candidate(name, budget=BUDGET) for name in ("quest", "streaming")
    }
    return {name: {stage: worker.run(stage, flow) for stage in SEARCH} for name, flow in flows.items()}


def value(results: dict[str, StageResult], name: str) -> float:
    return next(r.metrics[name].value for r in results.values() if name in r.metrics)


def test_the_dense_model_finds_its_needles(worker: EvaluationWorker) -> None:
    reference = worker.reference()
    assert sum(reference["scores"]["needle_single@512"]) >= 3
    assert sum(reference["scores"]["needle_multikey@512"]) >= 2


def test_the_dense_flow_scores_as_the_dense_model(results: dict[str, dict[str, StageResult]]) -> None:
    dense = results["dense"]
    assert all(r.passed for r in dense.values()), [r.failure for r in dense.values()]
    assert value(dense, "accuracy_delta") == 0
    assert value(dense, "perplexity_ratio") == pytest.approx(1, abs=0.01)
    assert value(dense, "recall") == 1
    assert value(dense, "density") == 1


def test_reading_the_query_beats_ignoring_it(results: dict[str, dict[str, StageResult]]) -> None:
    quest, streaming = results["quest"], results["streaming"]
    assert value(quest, "density") == pytest.approx(value(streaming, "density"), abs=0.02)
    assert value(quest, "recall") > value(streaming, "recall") + 0.03
    assert value(quest, "recall_vs_oracle") > value(streaming, "recall_vs_oracle")
    assert value(quest, "accuracy") > value(streaming, "accuracy")


def test_speed_is_measured_and_modelled_apart(results: dict[str, dict[str, StageResult]]) -> None:
    latency = results["quest"]["decode"].metrics["decode_ms@512"]
    modelled = results["quest"]["modelled"].metrics["modelled_tps_h200"]
    assert (latency.how, modelled.how) == ("measured", "modelled")
    assert latency.value > 0
    assert modelled.value > results["dense"]["modelled"].metrics["modelled_tps_h200"].value


def test_results_are_json_and_evaluate_stops_at_the_first_failure(worker: EvaluationWorker) -> None:
    hopeless = candidate("streaming", budget="32", keep_last=1, keep_first=0)
    found = evaluate(hopeless, worker, worker.plan)
    assert not found[-1].passed
    assert all(r.passed for r in found[:-1])
    assert len(found) < len(SEARCH)
    for result in found:
        assert StageResult.from_json(json.loads(json.dumps(result.to_json()))) == result

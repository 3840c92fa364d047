"""The stages on a real engine with a tiny random model: identities that hold whatever the weights."""

from __future__ import annotations

import json
from typing import Any

import pytest

from evaluators.bench import capacity
from evaluators.plan import EvaluationPlan, load_plan
from evaluators.results import StageResult
from evaluators.stages.base import resource
from evaluators.stages.modelled import ModelledSettings
from evaluators.stages.registry import FRESH, HOLDOUT, SEARCH, STAGES, get_stage
from evaluators.tasks.items import FRESH_SEEDS
from evaluators.worker import EvaluationWorker, evaluate, run_cpu_stage
from vortex_core import library
from vortex_core.engine import Engine
from vortex_core.errors import VortexError
from vortex_core.ir.flow import Flow


def candidate(flow: str, **knobs: Any) -> Flow:
    traced = library.load(flow).with_knobs(**knobs)
    return traced.flow


@pytest.fixture(scope="module")
def worker(engine: Engine, plan: EvaluationPlan) -> EvaluationWorker:
    assert engine.cache.blocks.total * 128 >= capacity(plan)
    return EvaluationWorker.of_engine(engine, plan)


def test_every_stage_is_reachable_and_named() -> None:
    assert set(SEARCH) | set(FRESH) | set(HOLDOUT) == set(STAGES.names()) - {"serving"}
    assert all(get_stage(name).name == name for name in STAGES.names())
    places = [resource(get_stage(name), "cpu") for name in SEARCH]
    assert places == sorted(places), "cpu stages first"
    on_gpu = {name for name in SEARCH if resource(get_stage(name), "cuda:1") == "cpu"}
    assert on_gpu == {"static", "modelled"}
    with pytest.raises(VortexError) as caught:
        get_stage("parrity")
    assert caught.value.code == "VV004"
    assert "did you mean parity" in caught.value.remedy


def test_dense_is_itself(worker: EvaluationWorker) -> None:
    seen: list[str] = []
    results = evaluate(
        candidate("dense"), worker, worker.plan, on_stage=lambda result: seen.append(result.stage)
    )
    assert seen == list(SEARCH)
    assert all(r.passed for r in results), [r.failure for r in results]
    metrics = {name: m for r in results for name, m in r.metrics.items()}
    assert metrics["recall"].value == 1
    assert metrics["accuracy_delta"].value == 0
    assert metrics["perplexity_ratio"].value == pytest.approx(1, abs=1e-4)
    assert metrics["density"].value == 1
    assert metrics["modelled_speedup_h200"].value == pytest.approx(1)
    assert metrics["modelled_tps_h200"].how == "modelled"
    assert 0.2 < metrics["decode_speedup"].value < 5
    for result in results:
        assert StageResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_selecting_everything_is_dense_too(worker: EvaluationWorker) -> None:
    everything = candidate("quest", budget="length")
    results = {name: worker.run(name, everything) for name in ("accuracy", "perplexity", "recall")}
    assert results["accuracy"].metrics["accuracy_delta"].value == 0
    assert results["perplexity"].metrics["perplexity_ratio"].value == pytest.approx(1, abs=1e-3)
    assert results["recall"].metrics["recall"].value == pytest.approx(1, abs=1e-4)


def test_a_sparse_flow_differs_and_says_how(worker: EvaluationWorker) -> None:
    sparse = candidate("streaming", budget="64", keep_last=1)
    perplexity = worker.run("perplexity", sparse)
    assert perplexity.metrics["density"].value < 0.2
    assert perplexity.metrics["perplexity_ratio"].value != 1
    assert len(perplexity.items["perplexity"]) == 2 * 5
    recall = worker.run("recall", sparse)
    assert 0 < recall.metrics["recall"].value < 1
    assert 0 < recall.metrics["recall_vs_oracle"].value <= 1
    assert len(recall.info["recall_by_layer"]) == 3
    assert recall.info["worst_head"]["recall"] <= recall.info["worst_layer"]["recall"]
    assert recall.info["density_by_layer"][0] < 0.2


def test_gates_stop_candidates(engine: Engine, plan: EvaluationPlan) -> None:
    data = plan.model_dump(mode="json")
    data["recall"]["min_recall"] = 0.999
    data["perplexity"]["max_ratio"] = 1.0000001
    strict = EvaluationWorker.of_engine(engine, EvaluationPlan.model_validate(data))
    sparse = candidate("streaming", budget="64")
    results = evaluate(sparse, strict, strict.plan)
    assert [r.stage for r in results] == list(SEARCH[: SEARCH.index("recall") + 1])
    assert results[-1].failure is not None
    assert results[-1].failure.kind == "candidate"
    assert results[-1].failure.error["code"] == "VV104"
    assert "worst layer" in results[-1].failure.error["message"]
    text = strict.run("perplexity", sparse)
    worse = text.metrics["perplexity_ratio"].value > 1.0000001
    assert text.passed is not worse


def test_a_budget_that_is_dense_in_disguise_is_refused(plan: EvaluationPlan) -> None:
    result = run_cpu_stage("static", candidate("quest", budget="length"), "smollm2-135m", plan)
    assert result.failure is not None
    assert result.failure.error["code"] == "VV101"
    assert run_cpu_stage("static", candidate("dense"), "smollm2-135m", plan).passed


def test_a_budget_that_is_sparse_only_where_speed_is_modelled_is_refused() -> None:
    plan = load_plan("retrieval")
    longest = max(task.context for task in plan.accuracy.tasks)
    assert plan.section("modelled", ModelledSettings).length > longest
    result = run_cpu_stage("static", candidate("quest", budget=str(longest)), "retrieval-mla", plan)
    assert result.failure is not None
    assert result.failure.error["code"] == "VV101"
    assert run_cpu_stage("static", candidate("quest", budget=str(longest - 16)), "retrieval-mla", plan).passed


def test_layers_that_do_not_exist_are_refused(plan: EvaluationPlan) -> None:
    result = run_cpu_stage("static", candidate("quest", dense_layers=(0, 30)), "smollm2-135m", plan)
    assert result.failure is not None
    assert "layer 30" in result.failure.error["message"]


def test_cpu_stages_need_no_engine_and_engine_stages_say_so(plan: EvaluationPlan) -> None:
    for name in SEARCH:
        result = run_cpu_stage(name, candidate("quest"), "smollm2-135m", plan)
        if resource(get_stage(name), "cpu") == "cpu":
            assert result.passed, result.failure
        else:
            assert result.failure is not None
            assert (result.failure.kind, result.failure.error["code"]) == ("infrastructure", "VV006")


def test_references_are_reusable(worker: EvaluationWorker, engine: Engine, plan: EvaluationPlan) -> None:
    document = json.loads(json.dumps(worker.reference()))
    again = EvaluationWorker.of_engine(engine, plan, references=[document])
    assert again.reference() == worker.reference()
    for other in ({"identity": "0" * 16}, {"items": "0" * 16}, {"scores": {}}):
        with pytest.raises(VortexError) as caught:
            EvaluationWorker.of_engine(engine, plan, references=[document | other])
        assert caught.value.code == "VV005"
    renamed = EvaluationWorker.of_engine(engine, plan, references=[document | {"model": "moved elsewhere"}])
    assert renamed.reference()["model"] == "moved elsewhere"
    with pytest.raises(VortexError) as caught:
        EvaluationWorker.of_engine(engine, plan, weights="other weights", references=[document])
    assert caught.value.code == "VV005"


def test_holdout_uses_other_items_and_frees_them(worker: EvaluationWorker, engine: Engine) -> None:
    worker.prepare()
    held = len(engine.cache.prompts)
    first = worker.run("holdout", candidate("quest", budget="64"), FRESH_SEEDS)
    assert first.failure is None or first.failure.kind == "candidate"
    assert {"accuracy", "accuracy_delta", "perplexity_ratio"} <= set(first.metrics)
    assert {key: len(v) for key, v in first.items.items()} == {
        "needle_single@700": 2,
        "needle_multikey@800": 2,
        "perplexity": 5,
    }
    fresh = len(engine.cache.prompts) - held
    worker.prepare(FRESH_SEEDS + 1)
    assert len(engine.cache.prompts) - held == fresh, "one fresh set at a time"
    engine.check_integrity()


def test_answers_are_asked_once(worker: EvaluationWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    decode = worker.bench.resident.decode

    def counting(subject: Any, prompts: Any, **options: Any) -> Any:
        asked.append(len(prompts))
        return decode(subject, prompts, **options)

    monkeypatch.setattr(worker.bench.resident, "decode", counting)
    flow = candidate("quest", budget="96")
    worker.run("gate", flow)
    assert sum(asked) == 2  # one item of each of two tasks
    worker.run("accuracy", flow)
    assert sum(asked) == 6


def test_another_program_in_the_engine_is_found_out(worker: EvaluationWorker, engine: Engine) -> None:
    flow = candidate("quest", budget="80")
    worker.run("perplexity", flow)
    other = library.load("block_topk")
    engine.load_flow(other.program, other.knobs)  # behind the worker's back
    result = worker.run("perplexity", flow)
    assert result.failure is not None
    assert (result.failure.kind, result.failure.error["code"]) == ("infrastructure", "VV110")
    worker.bench.resident.forget_loaded()
    assert worker.run("perplexity", flow).failure is None


def test_timing_dense_in_between_leaves_the_flow_as_it_was(worker: EvaluationWorker) -> None:
    flow = candidate("quest", budget="64")
    before = worker.run("perplexity", flow).items["perplexity"]
    latency = worker.run("latency", flow)
    assert latency.metrics["decode_ms"].n == 2 * 2
    assert latency.info["density"] < 0.3
    assert worker.run("perplexity", flow).items["perplexity"] == pytest.approx(before, abs=1e-4)


def test_deadlines_are_the_candidates(engine: Engine, plan: EvaluationPlan) -> None:
    data = plan.model_dump(mode="json") | {"deadlines": {"accuracy": 1e-9}}
    hurried = EvaluationWorker.of_engine(engine, EvaluationPlan.model_validate(data))
    result = hurried.run("accuracy", candidate("quest"))
    assert result.failure is not None
    assert (result.failure.kind, result.failure.error["code"]) == ("candidate", "VV010")


@pytest.mark.parametrize("flow", ["running_average", "h2o"])
def test_request_local_states_are_evaluated_too(worker: EvaluationWorker, flow: str) -> None:
    for stage in ("parity", "recall", "accuracy", "perplexity", "latency"):
        result = worker.run(stage, candidate(flow, budget="96"))
        assert result.failure is None or result.failure.error["code"].startswith("VV10"), result.failure
    assert worker.run("recall", candidate(flow, budget="96")) is not None

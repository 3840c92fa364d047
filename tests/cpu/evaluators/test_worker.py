"""The stages on a real engine with a tiny random model: identities that hold whatever the weights."""

from __future__ import annotations

import json
from typing import Any

import pytest

from evaluators.bench import capacity
from evaluators.plan import EvaluationPlan, load_plan
from evaluators.results import StageResult
from evaluators.stages.base import resource
from evaluators.stages.registry import FRESH, HOLDOUT, SEARCH, STAGES, get_stage
from evaluators.tasks.items import FRESH_SEEDS
from evaluators.worker import EvaluationWorker, evaluate, run_cpu_stage
from vortex_core import library
from vortex_core.engine import Engine
from vortex_core.errors import VortexError
from vortex_core.ir.flow import Flow
from vortex_core.specs import load_gpu, load_model


def candidate(flow: str, **knobs: Any) -> Flow:
    traced = library.load(flow).with_knobs(**knobs)
    return traced.flow


@pytest.fixture(scope="module")
def worker(engine: Engine, plan: EvaluationPlan) -> EvaluationWorker:
    assert engine.cache.blocks.total * 128 >= capacity(plan)
    return EvaluationWorker.of_engine(engine, plan)


def test_every_stage_is_reachable_and_named() -> None:
    assert set(SEARCH) | set(FRESH) | set(HOLDOUT) == set(STAGES.names()) - {
        "machine_code",
        "screen",
        "serving",
    }
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


@pytest.mark.parametrize(
    "budget",
    ["max(64, 4000 - length)", "length if length < 4096 else 64", "0.9 * length if length < 6000 else 64"],
)
@pytest.mark.parametrize("name", ["default", "gpu"])
def test_a_budget_that_falls_with_the_length_is_refused(budget: str, name: str) -> None:
    """Accurate at one length and fast at another."""
    result = run_cpu_stage("static", candidate("quest", budget=budget), "smollm2-135m", load_plan(name))
    assert result.failure is not None
    assert result.failure.error["code"] == "VV101"
    assert result.failure.kind == "candidate"


@pytest.mark.parametrize(
    "budget", ["512", "max(256, length / 16)", "0.25 * length", "min(sqrt(length) * 20, 700)"]
)
def test_honest_budgets_pass(budget: str) -> None:
    for name in ("default", "gpu"):
        result = run_cpu_stage("static", candidate("quest", budget=budget), "smollm2-135m", load_plan(name))
        assert result.passed, result.failure


def test_speed_is_not_asked_at_a_lower_density_than_accuracy(plan: EvaluationPlan) -> None:
    data = plan.model_dump(mode="json")
    data["modelled"] |= {"contexts": [4096]}
    longer = EvaluationPlan.model_validate(data)
    for budget, passes in (("128", False), ("0.2 * length", True)):
        result = run_cpu_stage("static", candidate("quest", budget=budget), "smollm2-135m", longer)
        assert result.passed is passes, result.failure
    assert run_cpu_stage("static", candidate("dense"), "smollm2-135m", longer).passed


def test_dense_layers_weigh_as_much_in_the_model_that_answers() -> None:
    """One of two layers dense is half of retrieval-mla's attention and a forty-seventh of GLM's."""
    plan = load_plan("retrieval")
    some = candidate("quest", budget="256", dense_layers=(0,))
    assert run_cpu_stage("static", some, "retrieval-mla", plan).passed
    result = run_cpu_stage("static", some, "glm-4.7-flash", plan, accuracy_model="retrieval-mla")
    assert result.failure is not None
    assert "no answer was tested at" in result.failure.error["message"]


def test_what_the_target_would_refuse_stops_early(plan: EvaluationPlan) -> None:
    served = plan.model_copy(update={"target": "sglang"})
    for flow in (candidate("quest", reuse_steps=4, budget="96"), candidate("h2o", budget="96")):
        assert run_cpu_stage("static", flow, "smollm2-135m", plan).passed
        result = run_cpu_stage("static", flow, "smollm2-135m", served)
        assert result.failure is not None
        assert (result.failure.kind, result.failure.error["code"]) == ("candidate", "VE034")
    assert run_cpu_stage("static", candidate("quest", budget="96"), "smollm2-135m", served).passed


def test_the_modelled_stage_tells_each_launch(plan: EvaluationPlan) -> None:
    found = run_cpu_stage("modelled", candidate("quest"), "qwen3-8b", plan).info["roofline"]
    assert {"update", "score", "select", "attend"} <= set(found)
    assert all(" us" in text for text in found.values())
    assert "state " in found["score"] and "kv " in found["attend"] and found["attend"].endswith(" MB)")


def test_modelled_points_fit_the_card(plan: EvaluationPlan) -> None:
    result = run_cpu_stage("modelled", candidate("quest"), "minimax-m2.7", plan)
    assert result.failure is not None
    assert (result.failure.kind, result.failure.error["code"]) == ("user", "VV015")
    rows = run_cpu_stage("modelled", candidate("quest"), "qwen3-8b", load_plan("default")).info["gpus"][
        "h200"
    ]
    h200, model = load_gpu("h200"), load_model("qwen3-8b")
    for context, row in rows.items():
        assert 0 < row["batch"] * int(context) <= h200.kv_capacity_tokens(model)


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
    decode = worker.run("decode", flow)
    assert set(decode.info["points"]) == {"700", "800"}
    assert decode.metrics["decode_ms@800"].n == 3
    assert decode.info["density"] < 0.3
    assert decode.info["ir_hash"] == flow.ir_hash
    assert "tiny" not in decode.info["measured_on"]
    points = [decode.metrics[f"decode_speedup@{c}"].value for c in (700, 800)]
    assert decode.metrics["decode_speedup"].value == pytest.approx((points[0] * points[1]) ** 0.5)
    low, high = decode.metrics["decode_speedup"].low, decode.metrics["decode_speedup"].high
    assert low is not None
    assert high is not None
    assert low < decode.metrics["decode_speedup"].value < high
    assert worker.run("perplexity", flow).items["perplexity"] == pytest.approx(before, abs=1e-4)


def test_deadlines_are_the_candidates(engine: Engine, plan: EvaluationPlan) -> None:
    data = plan.model_dump(mode="json") | {"deadlines": {"accuracy": 1e-9}}
    hurried = EvaluationWorker.of_engine(engine, EvaluationPlan.model_validate(data))
    result = hurried.run("accuracy", candidate("quest"))
    assert result.failure is not None
    assert (result.failure.kind, result.failure.error["code"]) == ("candidate", "VV010")


@pytest.mark.parametrize("flow", ["running_average", "h2o"])
def test_request_local_states_are_evaluated_too(worker: EvaluationWorker, flow: str) -> None:
    for stage in ("parity", "recall", "accuracy", "perplexity", "decode"):
        result = worker.run(stage, candidate(flow, budget="96"))
        assert result.failure is None or result.failure.error["code"].startswith("VV10"), result.failure
    assert worker.run("recall", candidate(flow, budget="96")) is not None

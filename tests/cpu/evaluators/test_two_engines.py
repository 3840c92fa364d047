"""One worker with two engines: one is timed, the other answers."""

from __future__ import annotations

from typing import Any

import pytest

from evaluators.plan import EvaluationPlan
from evaluators.stages.decode import served_densely
from evaluators.stages.operating import OperatingPoint
from evaluators.worker import EvaluationWorker, evaluate
from tests.cpu.evaluators.conftest import PLAN, ByteTokenizer, tiny_model
from vortex_core import library
from vortex_core.compiler.triton.tuning import crossover
from vortex_core.engine import Engine
from vortex_core.ir.crossover import Crossover
from vortex_core.ir.flow import Flow

PAIRS: dict[str, Any] = PLAN | {
    "name": "pairs",
    "accuracy": PLAN["accuracy"]  # type: ignore[operator]
    | {"tasks": [{"task": "pair_recall", "context": 256, "items": 4, "distractors": 31}], "batch": 4},
    "perplexity": {"task": "pair_answers", "context": 256, "distractors": 31, "items": 2, "max_ratio": 1e9},
    "recall": {"needle_items": 1, "perplexity_items": 1, "steps": 1, "min_recall": 0.05},
}


def flow(name: str = "quest", **knobs: Any) -> Flow:
    return library.load(name).with_knobs(**({"budget": "96"} | knobs))


def test_each_result_names_the_engine_it_is_of(engine: Engine, plan: EvaluationPlan) -> None:
    timed = Engine(tiny_model(1), None, max_tokens=8192)
    timed.spec = timed.spec.model_copy(update={"name": "the one that is timed"})
    worker = EvaluationWorker.of_engine(engine, plan, speed=timed)
    results = {r.stage: r for r in evaluate(flow("dense"), worker, plan)}
    assert all(r.passed for r in results.values()), results
    assert results["decode"].info["measured_on"].startswith("the one that is timed, cpu")
    for stage in ("recall", "gate", "accuracy", "perplexity"):
        assert results[stage].info["measured_on"].startswith(f"{engine.spec.name}, cpu")
    assert timed.ir_hash == engine.ir_hash == flow("dense").ir_hash


def test_random_weights_are_timed_and_never_asked() -> None:
    plan = EvaluationPlan.model_validate(PAIRS)
    alone = EvaluationWorker("retrieval-mla", plan, device="cpu", random_weights=True)
    assert alone.prepare() == 0
    decode = alone.run("decode", flow())
    assert decode.passed, decode.failure
    assert "random weights" in decode.info["measured_on"]
    asked = alone.run("accuracy", flow())
    assert asked.failure is not None
    assert asked.failure.error["code"] == "VV006"
    assert "noise" in asked.failure.error["message"]


def test_another_model_answers_for_one_of_random_weights() -> None:
    plan = EvaluationPlan.model_validate(PAIRS)
    worker = EvaluationWorker(
        "retrieval-mla", plan, device="cpu", random_weights=True, accuracy_model="retrieval-mla"
    )
    results = {r.stage: r for r in evaluate(flow("dense"), worker, plan)}
    assert results["accuracy"].metrics["accuracy"].value == 1
    assert "random" not in results["accuracy"].info["measured_on"]
    assert "random weights" in results["decode"].info["measured_on"]


def test_a_step_faster_than_its_bytes_is_no_win(
    engine: Engine, plan: EvaluationPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evaluators.stages import decode

    row = decode._row

    def suspicious(*arguments: Any) -> dict[str, Any]:
        return row(*arguments) | {"least_ms": 1e6, "suspect": True}

    monkeypatch.setattr(decode, "_row", suspicious)
    result = EvaluationWorker.of_engine(engine, plan).run("decode", flow())
    assert not result.passed
    assert result.failure is not None
    assert result.failure.error["code"] == "VV107"
    assert result.metrics["decode_speedup"].value > 0


def test_who_is_slower_than_dense_over_the_mix_stops(
    engine: Engine, plan: EvaluationPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evaluators import timing

    def timed(*about: Any, **how: Any) -> timing.Timed:
        gain = gains[about[2].context]
        return timing.Timed(about[2], [[1.0]] * 3, [[gain * x] for x in noise])

    data = plan.model_dump(mode="json")
    picky = EvaluationPlan.model_validate(data | {"decode": data["decode"] | {"least": 0.9}})
    worker = EvaluationWorker.of_engine(engine, picky)
    monkeypatch.setattr(timing, "time_decode", timed)
    noise = (1.0, 1.0, 1.0)
    short, *others, longest = sorted({task.context for task in plan.accuracy.tasks})
    gains = dict.fromkeys((short, *others), 2.0) | {longest: 0.8}
    kept = worker.run("decode", flow())
    assert kept.passed, "what is lost at one context is won at the others"
    assert [int(context) for context in kept.info["points"]] == sorted(gains)
    gains = dict.fromkeys(gains, 0.8) | {longest: 0.5}
    slow = worker.run("decode", flow())
    assert slow.failure is not None and slow.failure.error["code"] == "VV108"
    assert f"0.50 at {longest} tokens" in slow.failure.error["message"]
    assert set(slow.metrics) == set(kept.metrics), "what was measured is kept"
    gains, noise = dict.fromkeys(gains, 0.85), (0.7, 1.0, 1.4)
    assert worker.run("decode", flow()).passed, "its interval reaches what is asked for"


def test_values_decide_what_is_decoded(engine: Engine, plan: EvaluationPlan) -> None:
    worker = EvaluationWorker.of_engine(engine, plan)
    fixed = worker.run("decode", flow()).info["points"]
    assert {point["inputs"] for point in fixed.values()} == {"random keys and values"}
    by_value = worker.run("decode", flow("twilight", budget="256")).info["points"]
    assert {point["inputs"] for point in by_value.values()} == {"items"}
    assert ByteTokenizer.eos_token_id == 257


def test_points_below_a_measured_crossover_say_so(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Crossover(((1, 800), (4, 300)))
    monkeypatch.setattr(crossover, "stored_crossover", lambda *about: measured)
    found = {
        (batch, context): served_densely(
            flow(), engine.geometry, OperatingPoint(context=context, batch=batch, weight=1.0)
        )
        for batch in (1, 4)
        for context in (256, 800)
    }
    assert found == {
        (1, 256): {"served_dense_below": 800}, (1, 800): {},
        (4, 256): {"served_dense_below": 300}, (4, 800): {},
    }  # fmt: skip

"""Pairing, gates and early stopping, on a bench whose answers are given by a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from evaluators.answers import Answers
from evaluators.plan import EvaluationPlan, load_plan
from evaluators.reference import DenseReference
from evaluators.results import StageResult
from evaluators.stages.accuracy import AccuracyStage
from evaluators.stages.base import Context, Deadline, run_stage
from evaluators.stages.gate import GateStage
from evaluators.stages.holdout import HoldoutStage
from evaluators.tasks.base import Question
from evaluators.tasks.items import ItemSet
from vortex_core import library
from vortex_core.engine import DecodeResult
from vortex_core.specs import load_model

TRACED = library.load("quest")
CANDIDATE = TRACED.flow
ITEMS = 16


def item(key: str, index: int, samples: int) -> Question:
    return Question(
        index, (0,) * int(key.split("@")[1]), ("1234567",), "number", 9, about={"depth": 0.5},
        samples=samples, temperature=float(samples > 1),
    )  # fmt: skip


class TableBench:
    """Answers from `{task key: [0 or 1, ...]}`; counts what is asked."""

    def __init__(
        self,
        plan: EvaluationPlan,
        dense: Mapping[str, Sequence[float]],
        ours: Mapping[str, Sequence[float]],
        worse: float = 0.0,
        samples: int = 1,
    ) -> None:
        self.plan, self.ours, self.worse = plan, ours, worse
        items = {key: tuple(item(key, i, samples) for i in range(ITEMS)) for key in dense}
        self.items = ItemSet(0, items, ())
        self.dense = DenseReference(
            "identity",
            "items",
            "m",
            0,
            {key: [float(s) for s in scores] for key, scores in dense.items()},
            {key: ["1234567"] * ITEMS for key in dense},
            {key: [float(s > 0) for s in scores] for key, scores in dense.items()},
            {key: [8.0] * ITEMS for key in dense},
            [[-2.0, -3.0], [-1.0, -2.5]],
        )
        self.asked: list[tuple[str, int]] = []
        self.swap_seconds = 0.0

    def reference(self, seed: int) -> DenseReference:
        return self.dense

    def prompts(self, seed: int) -> Any:
        return self  # has .items

    def answer(
        self, subject: Any, seed: int, places: Sequence[tuple[str, int]], deadline: Deadline
    ) -> Answers:
        self.asked += places
        found = Answers("x", seed, density=[0.25])
        for key, i in self.asked:
            found.scores[key, i] = float(self.ours[key][i])
            found.passed[key, i] = float(self.ours[key][i] > 0)
            found.tokens[key, i] = 12.0
            found.texts[key, i] = " 1234567." if self.ours[key][i] else " 7654321."
        return found

    def continuation(self, subject: Any, seed: int) -> DecodeResult:
        logprobs = [[value - self.worse for value in row] for row in self.dense.logprobs]
        return DecodeResult([], logprobs, [], 0.25, TRACED.ir_hash)


@pytest.fixture(scope="module")
def plan() -> EvaluationPlan:
    data = load_plan("quick").model_dump(mode="json")
    data["accuracy"] |= {"batch": 8, "gate_items": 4, "gate_margin": 0.3, "margin": 0.1}
    return EvaluationPlan.model_validate(data)


ONES, ZEROS = [1] * ITEMS, [0] * ITEMS
A, B = "needle_single@100", "needle_multikey@100"


def run(stage: Any, bench: TableBench) -> StageResult:
    context = Context(bench.plan, load_model("smollm2-135m"), bench)  # type: ignore[arg-type]
    return run_stage(stage, CANDIDATE, context, 0)


def test_equal_answers_pass_with_an_honest_interval(plan: EvaluationPlan) -> None:
    mixed = [1, 0] * (ITEMS // 2)
    result = run(AccuracyStage(), TableBench(plan, {A: ONES, B: mixed}, {A: ONES, B: mixed}))
    assert result.passed
    delta = result.metrics["accuracy_delta"]
    assert (delta.value, delta.n) == (0, 2 * ITEMS)
    assert delta.low is not None
    assert -0.2 < delta.low < 0
    assert result.metrics["accuracy"].value == 0.75
    assert result.metrics["needle_multikey"].value == 0.5
    assert result.items == {A: [1.0] * ITEMS, B: [float(x) for x in mixed]}
    assert result.info["noninferior"] is (delta.low > -plan.accuracy.margin)


def test_shares_of_several_answers_are_compared_by_item(plan: EvaluationPlan) -> None:
    dense, ours = [0.75, 0.5] * (ITEMS // 2), [0.5, 0.0] * (ITEMS // 2)
    result = run(AccuracyStage(), TableBench(plan, {A: dense}, {A: ours}, samples=4))
    assert result.metrics["accuracy"].value == 0.25
    delta = result.metrics["accuracy_delta"]
    assert (delta.value, delta.n) == (-0.375, ITEMS)
    assert delta.low is not None and delta.high is not None
    assert -1 < delta.low < -0.375 < delta.high < 0.3
    assert result.metrics["needle_single_pass_at_4"].value == 0.5
    assert (result.info["lost"], result.info["gained"]) == (ITEMS, 0)
    table = result.info["tasks"][A]
    assert (table["samples"], table["pass"], table["dense_pass"]) == (4, 0.5, 1.0)


def test_longer_answers_are_told(plan: EvaluationPlan) -> None:
    result = run(AccuracyStage(), TableBench(plan, {A: ONES}, {A: ONES}))
    assert result.metrics["answer_tokens"].value == 1.5
    table = result.info["tasks"][A]
    assert (table["tokens"], table["dense_tokens"]) == (12, 8)
    assert not any("pass_at" in name for name in result.metrics)


def test_a_candidate_that_fails_every_item_stops_early(plan: EvaluationPlan) -> None:
    bench = TableBench(plan, {A: ONES, B: ONES}, {A: ZEROS, B: ZEROS})
    result = run(AccuracyStage(), bench)
    assert not result.passed
    assert result.failure is not None
    assert (result.failure.kind, result.failure.error["code"]) == ("candidate", "VV105")
    assert result.info["stopped_early"]
    assert len(bench.asked) == plan.accuracy.batch
    assert result.info["lost_items"][0]["said"] == "7654321."


def test_early_items_that_fail_by_chance_do_not_stop_it(plan: EvaluationPlan) -> None:
    unlucky = [0, 0, *[1] * (ITEMS - 2)]
    bench = TableBench(plan, {A: ONES, B: ONES}, {A: unlucky, B: ONES})
    result = run(AccuracyStage(), bench)
    assert result.passed
    assert len(bench.asked) == 2 * ITEMS
    assert (result.info["lost"], result.info["gained"]) == (2, 0)


def test_the_worst_task_is_named(plan: EvaluationPlan) -> None:
    half = [1, 0] * (ITEMS // 2)
    result = run(GateStage(), TableBench(plan, {A: ONES, B: ONES}, {A: ONES, B: half}))
    assert result.info["worst_task"] == B
    assert (
        result.info["tasks"][B].items()
        >= {"accuracy": 0.5, "dense": 1.0, "n": plan.accuracy.gate_items}.items()
    )


def test_the_gate_asks_few_items_and_stops_the_hopeless_only(plan: EvaluationPlan) -> None:
    hopeless = TableBench(plan, {A: ONES, B: ONES}, {A: ZEROS, B: ZEROS})
    result = run(GateStage(), hopeless)
    assert not result.passed
    assert len(hopeless.asked) == 2 * plan.accuracy.gate_items
    one_lost = TableBench(plan, {A: ONES, B: ONES}, {A: [0, *ONES[1:]], B: ONES})
    assert run(GateStage(), one_lost).passed


def test_gains_are_reported_as_gains(plan: EvaluationPlan) -> None:
    result = run(AccuracyStage(), TableBench(plan, {A: ZEROS, B: ZEROS}, {A: ONES, B: ONES}))
    assert result.passed
    assert result.metrics["accuracy_delta"].value == 1
    assert result.info["noninferior"] is True
    assert result.info["stopped_early"] and result.info["sequential"] == "accept"
    assert result.info["mcnemar_p"] < 0.01


def test_the_holdout_asks_everything_and_joins_both_gates(plan: EvaluationPlan) -> None:
    bench = TableBench(plan, {A: ONES, B: ONES}, {A: ZEROS, B: ZEROS}, worse=0.5)
    result = run(HoldoutStage(), bench)
    assert len(bench.asked) == 2 * ITEMS
    assert result.failure is not None
    assert result.failure.error["code"] == "VV105"
    assert result.info["standing"] == "broken"
    ratio = result.metrics["perplexity_ratio"]
    assert ratio.value == pytest.approx(2.718281828**0.5)
    assert ratio.low == pytest.approx(ratio.value)  # the same shift everywhere
    assert not ratio.higher_is_better

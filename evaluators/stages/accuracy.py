"""Stages that ask the model: the accuracy gate, accuracy, perplexity, and the sealed hold-out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from evaluators import stats
from evaluators.bench import Answers, Bench, Place
from evaluators.errors import accuracy_too_low, perplexity_too_high
from evaluators.plan import AccuracyPlan
from evaluators.reference import DenseReference
from evaluators.results import Metric, StageResult
from evaluators.stages.base import Context, Deadline, Needs, Subject, failed
from evaluators.tasks.perplexity import perplexity

_EXAMPLES = 4  # lost items shown to the agent


class GateStage:
    """A few items of every task: a candidate that is surely far worse than dense stops here."""

    name = "gate"
    needs: Needs = "engine"

    def run(self, subject: Subject, context: Context, seed: int, deadline: Deadline) -> StageResult:
        """The accuracy stage reuses these answers."""
        bench, plan = context.engine_bench(self.name), context.plan.accuracy
        reference = bench.reference(seed)
        places = [
            (key, i)
            for key, items in bench.prompts(seed).items.needles.items()
            for i in range(min(plan.gate_items, len(items)))
        ]
        answers = bench.answer(subject, seed, places, deadline)
        ours, dense = _pairs(answers, reference, places)
        verdict = stats.sequential_verdict(ours, dense, margin=plan.gate_margin, looks=1, level=plan.level)
        metrics = {"gate_accuracy": _proportion(ours, plan.level)}
        result = StageResult(
            self.name, passed=True, metrics=metrics, info=_by_task(bench, answers, reference, places)
        )
        if verdict != "fail":
            return result
        found, base = sum(ours) / len(ours), sum(dense) / len(dense)
        error = accuracy_too_low(found, base, plan.gate_margin, f"first {len(ours)} items")
        return failed(self.name, error, result)


class AccuracyStage:
    """All retrieval items, paired with dense; stops early once it is surely worse than the margin."""

    name = "accuracy"
    needs: Needs = "engine"

    def run(self, subject: Subject, context: Context, seed: int, deadline: Deadline) -> StageResult:
        """Passes unless the candidate is surely worse than dense by more than the margin."""
        bench, plan = context.engine_bench(self.name), context.plan.accuracy
        return accuracy_result(self.name, subject, bench, plan, seed, deadline, stop_early=True)


class PerplexityStage:
    """Perplexity of held text, every token predicted by a sparse decode step."""

    name = "perplexity"
    needs: Needs = "engine"

    def run(self, subject: Subject, context: Context, seed: int, deadline: Deadline) -> StageResult:
        """Intervals resample tokens: they hold for these passages."""
        bench = context.engine_bench(self.name)
        limit = context.plan.perplexity.max_ratio
        return perplexity_result(self.name, subject, bench, seed, limit)


class HoldoutStage:
    """Accuracy and perplexity on items nobody has searched on. For winners, once."""

    name = "holdout"
    needs: Needs = "engine"

    def run(self, subject: Subject, context: Context, seed: int, deadline: Deadline) -> StageResult:
        """Every item is asked, whatever the first ones say."""
        bench, plan = context.engine_bench(self.name), context.plan
        accuracy = accuracy_result(self.name, subject, bench, plan.accuracy, seed, deadline, stop_early=False)
        text = perplexity_result(self.name, subject, bench, seed, plan.perplexity.max_ratio)
        return StageResult(
            self.name,
            passed=accuracy.passed and text.passed,
            metrics=accuracy.metrics | text.metrics,
            items=accuracy.items | text.items,
            info=accuracy.info | text.info,
            failure=accuracy.failure or text.failure,
        )


def accuracy_result(
    stage: str,
    subject: Subject,
    bench: Bench,
    plan: AccuracyPlan,
    seed: int,
    deadline: Deadline,
    *,
    stop_early: bool,
) -> StageResult:
    """Ask a subject the retrieval items of a seed and compare it with dense."""
    reference = bench.reference(seed)
    items = bench.prompts(seed).items
    batches = items.batches(items.in_order(plan.gate_items), plan.batch)
    total = sum(map(len, batches))
    asked: list[Place] = []
    stopped = False
    for batch in batches:
        asked += batch
        answers = bench.answer(subject, seed, batch, deadline)
        ours, dense = _pairs(answers, reference, asked)
        verdict = stats.sequential_verdict(
            ours, dense, margin=plan.margin, looks=len(batches), level=plan.level
        )
        if stop_early and verdict == "fail":
            stopped = len(asked) < total
            break
    delta = stats.paired_difference(ours, dense, plan.level)
    test = stats.mcnemar_exact(ours, dense)
    metrics = {
        "accuracy": _proportion(ours, plan.level),
        "accuracy_delta": Metric(delta.value, delta.low, delta.high, n=delta.n),
        "accuracy_density": Metric(
            sum(answers.density) / len(answers.density), unit="of pages", higher_is_better=False, n=len(ours)
        ),
    }
    for task in sorted({key.split("@")[0] for key, _ in asked}):
        scores = [answers.scores[p] for p in asked if p[0].split("@")[0] == task]
        metrics[task] = _proportion(scores, plan.level)
    info = _by_task(bench, answers, reference, asked) | {
        "stopped_early": stopped,
        "gained": test.gained,
        "lost": test.lost,
        "mcnemar_p": round(test.p_value, 4),
        "noninferior": stats.is_noninferior(delta, plan.margin),
        "margin": plan.margin,
        "lost_items": _lost(bench, answers, reference, asked),
    }
    scores_by_task: dict[str, list[float]] = {}
    for key, i in sorted(asked):
        scores_by_task.setdefault(key, []).append(answers.scores[key, i])
    result = StageResult(stage, passed=True, metrics=metrics, items=scores_by_task, info=info)
    if verdict != "fail":
        return result
    found, base = sum(ours) / len(ours), sum(dense) / len(dense)
    detail = f"{test.lost} lost and {test.gained} gained of {len(ours)} items"
    return failed(stage, accuracy_too_low(found, base, plan.margin, detail), result)


def perplexity_result(stage: str, subject: Subject, bench: Bench, seed: int, max_ratio: float) -> StageResult:
    """Force the passages of a seed through a subject and compare with dense, token by token."""
    reference = bench.reference(seed)
    decoded = bench.continuation(subject, seed)
    ours = [value for passage in decoded.logprobs for value in passage]
    dense = [value for passage in reference.logprobs for value in passage]
    level = stats.bootstrap_mean(ours, seed=seed)
    gap = stats.bootstrap_paired(ours, dense, seed=seed)
    ratio = _exp_of_minus(gap)
    per_passage = [
        perplexity([a]) / perplexity([b]) for a, b in zip(decoded.logprobs, reference.logprobs, strict=True)
    ]
    metrics = {
        "perplexity": replace(_exp_of_minus(level), higher_is_better=False),
        "perplexity_ratio": replace(ratio, higher_is_better=False),
        "density": Metric(decoded.density, unit="of pages", higher_is_better=False, n=len(ours)),
    }
    info = {
        "dense_perplexity": perplexity(reference.logprobs),
        "ratio_by_passage": [round(value, 4) for value in per_passage],
        "wilcoxon_p": round(stats.wilcoxon(ours, dense), 4),
        "swap_seconds": round(bench.swap_seconds, 3),
    }
    result = StageResult(stage, passed=True, metrics=metrics, items={"perplexity": ours}, info=info)
    if ratio.value <= max_ratio:
        return result
    return failed(stage, perplexity_too_high(ratio.value, max_ratio), result)


def _exp_of_minus(interval: stats.Interval) -> Metric:
    """A mean log-probability, or a difference of two, as a perplexity or a ratio of them."""
    return Metric(math.exp(-interval.value), math.exp(-interval.high), math.exp(-interval.low), n=interval.n)


def _pairs(
    answers: Answers, reference: DenseReference, places: Sequence[Place]
) -> tuple[list[float], list[float]]:
    return [answers.scores[p] for p in places], [reference.scores[key][i] for key, i in places]


def _proportion(scores: Sequence[float], level: float) -> Metric:
    interval = stats.wilson(sum(scores), len(scores), level)
    return Metric(interval.value, interval.low, interval.high, n=len(scores))


def _by_task(
    bench: Bench, answers: Answers, reference: DenseReference, places: Sequence[Place]
) -> dict[str, Any]:
    """Accuracy per task and context beside dense, and the task that lost most."""
    table = {}
    for key in dict.fromkeys(k for k, _ in places):
        chosen = [p for p in places if p[0] == key]
        ours, dense = _pairs(answers, reference, chosen)
        n = len(chosen)
        table[key] = {"accuracy": sum(ours) / n, "dense": sum(dense) / n, "n": n}
    worst = min(table, key=lambda k: table[k]["accuracy"] - table[k]["dense"])
    return {"tasks": table, "worst_task": worst, "swap_seconds": round(bench.swap_seconds, 3)}


def _lost(
    bench: Bench, answers: Answers, reference: DenseReference, places: Sequence[Place]
) -> list[dict[str, Any]]:
    """Some items that dense has right and the candidate wrong, for the agent."""
    found = []
    for key, i in places:
        if reference.scores[key][i] > answers.scores[key, i]:
            item = bench.prompts(answers.seed).items.needles[key][i]
            found.append(
                {
                    "task": key,
                    "depth": round(item.depth, 2),
                    "needle_tokens": [item.needle_start, item.needle_end],
                    "wanted": item.answer,
                    "said": answers.texts[key, i].strip()[:40],
                }
            )
    return found[:_EXAMPLES]

"""Stage `accuracy`: retrieval items, paired with dense. What the gate and the hold-out measure as well is here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evaluators import stats
from evaluators.errors import accuracy_too_low
from evaluators.results import Metric, StageResult
from evaluators.sequential import paired_scores, sequential_test
from evaluators.stages.base import Context, Deadline, Needs, failed
from vortex_core.ir.flow import Flow

if TYPE_CHECKING:
    from evaluators.answers import Answers, Place
    from evaluators.bench import Bench
    from evaluators.plan import AccuracyPlan
    from evaluators.reference import DenseReference

_EXAMPLES = 4  # lost items shown to the agent


class AccuracyStage:
    """Retrieval items, paired with dense, until it is settled whether the candidate keeps the margin."""

    name = "accuracy"
    needs: Needs = "engine"
    settings = None

    def run(self, flow: Flow, context: Context, seed: int, deadline: Deadline) -> StageResult:
        """Passes unless the candidate is surely worse than dense by more than the margin."""
        bench, plan = context.engine_bench(self.name), context.plan.accuracy
        return accuracy_result(self.name, flow, bench, plan, seed, deadline, stop_early=True)


def accuracy_result(
    stage: str,
    flow: Flow,
    bench: Bench,
    plan: AccuracyPlan,
    seed: int,
    deadline: Deadline,
    *,
    stop_early: bool,
) -> StageResult:
    """Ask a flow the retrieval items of a seed and compare it with dense."""
    reference = bench.reference(seed)
    items = bench.prompts(seed).items
    batches = items.batches(items.in_order(plan.gate_items), plan.batch)
    total = sum(map(len, batches))
    asked: list[Place] = []
    stopped = False
    for batch in batches:
        asked += batch
        answers = bench.answer(flow, seed, batch, deadline)
        ours, dense = pairs(answers, reference, asked)
        # By items and not by looks: the error holds however many batches there are.
        found = sequential_test(
            [a - b for a, b in zip(ours, dense, strict=True)],
            margin=plan.margin, tolerated=plan.margin, error=1 - plan.level,
        )  # fmt: skip
        if stop_early and (found.outcome == "reject" or (found.outcome == "accept" and plan.accept_early)):
            stopped = len(asked) < total
            break
    delta = paired_scores(ours, dense, plan.level)
    # Of scores that are shares the sign test, which for right and wrong is McNemar's.
    test = stats.mcnemar_exact(
        [float(a > b) for a, b in zip(ours, dense, strict=True)],
        [float(a < b) for a, b in zip(ours, dense, strict=True)],
    )
    metrics = {
        "accuracy": proportion(ours, plan.level),
        "accuracy_delta": Metric(delta.value, delta.low, delta.high, n=delta.n),
        "accuracy_density": Metric(
            sum(answers.density) / len(answers.density), unit="of pages", higher_is_better=False, n=len(ours)
        ),
    }
    for task in sorted({key.split("@")[0] for key, _ in asked}):
        places = [p for p in asked if p[0].split("@")[0] == task]
        metrics[task] = proportion([answers.scores[p] for p in places], plan.level)
        samples = max(items.needles[key][i].samples for key, i in places)
        if samples > 1:
            metrics[f"{task}_pass_at_{samples}"] = proportion([answers.passed[p] for p in places], plan.level)
    metrics["answer_tokens"] = answer_tokens(answers, reference, asked)
    info = by_task(bench, answers, reference, asked) | {
        "stopped_early": stopped,
        "gained": test.gained,
        "lost": test.lost,
        "mcnemar_p": round(test.p_value, 4),
        "noninferior": stats.is_noninferior(delta, plan.margin),
        "standing": stats.standing(delta, plan.margin),
        "sequential": found.outcome,
        "margin": plan.margin,
        "lost_items": _lost(bench, answers, reference, asked),
    }
    scores_by_task: dict[str, list[float]] = {}
    for key, i in sorted(asked):
        scores_by_task.setdefault(key, []).append(answers.scores[key, i])
    result = StageResult(stage, passed=True, metrics=metrics, items=scores_by_task, info=info)
    if found.outcome != "reject" and delta.high >= -plan.margin:
        return result
    share, base = sum(ours) / len(ours), sum(dense) / len(dense)
    detail = f"{test.lost} lost and {test.gained} gained of {len(ours)} items"
    return failed(stage, accuracy_too_low(share, base, plan.margin, detail), result)


def answer_tokens(answers: Answers, reference: DenseReference, places: Sequence[Place]) -> Metric:
    """Tokens of an answer over dense's, items together: a candidate that answers at greater length pays in steps."""
    ours = sum(answers.tokens[p] for p in places)
    dense = sum(reference.tokens[key][i] for key, i in places)
    return Metric(ours / dense, unit="x dense", higher_is_better=False, n=len(places))


def pairs(
    answers: Answers, reference: DenseReference, places: Sequence[Place]
) -> tuple[list[float], list[float]]:
    return [answers.scores[p] for p in places], [reference.scores[key][i] for key, i in places]


def proportion(scores: Sequence[float], level: float) -> Metric:
    interval = stats.wilson(sum(scores), len(scores), level)
    return Metric(interval.value, interval.low, interval.high, n=len(scores))


def by_task(
    bench: Bench, answers: Answers, reference: DenseReference, places: Sequence[Place]
) -> dict[str, Any]:
    """Accuracy per task and context beside dense, and the task that lost most."""
    table = {}
    for key in dict.fromkeys(k for k, _ in places):
        chosen = [p for p in places if p[0] == key]
        ours, dense = pairs(answers, reference, chosen)
        n = len(chosen)
        table[key] = {"accuracy": sum(ours) / n, "dense": sum(dense) / n, "n": n}
        table[key]["tokens"] = round(sum(answers.tokens[p] for p in chosen) / n, 1)
        table[key]["dense_tokens"] = round(sum(reference.tokens[k][i] for k, i in chosen) / n, 1)
        samples = max(bench.prompts(answers.seed).items.needles[key][i].samples for _, i in chosen)
        if samples > 1:
            table[key]["samples"] = samples
            table[key]["pass"] = sum(answers.passed[p] for p in chosen) / n
            table[key]["dense_pass"] = sum(reference.passed[k][i] for k, i in chosen) / n
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
                    **item.about,
                    "wanted": item.answer,
                    "said": answers.texts[key, i].strip()[:40],
                }
            )
    return found[:_EXAMPLES]

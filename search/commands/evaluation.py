"""Where search meets the evaluators: which stages serve which purpose, and evaluation without a cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evaluators.plan import EvaluationPlan, load_plan
from evaluators.results import StageResult
from evaluators.stages.base import resource
from evaluators.stages.registry import FRESH, HOLDOUT, STAGES
from evaluators.tasks.items import FRESH_SEEDS
from search.campaign.archive import Verdict, check
from search.config import Objective
from search.errors import bad_value
from search.log.events import Purpose
from vortex_core.ir.flow import Flow

SERVING = "serving"
SECOND = "second"
"""The sealed items, answered by a model that the search never saw."""
SCREENS = ("screen", "full_screen")
"""Stages on recorded attention, by the purpose they are named as: in few layers, and in more."""

_OFFSETS: dict[Purpose, int] = {
    "search": 0, "screen": 0, "full_screen": 0, "fresh": FRESH_SEEDS, "holdout": 2 * FRESH_SEEDS,
    "serving": 3 * FRESH_SEEDS, "second": 2 * FRESH_SEEDS,
}  # fmt: skip


def stage_table(plan: EvaluationPlan, device: str = "cpu") -> dict[Purpose, list[tuple[str, bool]]]:
    """For each purpose its stages in order, each with whether it runs where the engine is, which is on `device`."""
    named: dict[Purpose, tuple[str, ...]] = {"search": plan.stages, "fresh": FRESH, "holdout": HOLDOUT}
    named["serving"] = (SERVING,)
    table: dict[Purpose, list[tuple[str, bool]]] = {
        purpose: [(name, resource(STAGES.get(name), device) == "engine") for name in names]
        for purpose, names in named.items()
    }
    return table | {
        "screen": [("screen", False)],
        "full_screen": [("full_screen", False)],
        "second": [(SECOND, False)],
    }


def evaluation_seed(seed: int, purpose: Purpose) -> int:
    """Seed of the items of a purpose: no two purposes of any campaigns share items.

    Raises:
        VortexError: `VS010`, for a campaign seed that would run into another purpose's range.
    """
    if not 0 <= seed < FRESH_SEEDS:
        raise bad_value("--seed", seed, f"from 0 to {FRESH_SEEDS - 1}")
    return seed + _OFFSETS[purpose]


def evaluate_once(
    flow: Flow,
    model: str,
    plan: EvaluationPlan | str,
    seed: int,
    on_stage: Callable[[str], None],
    *,
    device: str = "auto",
) -> list[StageResult]:
    """Take one flow through the search stages in this process.

    CPU stages come first and need no model, so a flow that they stop costs no loading.

    Args:
        plan: or its name.
        on_stage: called with the name of each stage before it runs.
        device: of the engine: `auto`, `cpu` or `cuda`.

    Raises:
        VortexError: unknown plan, missing weights, a seed out of range, no GPU (`VV009`).
    """
    from evaluators.device import choose_device
    from evaluators.worker import EvaluationWorker, run_cpu_stage

    plan = load_plan(plan) if isinstance(plan, str) else plan
    items, device = evaluation_seed(seed, "search"), choose_device(device)
    worker: EvaluationWorker | None = None
    results: list[StageResult] = []
    for stage, on_engine in stage_table(plan, device)["search"]:
        if on_engine and worker is None:
            on_stage("loading the model, answering densely")
            worker = EvaluationWorker(model, plan, device=device)
            worker.prepare(items)
        on_stage(stage)
        if worker is None:
            results.append(run_cpu_stage(stage, flow, model, plan, items))
        else:
            results.append(worker.run(stage, flow, items))
        if not results[-1].passed:
            break
    return results


@dataclass(frozen=True)
class Judgement:
    """What an evaluation amounts to.

    Attributes:
        passed: every stage passed, and no gate is broken.
        word: for people: of the gates, or of the stage that stopped it.
        open_points: gates that are not proven, in words.
        devices: what was measured on, in words.
    """

    passed: bool
    word: str
    open_points: tuple[str, ...]
    devices: tuple[str, ...]


def judge(results: Sequence[StageResult], objective: Objective) -> Judgement:
    """Results under a campaign's gates, as its leaderboard would have them."""
    metrics = {name: found for result in results for name, found in result.metrics.items()}
    labels = (str(r.info["measured_on"]) for r in results if r.info.get("measured_on"))
    devices = tuple(dict.fromkeys(labels))
    stopped = next((result.stage for result in results if not result.passed), None)
    if stopped is not None:
        return Judgement(False, f"stopped at {stopped}", (), devices)
    checks = [check(gate, metrics.get(gate.metric)) for gate in objective.gates]
    verdict = max((v for v, _ in checks), default=Verdict.PROVEN)
    words = {
        Verdict.PROVEN: "kept",
        Verdict.UNCLEAR: "kept by value, not proven by the intervals",
        Verdict.FAILED: "broken",
    }
    points = tuple(said for v, said in checks if v is not Verdict.PROVEN)
    return Judgement(verdict is not Verdict.FAILED, words[verdict], points, devices)


def asked_at(plan: EvaluationPlan) -> str:
    """Items and contexts of a plan, in words."""
    tasks = ", ".join(
        f"{task.items} x {task.task} at {task.context:,} tokens" for task in plan.accuracy.tasks
    )
    shrunk = (
        "" if plan.reads is None else f" (written for models that read {plan.reads:,}; shorter for others)"
    )
    return f"{tasks}, {plan.accuracy.batch} answered together{shrunk}"

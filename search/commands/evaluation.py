"""Where search meets the evaluators: which stages serve which purpose, and evaluation without a cluster."""

from __future__ import annotations

from collections.abc import Callable

from evaluators.plan import EvaluationPlan, load_plan
from evaluators.results import StageResult
from evaluators.stages.base import resource
from evaluators.stages.registry import FRESH, HOLDOUT, STAGES
from evaluators.tasks.items import FRESH_SEEDS
from search.errors import bad_value
from search.log.events import Purpose
from vortex_core.ir.flow import Flow

_OFFSETS: dict[Purpose, int] = {"search": 0, "fresh": FRESH_SEEDS, "holdout": 2 * FRESH_SEEDS}


def stage_table(plan: EvaluationPlan, device: str = "cpu") -> dict[Purpose, list[tuple[str, bool]]]:
    """For each purpose its stages in order, each with whether it runs where the engine is, which is on `device`."""
    named: dict[Purpose, tuple[str, ...]] = {"search": plan.stages, "fresh": FRESH, "holdout": HOLDOUT}
    return {
        purpose: [(name, resource(STAGES.get(name), device) == "engine") for name in names]
        for purpose, names in named.items()
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
    flow: Flow, model: str, plan_name: str, seed: int, on_stage: Callable[[str], None]
) -> list[StageResult]:
    """Take one flow through the search stages in this process.

    CPU stages come first and need no model, so a flow that they stop costs no loading.

    Args:
        on_stage: called with the name of each stage before it runs.

    Raises:
        VortexError: unknown plan, missing weights, a seed out of range.
    """
    from evaluators.worker import EvaluationWorker, run_cpu_stage

    plan = load_plan(plan_name)
    items = evaluation_seed(seed, "search")
    worker: EvaluationWorker | None = None
    results: list[StageResult] = []
    for stage, on_engine in stage_table(plan)["search"]:
        if on_engine and worker is None:
            on_stage("loading the model, answering densely")
            worker = EvaluationWorker(model, plan)
            worker.prepare(items)
        on_stage(stage)
        if worker is None:
            results.append(run_cpu_stage(stage, flow, model, plan, items))
        else:
            results.append(worker.run(stage, flow, items))
        if not results[-1].passed:
            break
    return results

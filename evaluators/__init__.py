"""Evaluators: the stages that measure a candidate, from free to expensive. Names load on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluators.plan import EvaluationPlan, list_plans, load_plan
    from evaluators.stages.registry import FRESH, HOLDOUT, SEARCH, STAGES
    from evaluators.worker import EvaluationWorker, evaluate, run_cpu_stage

_HOME = {
    "EvaluationPlan": "plan",
    "list_plans": "plan",
    "load_plan": "plan",
    "FRESH": "stages.registry",
    "HOLDOUT": "stages.registry",
    "SEARCH": "stages.registry",
    "STAGES": "stages.registry",
    "EvaluationWorker": "worker",
    "evaluate": "worker",
    "run_cpu_stage": "worker",
}

__all__ = [
    "EvaluationPlan",
    "EvaluationWorker",
    "FRESH",
    "HOLDOUT",
    "SEARCH",
    "STAGES",
    "evaluate",
    "list_plans",
    "load_plan",
    "run_cpu_stage",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"evaluators.{_HOME[name]}"), name)
    raise AttributeError(f"module 'evaluators' has no attribute {name!r}")

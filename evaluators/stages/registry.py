"""The stages in order: each is cheaper than the next and may stop the candidate."""

from __future__ import annotations

from evaluators.errors import unknown_stage
from evaluators.stages.accuracy import AccuracyStage, GateStage, HoldoutStage, PerplexityStage
from evaluators.stages.base import Stage
from evaluators.stages.cpu import CompileStage, ParityStage, StaticStage
from evaluators.stages.recall import RecallStage
from evaluators.stages.speed import LatencyStage, ModelledStage

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        StaticStage(),
        CompileStage(),
        ParityStage(),
        ModelledStage(),
        RecallStage(),
        GateStage(),
        AccuracyStage(),
        PerplexityStage(),
        LatencyStage(),
        HoldoutStage(),
    )
}

# What a candidate runs through while searching, when measured again on fresh items, and as a winner.
SEARCH = ("static", "compile", "parity", "modelled", "recall", "gate", "accuracy", "perplexity", "latency")
FRESH = ("accuracy", "perplexity")
HOLDOUT = ("holdout",)


def get_stage(name: str) -> Stage:
    """A stage by name.

    Raises:
        VortexError: `VV004` for an unknown name.
    """
    if name not in STAGES:
        raise unknown_stage(name, list(STAGES))
    return STAGES[name]

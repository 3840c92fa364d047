"""Stages by name. Each is cheaper than the next and may stop the candidate.

Another distribution adds one through an entry point of the group `vortex_search.stages`, whose value is the
stage's class; a plan then names it in `stages` and may hold a section of that name (docs/extending/stage.md).
"""

from __future__ import annotations

from functools import cache

from evaluators.stages.base import Stage
from vortex_core.registry import Registry

_HERE = "evaluators.stages"

STAGES: Registry[type[Stage]] = Registry(
    "evaluation stage",
    {
        "static": f"{_HERE}.static:StaticStage",
        "compile": f"{_HERE}.compile:CompileStage",
        "machine_code": f"{_HERE}.machine_code:MachineCodeStage",
        "parity": f"{_HERE}.parity:ParityStage",
        "modelled": f"{_HERE}.modelled:ModelledStage",
        "screen": f"{_HERE}.screen:ScreenStage",
        "recall": f"{_HERE}.recall:RecallStage",
        "gate": f"{_HERE}.gate:GateStage",
        "accuracy": f"{_HERE}.accuracy:AccuracyStage",
        "perplexity": f"{_HERE}.perplexity:PerplexityStage",
        "decode": f"{_HERE}.decode:DecodeStage",
        "holdout": f"{_HERE}.holdout:HoldoutStage",
        "serving": f"{_HERE}.serving:ServingStage",
    },
    group="vortex_search.stages",
    code="VV004",
)

# What a candidate runs through while searching where the plan does not say, when measured again on fresh items,
# and as a winner.
SEARCH = ("static", "compile", "parity", "modelled", "recall", "gate", "accuracy", "perplexity", "decode")
FRESH = ("accuracy", "perplexity")
HOLDOUT = ("holdout",)


@cache
def get_stage(name: str) -> Stage:
    """This process's stage of a name; the same object every time, so that it may keep what is slow to start.

    Raises:
        VortexError: `VV004` for an unknown name.
    """
    return STAGES.get(name)()

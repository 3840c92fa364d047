"""Compile the kernels of many programs on all cores before a GPU runs them: each is found in Triton's cache then."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from evaluators.plan import EvaluationPlan
from evaluators.stages.machine_code import launched
from vortex_core.errors import VortexError
from vortex_core.geometry import Geometry
from vortex_core.ir.flow import Flow
from vortex_core.specs import ModelSpec


def _compile(flows: list[Flow], plan: EvaluationPlan, geometry: Geometry, target: str) -> list[str]:
    """Compile programs one after another; what was left out, with the code that says why."""
    from vortex_core.compiler.triton.ahead import compile_ahead

    left = []
    for flow in flows:
        try:
            compile_ahead(flow.program, flow.knobs, geometry, launched(plan, flow.knobs), target, threads=1)
        except VortexError as error:
            left.append(f"{flow.name} {error.code}")
    return left


def compile_flows(
    plan: EvaluationPlan, model: ModelSpec, flows: Sequence[Flow], target: str = "sm_90a", processes: int = 0
) -> list[str]:
    """Compile what a plan's stages will launch, programs of one name in one process: budgets share most kernels.

    Returns:
        The programs that do not compile, with the code that says why.
    """
    by_name: dict[str, list[Flow]] = {}
    for flow in flows:
        by_name.setdefault(flow.name, []).append(flow)
    count = min(processes or len(os.sched_getaffinity(0)), len(by_name))
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        # The slowest to compile are not known before; the longest programs come first.
        parts = sorted(by_name.values(), key=lambda part: -len(part[0].program.to_json()))
        work = [pool.submit(_compile, part, plan, model.geometry(), target) for part in parts]
        return sorted(name for done in as_completed(work) for name in done.result())

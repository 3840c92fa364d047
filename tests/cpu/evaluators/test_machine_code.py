"""Machine code is made without a GPU, and what takes too long ends the candidate."""

from __future__ import annotations

import pytest
import torch

from evaluators.plan import load_plan
from evaluators.stages.base import Context, run_stage
from evaluators.stages.machine_code import MachineCodeStage
from vortex_core import library
from vortex_core.compiler.triton import ahead
from vortex_core.specs import load_model

PLAN = load_plan("gpu")
CONTEXT = Context(PLAN, load_model("smollm2-135m"))


def test_every_kernel_reports_registers_spills_and_shared_memory() -> None:
    result = run_stage(MachineCodeStage(), library.load("block_topk").flow, CONTEXT, 0)
    assert result.passed, result.failure
    kernels = result.info["kernels"]["sm_90a"]
    assert {"score_kernel", "update_kernel"} <= set(kernels)
    assert all(0 < k["registers"] <= 255 and k["spills"] == 0 for k in kernels.values())
    assert result.metrics["machine_code_seconds"].value > 0


def test_a_program_that_compiles_for_too_long_answers_for_it() -> None:
    plan = PLAN.model_copy(update={"deadlines": {**PLAN.deadlines, "machine_code": 1e-6}})
    result = run_stage(MachineCodeStage(), library.load("quest").flow, Context(plan, CONTEXT.model), 0)
    assert result.failure is not None
    assert (result.failure.kind, result.failure.error["code"]) == ("candidate", "VV010")


def test_selection_from_long_rows_compiles() -> None:
    """At 32k tokens a row holds two thousand pages, which another search is made for."""
    context = Context(PLAN, load_model("qwen3-1.7b"))
    flow = library.load("quest").flow.with_knobs(page_size=16, budget="512")
    result = run_stage(MachineCodeStage(), flow, context, 0)
    assert result.passed, result.failure


@pytest.mark.parametrize(
    ("weights", "queries"),
    [("bf16", "bfloat16"), ("fp8", "bfloat16"), ("fp16", "float16"), ("fp32", "float32")],
)
def test_kernels_are_of_the_queries_that_an_engine_has(
    weights: str, queries: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others would be compiled in vain, and the engine's own while it holds a GPU."""
    asked: list[torch.dtype] = []
    monkeypatch.setattr(ahead, "compile_ahead", lambda *about, dtype: asked.append(dtype) or {})
    model = CONTEXT.model.model_copy(update={"dtype": weights})
    assert run_stage(MachineCodeStage(), library.load("quest").flow, Context(PLAN, model), 0).passed
    assert asked == [getattr(torch, queries)]

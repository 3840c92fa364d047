"""The serving stage around engines that answer in known times."""

from __future__ import annotations

from typing import Any

import pytest

from evaluators.plan import EvaluationPlan, load_plan
from evaluators.stages.base import Context, run_stage
from evaluators.stages.serving import ServingSettings, ServingStage
from vortex_core import library
from vortex_core.ir.flow import Flow
from vortex_core.serving.client import Answer
from vortex_core.serving.settings import Settings
from vortex_core.specs import load_model


class FakeEngine:
    """Prefill takes a second the first time, a decode step `step` seconds."""

    def __init__(self, step: float, status: dict[str, Any] | None) -> None:
        self.step, self.status, self.closed, self.seen = step, status, False, 0

    def generate(self, ids: list[list[int]], new: int) -> Answer:
        prefill, self.seen = 0.0 if self.seen else 1.0, self.seen + 1
        return Answer(prefill + 0.05 + new * self.step, [[0] * new for _ in ids], [0] * len(ids))

    def close(self) -> None:
        self.closed = True


class FakeStage(ServingStage):
    """Starts fakes."""

    def __init__(self, reported: str) -> None:
        super().__init__()
        self.reported, self.started = reported, []

    def start(self, setup: ServingSettings, settings: Settings | None, page_size: int) -> FakeEngine:
        status = None if settings is None else {"ir_hash": self.reported, "density": 0.1}
        engine = FakeEngine(0.020 if settings is None else 0.005, status)
        self.started.append(engine)
        return engine


def _candidate(page_size: int = 16) -> Flow:
    traced = library.load("quest").with_knobs(page_size=page_size)
    return traced.flow


SETUP = {"model": "org/model", "vocabulary": 100, "batch": 4, "context": 64}
PLAN = EvaluationPlan.model_validate(load_plan("quick").model_dump() | {"serving": SETUP})
CONTEXT = Context(PLAN, load_model("qwen3-1.7b"))


def test_a_difference_needs_two_lengths() -> None:
    with pytest.raises(ValueError, match=r"serving: long 5 is not above short 17"):
        EvaluationPlan.model_validate(load_plan("quick").model_dump() | {"serving": SETUP | {"long": 5}})


def test_prefill_is_no_part_of_a_step() -> None:
    stage = FakeStage(_candidate().ir_hash)
    result = run_stage(stage, _candidate(), CONTEXT, seed=1)
    assert result.passed
    assert result.metrics["serving_speedup"].value == pytest.approx(4.0)
    assert result.metrics["serving_tps"].value == pytest.approx(4 / 0.005)
    assert result.metrics["serving_tpot_ms"].value == pytest.approx(5.0)
    assert result.metrics["serving_ttft_cached_ms"].value == pytest.approx(55.0)
    assert result.info["density"] == 0.1


def test_the_dense_engine_stays_warm_between_candidates_of_one_page_size() -> None:
    stage = FakeStage(_candidate().ir_hash)
    for _ in range(2):
        run_stage(stage, _candidate(), CONTEXT, seed=1)
    dense, *candidates = stage.started
    assert len(candidates) == 2
    assert all(engine.closed for engine in candidates)
    assert not dense.closed
    run_stage(stage, _candidate(64), CONTEXT, seed=1)
    assert dense.closed
    stage.close()
    assert all(engine.closed for engine in stage.started)


def test_a_server_that_ran_something_else_is_no_result() -> None:
    stage = FakeStage("0" * 16)
    result = run_stage(stage, _candidate(), CONTEXT, seed=1)
    assert not result.passed
    assert result.failure is not None
    assert (result.failure.kind, result.failure.error["code"]) == ("infrastructure", "VV110")
    assert stage.started[-1].closed

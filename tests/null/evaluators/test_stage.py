from __future__ import annotations

import time

import pytest

from evaluators.errors import (
    accuracy_too_low,
    backend_crashed,
    needs_engine,
    not_what_ran,
    parity_failed,
    too_slow,
)
from evaluators.plan import load_plan
from evaluators.reference import DenseReference
from evaluators.results import Metric, StageResult
from evaluators.stages.base import Context, Deadline, run_stage
from vortex_core import library
from vortex_core.errors import VortexError
from vortex_core.ir.flow import Flow
from vortex_core.specs import load_model

TRACED = library.load("quest")
CANDIDATE = TRACED.flow
CONTEXT = Context(load_plan("quick"), load_model("smollm2-135m"))


class Probe:
    """A stage that does what it is told."""

    name = "probe"
    needs = "cpu"
    settings = None

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def run(self, flow: Flow, context: Context, seed: int, deadline: Deadline) -> StageResult:
        if self.error is not None:
            raise self.error
        return StageResult(self.name, passed=True, metrics={"m": Metric(1.0)})


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (parity_failed("torch", 1, 2, ""), "candidate"),
        (accuracy_too_low(0.1, 0.9, 0.1, ""), "candidate"),
        (too_slow("recall", 9.0, ""), "candidate"),
        (VortexError("VF012", "x"), "candidate"),
        (VortexError("VE013", "x"), "candidate"),
        (VortexError("VE019", "x"), "candidate"),
        (VortexError("VE050", "x"), "candidate"),
        (VortexError("VE010", "x"), "user"),
        (VortexError("VM004", "x"), "user"),
        (VortexError("VE055", "x"), "infrastructure"),
        (backend_crashed("torch", "x"), "infrastructure"),
        (not_what_ran("a", "b"), "infrastructure"),
        (needs_engine("recall"), "infrastructure"),
    ],
)
def test_failures_are_typed(error: VortexError, kind: str) -> None:
    result = run_stage(Probe(error), CANDIDATE, CONTEXT, 0)
    assert result.failure is not None
    assert result.failure.kind == kind
    assert StageResult.from_json(result.to_json()) == result


def test_the_kv_dtype_code_is_the_engines() -> None:
    from vortex_core.engine.errors import unsupported_kv_dtype

    assert unsupported_kv_dtype("fp8_e4m3", "bf16").fault == "candidate"


def test_bugs_are_not_results() -> None:
    with pytest.raises(ZeroDivisionError):
        run_stage(Probe(ZeroDivisionError()), CANDIDATE, CONTEXT, 0)


def test_results_carry_their_time() -> None:
    result = run_stage(Probe(), CANDIDATE, CONTEXT, 0)
    assert result.passed
    assert 0 < result.seconds < 5


def test_a_deadline_ends_the_slow() -> None:
    Deadline("x", None).check("nothing")
    Deadline("x", 60).check("nothing")
    late = Deadline("x", 1.0, started=time.perf_counter() - 2)
    with pytest.raises(VortexError) as caught:
        late.check("3 of 9")
    assert caught.value.code == "VV010"
    assert "3 of 9" in str(caught.value)


def test_stages_without_an_engine_say_so() -> None:
    with pytest.raises(VortexError) as caught:
        CONTEXT.engine_bench("accuracy")
    assert caught.value.code == "VV006"
    with pytest.raises(VortexError) as caught:
        CONTEXT.engine_speed("decode")
    assert caught.value.code == "VV006"


def test_dense_references_round_trip_and_refuse_strangers() -> None:
    reference = DenseReference(
        "identity",
        "items",
        "m",
        0,
        {"a": [1.0, 0.0]},
        {"a": ["x", "y"]},
        {"a": [1.0, 0.0]},
        {"a": [3.0, 2.0]},
        [[-1.0]],
    )
    assert DenseReference.from_json(reference.to_json()) == reference
    assert reference.accuracy == 0.5
    for broken in ({"plan": "p"}, reference.to_json() | {"more": 1}):
        with pytest.raises(VortexError) as caught:
            DenseReference.from_json(broken)
        assert caught.value.code == "VV005"

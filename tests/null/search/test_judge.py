"""One flow under a campaign's gates, without a campaign."""

from __future__ import annotations

import pytest

from evaluators.results import Failure, Metric, StageResult
from search.commands.evaluation import judge
from search.config import Gate, Objective
from vortex_core.errors import VortexError

OBJECTIVE = Objective(gates=(Gate(metric="accuracy_delta", at_least=-0.1),))


def accuracy(value: float, low: float) -> StageResult:
    metrics = {"accuracy_delta": Metric(value, low, value)}
    return StageResult("accuracy", True, metrics, info={"measured_on": "m on NVIDIA H100"})


@pytest.mark.parametrize(
    ("value", "low", "passed", "word"),
    [(0.0, -0.05, True, "kept"), (0.0, -0.2, True, "kept by value"), (-0.3, -0.4, False, "broken")],
)
def test_gates_decide(value: float, low: float, passed: bool, word: str):
    found = judge([StageResult("static", True), accuracy(value, low)], OBJECTIVE)
    assert found.passed is passed
    assert found.word.startswith(word)
    assert found.devices == ("m on NVIDIA H100",)
    assert bool(found.open_points) == (word != "kept")


def test_who_was_stopped_has_not_passed():
    error = VortexError("VV105", "worse than dense", "attend more")
    found = judge([StageResult("gate", False, failure=Failure.of(error))], OBJECTIVE)
    assert (found.passed, found.word) == (False, "stopped at gate")


def test_a_gate_that_nothing_measured_is_broken():
    assert not judge([StageResult("static", True)], OBJECTIVE).passed

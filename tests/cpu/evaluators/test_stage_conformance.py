"""The stages that ship pass the public suite."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from evaluators.bench import Bench
from evaluators.plan import EvaluationPlan
from evaluators.stages.base import Context
from evaluators.stages.registry import STAGES
from evaluators.testing import StageConformance
from evaluators.worker import EvaluationWorker
from vortex_core.engine import Engine

EVERYTHING: dict[str, Any] = {"budget": "length"}


class TestStatic(StageConformance):
    stage = "static"
    stopped = ("quest", EVERYTHING)


class TestCompile(StageConformance):
    stage = "compile"


class TestParity(StageConformance):
    stage = "parity"
    section: ClassVar[dict[str, Any]] = {"pages": [0.1, 1, 4.5], "seeds": [0], "tie_tolerance": 1e-4}


class TestModelled(StageConformance):
    stage = "modelled"
    section: ClassVar[dict[str, Any]] = {"gpus": ["h200"]}


class OnEngine(StageConformance):
    """A stage on the tiny random model, which answers nothing right: sparse answers are as good as dense ones."""

    bench: ClassVar[Bench]
    tiny: ClassVar[EvaluationPlan]

    @pytest.fixture(autouse=True)
    def _bench(self, engine: Engine, plan: EvaluationPlan) -> None:
        data = plan.model_dump() | {"stages": [self.stage]}
        if self.section is not None:
            data |= {self.stage: self.section}
        type(self).tiny = EvaluationPlan.model_validate(data)
        worker = EvaluationWorker.of_engine(engine, self.tiny)
        type(self).bench = worker.bench

    def plan(self) -> EvaluationPlan:
        return self.tiny

    def context(self) -> Context:
        return Context(self.tiny, self.bench.engine.spec, self.bench, speed=self.bench.resident)


class TestRecall(OnEngine):
    stage = "recall"
    section: ClassVar[dict[str, Any]] = {
        "needle_items": 1,
        "perplexity_items": 1,
        "steps": 2,
        "min_recall": 0.5,
    }
    passes = "dense"
    stopped = ("streaming", {"budget": "32", "keep_last": 1})


class TestGate(OnEngine):
    stage = "gate"


class TestPerplexity(OnEngine):
    stage = "perplexity"
    passes = "dense"


class TestDecode(OnEngine):
    stage = "decode"
    section: ClassVar[dict[str, Any]] = {"contexts": [600], "steps": 2, "rounds": 2}


def test_no_stage_is_left_out() -> None:
    suites = (*StageConformance.__subclasses__(), *OnEngine.__subclasses__())
    rest = set(STAGES.names()) - {suite.stage for suite in suites if suite is not OnEngine}
    assert rest == {"accuracy", "holdout", "machine_code", "screen", "serving"}, "asked in tests of their own"

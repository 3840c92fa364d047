"""What every stage must do. Subclass `StageConformance` in a test module and let pytest collect it.

    class TestMine(StageConformance):
        stage = "mine"                      # registered, or installed through an entry point
        section = {"limit": 3}              # its section of a plan, if it has one

Only plain asserts: the suite needs no test framework to be imported.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, ClassVar, get_args

from evaluators.plan import EvaluationPlan, load_plan
from evaluators.results import StageResult
from evaluators.stages.base import Context, Needs, Stage, run_stage
from evaluators.stages.registry import STAGES
from vortex_core import library
from vortex_core.ir.flow import Flow
from vortex_core.specs import load_model

_HEAVY = ("torch", "transformers", "triton", "ray")


class StageConformance:
    """The contract of `evaluators.stages.base.Stage`, as tests.

    Attributes:
        stage: its name in plans.
        section: its section of a plan; None: it has none.
        passes: library flow that passes it.
        stopped: library flow and knobs that it stops; None: it stops nobody.
    """

    stage: ClassVar[str]
    section: ClassVar[dict[str, Any] | None] = None
    passes: ClassVar[str] = "quest"
    stopped: ClassVar[tuple[str, dict[str, Any]] | None] = None

    def made(self) -> Stage:
        """The stage, made as evaluations make it."""
        return STAGES.get(self.stage)()

    def plan(self) -> EvaluationPlan:
        """A plan whose only stage it is."""
        data = load_plan("quick").model_dump() | {"stages": [self.stage]}
        return EvaluationPlan.model_validate(
            data if self.section is None else data | {self.stage: self.section}
        )

    def context(self) -> Context:
        """What it runs against. Stages that need an engine override this with a bench."""
        return Context(self.plan(), load_model("smollm2-135m"))

    def candidate(self, flow: str, **knobs: Any) -> Flow:
        """A library flow as a candidate."""
        return library.load(flow).flow.with_knobs(**knobs)

    def run(self, flow: str, **knobs: Any) -> StageResult:
        """Run it on a library flow."""
        return run_stage(self.made(), self.candidate(flow, **knobs), self.context(), 0)

    def test_the_name_is_the_registered_one(self) -> None:
        """Plans, events and the class call it the same; it is made without arguments."""
        made = self.made()
        assert made.name == self.stage
        assert made.needs in get_args(Needs)

    def test_its_section_is_strict_and_survives_json(self) -> None:
        """A plan reads it back; an unknown key is refused with its place."""
        plan = self.plan()
        assert EvaluationPlan.model_validate(json.loads(json.dumps(plan.model_dump(mode="json")))) == plan
        if self.made().settings is None:
            assert self.section is None, "a section without a model: set `settings`"
            return
        wrong = {**(self.section or {}), "no_such_key": 1}
        said = ""
        try:
            EvaluationPlan.model_validate(plan.model_dump() | {self.stage: wrong})
        except ValueError as error:
            said = str(error)
        assert f"{self.stage}.no_such_key" in said, "derive `settings` from StageSettings, which is strict"

    def test_reading_a_plan_imports_nothing_heavy(self) -> None:
        """The driver of a campaign reads plans without torch: import it inside `run`."""
        code = (
            "import sys\nfrom evaluators.stages.registry import STAGES\n"
            f"STAGES.get({self.stage!r})\nprint([m for m in {_HEAVY!r} if m in sys.modules])"
        )
        told = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{code}"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert told.stdout.strip() == "[]", told.stdout + told.stderr

    def test_a_good_candidate_passes(self) -> None:
        """With results that cross a process boundary unchanged."""
        result = self.run(self.passes)
        assert result.passed, result.failure
        assert result.stage == self.stage
        assert StageResult.from_json(json.loads(json.dumps(result.to_json()))) == result

    def test_intervals_hold_their_value(self) -> None:
        """Where a metric has an interval, its value lies inside."""
        for name, metric in self.run(self.passes).metrics.items():
            assert metric.low is None or metric.low <= metric.value, name
            assert metric.high is None or metric.value <= metric.high, name

    def test_it_keeps_nothing_of_a_candidate(self) -> None:
        """One object serves all candidates: what it says of one does not depend on the one before."""
        made, context = self.made(), self.context()
        alone = run_stage(made, self.candidate(self.passes), context, 0)
        run_stage(made, self.candidate("streaming"), context, 0)
        again = run_stage(made, self.candidate(self.passes), context, 0)
        assert (again.passed, again.items, again.metrics.keys()) == (
            alone.passed,
            alone.items,
            alone.metrics.keys(),
        )

    def test_a_bad_candidate_is_stopped_and_told_why(self) -> None:
        """With a failure that is the candidate's own, a code and a remedy."""
        if self.stopped is None:
            return
        flow, knobs = self.stopped
        result = self.run(flow, **knobs)
        assert not result.passed
        assert result.failure is not None
        assert result.failure.kind == "candidate", result.failure
        assert result.failure.error["code"]
        assert result.failure.error["remedy"]

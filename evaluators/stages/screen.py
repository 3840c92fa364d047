"""Stage `screen`: a flow's selections on recorded attention, at several budgets at once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field, PositiveInt, field_validator, model_validator

from evaluators.errors import screened_out
from evaluators.results import Metric, StageResult
from evaluators.stages.base import Context, Deadline, Needs, failed
from evaluators.stages.settings import StageSettings
from vortex_core.errors import VortexError
from vortex_core.ir.budget import Budget
from vortex_core.ir.flow import Flow

if TYPE_CHECKING:
    from evaluators.plan import EvaluationPlan
    from evaluators.screen import ScreenPoint


class ScreenSettings(StageSettings):
    """Attention recorded while the dense model answered, and the budgets at which flows are scored on it."""

    retrieval_items: int = Field(
        1, ge=0, description="retrieval prompts recorded, of the longest tasks first"
    )
    passages: int = Field(1, ge=0, description="held passages recorded")
    most_tokens: PositiveInt = Field(
        2048, description="tasks of longer prompts are not recorded, where others are shorter"
    )
    steps: PositiveInt = Field(24, description="consecutive decode steps recorded behind each prompt")
    at: PositiveInt = Field(3, description="of these, evenly spaced, the ones at which selections are scored")
    layers: PositiveInt = Field(8, description="layers looked at of a flow that cannot tell layers apart")
    budgets: tuple[str, ...] = Field(("0.05 * length", "0.1 * length", "0.2 * length"), min_length=1)
    min_beyond: float = Field(
        -1,
        ge=-1,
        le=1,
        description="of the oracle's mass beyond kept pages at the flow's own budget; below it stops",
    )

    @field_validator("budgets")
    @classmethod
    def _are_budgets(cls, budgets: tuple[str, ...]) -> tuple[str, ...]:
        for text in budgets:
            try:
                Budget(text).check_everywhere()
            except VortexError as error:
                raise ValueError(error.message) from error
        return budgets

    @model_validator(mode="after")
    def _some(self) -> ScreenSettings:
        if self.retrieval_items + self.passages == 0:
            raise ValueError("the screen needs at least one recorded prompt")
        if self.at > self.steps:
            raise ValueError(f"{self.at} of {self.steps} steps")
        return self

    def check(self, plan: EvaluationPlan) -> None:
        """The prompts recorded are among the plan's items."""
        available = sum(task.items for task in plan.accuracy.tasks)
        if self.retrieval_items > available:
            raise ValueError(f"retrieval_items {self.retrieval_items} of {available} items")
        if self.passages > plan.perplexity.items:
            raise ValueError(f"passages {self.passages} of {plan.perplexity.items}")


class ScreenStage:
    """Scores the selection on what was recorded while the dense model answered; the model does not run."""

    name = "screen"
    needs: Needs = "engine"
    settings = ScreenSettings

    def run(self, flow: Flow, context: Context, seed: int, deadline: Deadline) -> StageResult:
        """Metrics at the middle budget and at the flow's own; every point is in `info`."""
        bench, plan = context.engine_bench(self.name), context.plan.section(self.name, ScreenSettings)
        score = bench.screener(seed).score(flow)
        assert score.own is not None
        middle = score.points[len(score.points) // 2]
        prompts = bench.attention(seed).prompts
        metrics = _metrics("screen", middle, prompts) | _metrics("screen_own", score.own, prompts)
        worst = None
        if middle.by_head:
            flat = [
                (value, layer, head)
                for layer, row in zip(score.layers, middle.by_head, strict=True)
                for head, value in enumerate(row)
            ]
            value, layer, head = min(flat)
            worst = {"layer": layer, "q_head": head, "beyond": value}
        info = {
            "budgets": {p.budget: _short(p) for p in score.points},
            "own_budget": score.own.budget,
            "layers": list(score.layers),
            "beyond_by_layer": [round(sum(row) / len(row), 3) for row in middle.by_head],
            # One word a layer, two hex digits a query head (ff is 1), as recall's.
            "beyond_by_head": [
                bytes(int(255 * min(1.0, max(0.0, v)) + 0.5) for v in row).hex() for row in middle.by_head
            ],
            "worst_head": worst,
        }
        result = StageResult(self.name, passed=True, metrics=metrics, info=info)
        if score.own.beyond >= plan.min_beyond:
            return result
        return failed(self.name, screened_out(score.own.beyond, plan.min_beyond), result)


def _metrics(prefix: str, point: ScreenPoint, prompts: int) -> dict[str, Metric]:
    """The numbers of a point; intervals are two standard errors over prompts."""
    half = None if point.beyond_se is None else 2 * point.beyond_se
    beyond = Metric(point.beyond, unit="of hindsight's", n=prompts, how="recorded")
    if half is not None:
        beyond = replace(beyond, low=point.beyond - half, high=point.beyond + half)
    found = {
        f"{prefix}_beyond": beyond,
        f"{prefix}_output_error": Metric(
            point.output_error, unit="of its square", higher_is_better=False, n=prompts, how="recorded"
        ),
        f"{prefix}_density": Metric(
            point.density, unit="of pages", higher_is_better=False, n=prompts, how="recorded"
        ),
    }
    if point.logit_error is not None:
        found[f"{prefix}_logit_error"] = Metric(
            point.logit_error, unit="nats", higher_is_better=False, n=prompts, how="recorded"
        )
    return found


def _short(point: ScreenPoint) -> dict[str, float | None]:
    return {
        "density": round(point.density, 4),
        "recall": round(point.recall, 4),
        "beyond": round(point.beyond, 4),
        "output_error": round(point.output_error, 5),
        "logit_error": None if point.logit_error is None else round(point.logit_error, 5),
    }

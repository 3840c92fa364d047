"""The recall stage: attention mass captured, per layer and head, beside what hindsight would capture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, PositiveInt, model_validator

from evaluators.errors import recall_too_low
from evaluators.results import Metric, StageResult
from evaluators.stages.base import Context, Deadline, Needs, failed
from evaluators.stages.settings import StageSettings
from vortex_core.ir.flow import Flow

if TYPE_CHECKING:
    from evaluators.plan import EvaluationPlan


class RecallSettings(StageSettings):
    """Attention mass captured, on queries recorded while the dense model answered."""

    needle_items: int = Field(
        ge=0, description="items of the longest retrieval task whose queries are recorded"
    )
    perplexity_items: int = Field(ge=0, description="held passages whose queries are recorded")
    steps: PositiveInt = Field(description="decode steps recorded of each")
    min_recall: float = Field(ge=0, le=1, description="mean over layers, heads and prompts; below it stops")

    @model_validator(mode="after")
    def _some(self) -> RecallSettings:
        if self.needle_items + self.perplexity_items == 0:
            raise ValueError("recall needs at least one recorded prompt")
        return self

    def check(self, plan: EvaluationPlan) -> None:
        """The prompts recorded are among the plan's items."""
        longest = max(plan.accuracy.tasks, key=lambda t: t.context)
        if self.needle_items > longest.items:
            raise ValueError(
                f"recall.needle_items {self.needle_items} of {longest.items} {longest.key} items"
            )
        if self.perplexity_items > plan.perplexity.items:
            raise ValueError(
                f"recall.perplexity_items {self.perplexity_items} of {plan.perplexity.items} passages"
            )
        if self.steps > plan.perplexity.continuation:
            raise ValueError(f"recall.steps {self.steps} of {plan.perplexity.continuation} tokens")


class RecallStage:
    """Scores the selection on queries recorded while the dense model answered; the model does not run."""

    name = "recall"
    needs: Needs = "engine"
    settings = RecallSettings

    def run(self, flow: Flow, context: Context, seed: int, deadline: Deadline) -> StageResult:
        """The interval is the range over prompts."""
        from evaluators.recall import measure_recall
        from vortex_core.compiler import backends

        bench, plan = context.engine_bench(self.name), context.plan.section(self.name, RecallSettings)
        engine = bench.engine
        compiled = backends.get(engine.backend).compile(flow.program, flow.knobs, engine.geometry)
        score = measure_recall(compiled, bench.recording(seed))
        recall = float(score.recall.mean())
        per_prompt = score.recall.mean((0, 1))
        per_layer = score.recall.mean((1, 2))
        per_head = score.recall.mean(2)  # [layer, q_head]
        worst_layer = int(per_layer.argmin())
        flat = int(per_head.argmin())
        worst_head = divmod(flat, per_head.shape[1])
        relative = recall / max(float(score.oracle.mean()), 1e-9)
        metrics = {
            "recall": Metric(
                recall, float(per_prompt.min()), float(per_prompt.max()), unit="of mass", n=len(per_prompt)
            ),
            "recall_vs_oracle": Metric(relative, n=len(per_prompt)),
        }
        info = {
            "recall_by_layer": [round(v, 3) for v in per_layer.tolist()],
            # One word a layer, two hex digits a query head (ff is 1): a map of 36 x 32 heads in 2 kB of the log.
            "recall_by_head": [bytes(int(255 * v + 0.5) for v in row).hex() for row in per_head.tolist()],
            "density_by_layer": [round(v, 3) for v in score.density.tolist()],
            "worst_layer": {"layer": worst_layer, "recall": round(float(per_layer[worst_layer]), 3)},
            "worst_head": {
                "layer": worst_head[0],
                "q_head": worst_head[1],
                "recall": round(float(per_head.flatten()[flat]), 3),
            },
            "recall_interval": "lowest and highest prompt",
        }
        result = StageResult(self.name, passed=True, metrics=metrics, info=info)
        if recall >= plan.min_recall:
            return result
        worst = f"worst layer {worst_layer} at {float(per_layer[worst_layer]):.3f}"
        return failed(self.name, recall_too_low(recall, plan.min_recall, worst), result)

"""Stage `holdout`: accuracy and perplexity on the sealed items."""

from __future__ import annotations

from evaluators.results import StageResult
from evaluators.stages.accuracy import accuracy_result
from evaluators.stages.base import Context, Deadline, Needs
from evaluators.stages.perplexity import perplexity_result
from vortex_core.ir.flow import Flow


class HoldoutStage:
    """Accuracy and perplexity on items nobody has searched on. For winners, once."""

    name = "holdout"
    needs: Needs = "engine"
    settings = None

    def run(self, flow: Flow, context: Context, seed: int, deadline: Deadline) -> StageResult:
        """Every item is asked, whatever the first ones say."""
        bench, plan = context.engine_bench(self.name), context.plan
        accuracy = accuracy_result(self.name, flow, bench, plan.accuracy, seed, deadline, stop_early=False)
        text = perplexity_result(self.name, flow, bench, seed, plan.perplexity.max_ratio)
        return StageResult(
            self.name,
            passed=accuracy.passed and text.passed,
            metrics=accuracy.metrics | text.metrics,
            items=accuracy.items | text.items,
            info=accuracy.info | text.info,
            failure=accuracy.failure or text.failure,
        )

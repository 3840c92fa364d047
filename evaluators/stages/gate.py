"""Stage `gate`: a few items of every task, so that hopeless candidates cost little."""

from __future__ import annotations

from evaluators.errors import accuracy_too_low
from evaluators.results import StageResult
from evaluators.sequential import paired_scores
from evaluators.stages.accuracy import by_task, pairs, proportion
from evaluators.stages.base import Context, Deadline, Needs, failed
from vortex_core.ir.flow import Flow


class GateStage:
    """A few items of every task: a candidate that is surely far worse than dense stops here."""

    name = "gate"
    needs: Needs = "engine"
    settings = None

    def run(self, flow: Flow, context: Context, seed: int, deadline: Deadline) -> StageResult:
        """The accuracy stage reuses these answers."""
        bench, plan = context.engine_bench(self.name), context.plan.accuracy
        reference = bench.reference(seed)
        places = [
            (key, i)
            for key, items in bench.prompts(seed).items.needles.items()
            for i in range(min(plan.gate_items, len(items)))
        ]
        answers = bench.answer(flow, seed, places, deadline)
        ours, dense = pairs(answers, reference, places)
        surely_worse = paired_scores(ours, dense, plan.level).high < -plan.gate_margin
        metrics = {"gate_accuracy": proportion(ours, plan.level)}
        result = StageResult(
            self.name, passed=True, metrics=metrics, info=by_task(bench, answers, reference, places)
        )
        if not surely_worse:
            return result
        found, base = sum(ours) / len(ours), sum(dense) / len(dense)
        error = accuracy_too_low(found, base, plan.gate_margin, f"first {len(ours)} items")
        return failed(self.name, error, result)

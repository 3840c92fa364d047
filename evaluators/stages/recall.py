"""The recall stage: attention mass captured, per layer and head, beside what hindsight would capture."""

from __future__ import annotations

from evaluators.errors import recall_too_low
from evaluators.recall import measure_recall
from evaluators.results import Metric, StageResult
from evaluators.stages.base import Context, Deadline, Needs, Subject, failed
from vortex_core.compiler import backends


class RecallStage:
    """Scores the selection on queries recorded while the dense model answered; the model does not run."""

    name = "recall"
    needs: Needs = "engine"

    def run(self, subject: Subject, context: Context, seed: int, deadline: Deadline) -> StageResult:
        """The interval is the range over prompts."""
        bench, plan = context.engine_bench(self.name), context.plan.recall
        compiled = backends.get("torch").compile(subject.program, subject.knobs, bench.engine.geometry)
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

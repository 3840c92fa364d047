"""Stage `latency`: decode time per step, measured here."""

from __future__ import annotations

import statistics

from pydantic import Field, PositiveInt

from evaluators import stats
from evaluators.results import Metric, StageResult
from evaluators.stages.base import Context, Deadline, Needs
from evaluators.stages.settings import Decoded, StageSettings
from vortex_core.ir.flow import Flow


class LatencySettings(StageSettings):
    """Decode latency, candidate and dense in turn in one process."""

    context: PositiveInt
    batch: PositiveInt
    steps: PositiveInt = Field(description="timed steps of each arm per round")
    warmup: int = Field(1, ge=0, description="steps of each arm per round that are not timed")
    rounds: PositiveInt = Field(description="times both arms are run, order alternating")

    def decodes(self) -> Decoded:
        """Its own prompts, beside the plan's items."""
        return Decoded(self.batch, self.context, self.steps + self.warmup)


class LatencyStage:
    """Decode time per step, candidate and dense in turn in one process, order alternating between rounds."""

    name = "latency"
    needs: Needs = "engine"
    settings = LatencySettings

    def run(self, flow: Flow, context: Context, seed: int, deadline: Deadline) -> StageResult:
        """Medians; the ratio's interval resamples steps."""
        bench, plan = context.engine_bench(self.name), context.plan.section(self.name, LatencySettings)
        steps = plan.warmup + plan.steps
        times: dict[str, list[float]] = {"candidate": [], "dense": []}
        density = 1.0
        with bench.long_prompts(plan.context, plan.batch, seed) as prompts:
            for index in range(plan.rounds):
                deadline.check(f"{index} of {plan.rounds} rounds")
                arms = ["candidate", "dense"] if index % 2 == 0 else ["dense", "candidate"]
                for arm in arms:
                    if arm == "candidate":
                        result = bench.decode(flow, prompts, max_new_tokens=steps)
                        density = result.density
                    else:
                        with bench.resident.dense_aside():
                            result = bench.decode(None, prompts, max_new_tokens=steps)
                    times[arm] += result.step_seconds[plan.warmup :]
        speedup = stats.bootstrap_median_ratio(times["dense"], times["candidate"], seed=seed)
        ours = statistics.median(times["candidate"])
        quartiles = (
            statistics.quantiles(times["candidate"], n=4) if len(times["candidate"]) > 1 else [ours] * 3
        )
        metrics = {
            "decode_ms": Metric(
                ours * 1e3,
                quartiles[0] * 1e3,
                quartiles[2] * 1e3,
                unit="ms",
                higher_is_better=False,
                n=len(times["candidate"]),
            ),
            "decode_speedup": Metric(speedup.value, speedup.low, speedup.high, unit="x", n=speedup.n),
        }
        info = {
            "context": plan.context,
            "batch": plan.batch,
            "dense_ms": statistics.median(times["dense"]) * 1e3,
            "density": density,
            "decode_ms_interval": "quartiles",
            "swap_seconds": round(bench.swap_seconds, 3),
        }
        return StageResult(self.name, passed=True, metrics=metrics, info=info)

"""Stages about speed: latency measured here, and throughput modelled for GPUs that are not here."""

from __future__ import annotations

import statistics

from evaluators import stats
from evaluators.results import Metric, StageResult
from evaluators.stages.base import Context, Deadline, Needs, Subject
from vortex_core.specs import load_gpu, load_model


class LatencyStage:
    """Decode time per step, candidate and dense in turn in one process, order alternating between rounds."""

    name = "latency"
    needs: Needs = "engine"

    def run(self, subject: Subject, context: Context, seed: int, deadline: Deadline) -> StageResult:
        """Medians; the ratio's interval resamples steps."""
        bench, plan = context.engine_bench(self.name), context.plan.latency
        steps = plan.warmup + plan.steps
        times: dict[str, list[float]] = {"candidate": [], "dense": []}
        density = 1.0
        with bench.long_prompts(plan.context, plan.batch, seed) as prompts:
            for index in range(plan.rounds):
                deadline.check(f"{index} of {plan.rounds} rounds")
                arms = ["candidate", "dense"] if index % 2 == 0 else ["dense", "candidate"]
                for arm in arms:
                    if arm == "candidate":
                        result = bench.decode(subject, prompts, max_new_tokens=steps)
                        density = result.density
                    else:
                        with bench.flow_aside():
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


class ModelledStage:
    """Decode throughput on named GPUs by the cost model: bytes and FLOPs over the roofline. Not measured."""

    name = "modelled"
    needs: Needs = "cpu"

    def run(self, subject: Subject, context: Context, seed: int, deadline: Deadline) -> StageResult:
        """One pair of metrics per GPU, labelled modelled."""
        from vortex_core.ir.cost import modelled_decode

        plan = context.plan.modelled
        model = context.model if plan.model is None else load_model(plan.model)
        metrics: dict[str, Metric] = {}
        detail = {}
        for name in plan.gpus:
            found = modelled_decode(
                subject.program, subject.knobs, model, load_gpu(name), plan.batch, plan.length
            )
            metrics[f"modelled_tps_{name}"] = Metric(found.tokens_per_second, unit="tokens/s", how="modelled")
            metrics[f"modelled_speedup_{name}"] = Metric(found.speedup, unit="x", how="modelled")
            detail[name] = {
                "bound_by": found.bound_by,
                "dense_tokens_per_second": round(found.dense_tokens_per_second, 1),
                "density": round(found.density, 4),
            }
        info = {"model": model.name, "batch": plan.batch, "length": plan.length, "gpus": detail}
        bottleneck = detail[plan.gpus[0]]["bound_by"]
        return StageResult(self.name, passed=True, metrics=metrics, info=info | {"bottleneck": bottleneck})

"""Stage `decode`: time of a decode step beside dense attention, measured on the engine's own device."""

from __future__ import annotations

import math
import statistics
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from pydantic import Field, PositiveInt

from evaluators import stats
from evaluators.errors import decode_does_not_fit, faster_than_possible, slower_than_dense
from evaluators.results import Metric, StageResult
from evaluators.stages.base import Context, Deadline, Needs, failed
from evaluators.stages.operating import OperatingPoint, OperatingSettings
from evaluators.stages.settings import Decoded
from vortex_core.ir.flow import Flow

if TYPE_CHECKING:
    from evaluators.plan import EvaluationPlan
    from evaluators.resident import Resident
    from evaluators.timing import Timed
    from vortex_core.engine import Prompt
    from vortex_core.geometry import Geometry

# A flow whose states belong to one request works on a copy of every prompt.
_COPIES = 2


class DecodeSettings(OperatingSettings):
    """Decode steps of a candidate and of dense attention, in turn in one process."""

    steps: PositiveInt = Field(description="timed steps of each arm per round")
    warmup: int = Field(1, ge=0, description="steps of each arm per round that are not timed")
    rounds: PositiveInt = Field(description="times both arms are run, order alternating")
    least: float = Field(
        0.0,
        ge=0,
        description="speed-up over dense, of the mix of contexts: a flow whose interval lies below stops; 0: none does",
    )

    @property
    def new(self) -> int:
        """Tokens decoded behind each context."""
        return self.steps + self.warmup

    def decodes(self, plan: EvaluationPlan) -> Decoded:
        """Its own prompts, beside the plan's items."""
        return self.widest(plan, self.new)

    def lengths(self, plan: EvaluationPlan) -> tuple[int, ...]:
        """The contexts it times."""
        return tuple(self.mix(plan))


class DecodeStage:
    """Speed at the contexts at which accuracy is asked, under CUDA graphs where there is a GPU.

    `decode_speedup` is the declared mix: the geometric mean over the operating points with their weights. Intervals are
    Student's over rounds, the unit that is independent; steps of one round are not. Both arms decode the same
    random keys and values, drawn anew for each candidate; a flow whose page counts follow from the keys (top-p,
    threshold) decodes the items themselves, for random keys would time another density. Faster than the bytes
    it attended allow is no win: the stage fails. So it does where the mix is surely below `least`: a flow that loses at
    one context and gains at the others may be what is wanted.
    """

    name = "decode"
    needs: Needs = "speed"
    settings = DecodeSettings

    def run(self, flow: Flow, context: Context, seed: int, deadline: Deadline) -> StageResult:
        """One pass over the operating points."""
        from evaluators.gpu_state import gpu_state
        from evaluators.timing import time_decode

        resident = context.engine_speed(self.name)
        plan = context.plan.section(self.name, DecodeSettings)
        resident.load(flow)
        timed: list[Timed] = []
        inputs: list[str] = []
        for point in operating_points(context, plan):
            words, opened = _inputs(context, flow, point, seed)
            with opened as prompts:
                timed.append(
                    time_decode(
                        resident, flow, point, prompts, steps=plan.steps, warmup=plan.warmup,
                        rounds=plan.rounds, check=deadline.check,
                    )
                )  # fmt: skip
            inputs.append(words)
        metrics = _metrics(timed)
        rows = [
            _row(resident, flow, found, words, plan.new) for found, words in zip(timed, inputs, strict=True)
        ]
        info: dict[str, Any] = {
            "points": {str(found.point.context): row for found, row in zip(timed, rows, strict=True)},
            "ir_hash": timed[-1].ir_hash,
            "density": timed[-1].density,
            "mix": "geometric mean over contexts with their weights",
            "interval": "Student's over rounds",
            "swap_seconds": round(resident.swap_seconds, 3),
        }
        if state := gpu_state(resident.engine.device):
            info["gpu"] = state
        result = StageResult(self.name, passed=True, metrics=metrics, info=info)
        for found, row in zip(timed, rows, strict=True):
            if row.get("suspect"):
                error = faster_than_possible(found.point.context, found.step, row["least_ms"] / 1e3)
                return failed(self.name, error, result)
        mix = metrics["decode_speedup"]
        if (mix.value if mix.high is None else mix.high) < plan.least:
            by_context = {t.point.context: metrics[f"decode_speedup@{t.point.context}"].value for t in timed}
            return failed(self.name, slower_than_dense(mix.value, by_context, plan.least), result)
        return result


def operating_points(context: Context, plan: DecodeSettings) -> list[OperatingPoint]:
    """The points that the engine's pool has room for beside the prompts of the search.

    Raises:
        VortexError: `VV015` where not even one sequence fits.
    """
    resident = context.engine_speed("decode")
    engine = resident.engine
    tokens = engine.cache.blocks.total * 128
    if context.bench is not None and context.bench.resident is resident:
        tokens -= context.bench.held_tokens
    if engine.device.type == "cpu" and plan.batch == "auto":
        plan = plan.model_copy(update={"batch": 1})
    points = plan.points(context.plan, tokens, plan.new, _COPIES)
    for point in points:
        if point.batch == 0:
            raise decode_does_not_fit(point.context, tokens, str(engine.device))
    return points


def _inputs(
    context: Context, flow: Flow, point: OperatingPoint, seed: int
) -> tuple[str, AbstractContextManager[list[Prompt]]]:
    """The prompts to decode, and what they are."""
    from evaluators.timing import follows_values, random_inputs

    resident, bench = context.engine_speed("decode"), context.bench
    same = bench is not None and bench.resident is resident
    if bench is not None and same:
        if follows_values(flow.program) and point.context in {t.context for t in context.plan.accuracy.tasks}:
            asked = [p for p in bench.prompts(seed).needles.values() if p.length == point.context]
            if len(asked) >= point.batch:
                return "items", nullcontext(asked[: point.batch])
        bench.free(point.batch * _COPIES * -(-(point.context + 512) // 128), keep=seed)
    return "random keys and values", random_inputs(resident, flow, point, seed)


def _metrics(timed: list[Timed]) -> dict[str, Metric]:
    """The mix, and each point apart."""
    weights = [found.point.weight for found in timed]
    by_round = zip(*(found.ratios for found in timed), strict=True)
    logs = [sum(w * math.log(r) for w, r in zip(weights, ratios, strict=True)) for ratios in by_round]
    metrics = {"decode_speedup": _ratio(logs)}
    for found in timed:
        at, batch = found.point.context, found.point.batch
        metrics[f"decode_speedup@{at}"] = _ratio([math.log(r) for r in found.ratios])
        step = stats.mean_over_rounds([math.log(statistics.median(steps)) for steps in found.candidate])
        middle, (low, high) = math.exp(step.value), _bounds(step)
        metrics[f"decode_ms@{at}"] = Metric(
            middle * 1e3, low and low * 1e3, high and high * 1e3, unit="ms", higher_is_better=False, n=step.n
        )
        metrics[f"decode_tps@{at}"] = Metric(
            batch / middle, high and batch / high, low and batch / low, unit="tokens/s", n=step.n
        )
    return metrics


def _ratio(logs: list[float]) -> Metric:
    mean = stats.mean_over_rounds(logs)
    low, high = _bounds(mean)
    return Metric(math.exp(mean.value), low, high, unit="x", n=mean.n)


def _bounds(mean: stats.Interval) -> tuple[float | None, float | None]:
    """Back from logarithms; one round has no interval."""
    return (math.exp(mean.low), math.exp(mean.high)) if mean.n > 1 else (None, None)


def served_densely(flow: Flow, geometry: Geometry, point: OperatingPoint) -> dict[str, int]:
    """Below how many tokens engines on this machine would attend to everything, where a point lies below that.

    Timed and judged is the flow as written.
    """
    from vortex_core.compiler.triton.tuning.crossover import stored_crossover

    below = stored_crossover(flow.program, flow.knobs, geometry).tokens(point.batch)
    return {"served_dense_below": below} if below > point.context else {}


def _row(resident: Resident, flow: Flow, timed: Timed, inputs: str, new: int) -> dict[str, Any]:
    """Side information of one point: percentiles of a step, bytes, and how near the roofline both arms are."""
    from evaluators.device import device_kind
    from evaluators.roofline import described_gpu, step_bytes
    from vortex_core import library

    engine, point = resident.engine, timed.point
    steps = sorted(s for steps in timed.candidate for s in steps)
    row: dict[str, Any] = {
        "batch": point.batch,
        "weight": round(point.weight, 4),
        "inputs": inputs,
        "density": round(timed.density, 4),
        "step_ms_p50": timed.step * 1e3,
        "step_ms_p95": steps[min(len(steps) - 1, math.ceil(0.95 * len(steps)) - 1)] * 1e3,
        "dense_ms_p50": timed.dense_step * 1e3,
        "tokens_per_second": point.batch / timed.step,
    }
    if engine.device.type != "cuda":
        return row
    row |= served_densely(flow, engine.geometry, point)
    gpu = described_gpu(device_kind(engine.device))
    if gpu is None:
        return row
    import torch

    ranks = 1 if engine.sharding is None else engine.sharding.ranks.size
    shape = {
        "batch": point.batch, "length": point.context + new // 2, "kv_bytes": engine.kv_dtype.itemsize,
        "ranks": ranks,
    }  # fmt: skip
    moved = step_bytes(flow, engine.spec, density=timed.density, **shape)
    dense = step_bytes(library.load("dense"), engine.spec, density=1.0, **shape)
    least = moved.least_seconds(gpu, torch.cuda.get_device_properties(engine.device).L2_cache_size)
    return row | {
        "bytes_per_second": moved.total / timed.step,
        "roofline_share": round(moved.share(gpu, timed.step), 4),
        "dense_roofline_share": round(dense.share(gpu, timed.dense_step), 4),
        "least_ms": least * 1e3,
        "suspect": timed.step < least,
    }

"""Stage `modelled`: throughput by the cost model, for GPUs that are not here."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pydantic import Field

from evaluators.errors import decode_does_not_fit
from evaluators.results import Metric, StageResult
from evaluators.stages.base import Context, Deadline, Needs
from evaluators.stages.operating import OperatingPoint, OperatingSettings
from vortex_core.ir.flow import Flow
from vortex_core.specs import GpuSpec, ModelSpec, load_gpu, load_model

if TYPE_CHECKING:
    from evaluators.plan import EvaluationPlan
    from vortex_core.ir.modelled import ModelledDecode

# Share of the memory beside the weights that a serving engine has for keys and values: the rest are activations, graphs
# and page states.
_KV_SHARE = 0.85


_HELD = ("kv", "state", "index", "query", "update", "scratch")  # what the bytes of a launch are of


class ModelledSettings(OperatingSettings):
    """Throughput by the cost model; never a measurement, and never compared with one.

    A batch of `auto` is what each GPU named holds beside the weights; one that is given must fit.
    """

    gpus: tuple[str, ...] = Field(min_length=1, description="names in configs/hardware")
    model: str | None = Field(None, description="name in configs/models; None: the model evaluated")
    most: int = Field(256, gt=0, description="sequences that auto takes at most")

    def lengths(self, plan: EvaluationPlan) -> tuple[int, ...]:
        """The contexts it models."""
        return tuple(self.mix(plan))

    def longest(self, plan: EvaluationPlan) -> int:
        """As long a text as the model evaluated would have to read, if it is that one."""
        return max(self.mix(plan)) if self.model is None else 0


class ModelledStage:
    """Decode throughput on named GPUs by the cost model: bytes and FLOPs over the roofline. Not measured.

    A cheap filter, and an answer for GPUs that are absent. The speed-up is the geometric mean over the operating
    points with their weights.
    """

    name = "modelled"
    needs: Needs = "cpu"
    settings = ModelledSettings

    def run(self, flow: Flow, context: Context, seed: int, deadline: Deadline) -> StageResult:
        """One pair of metrics per GPU, labelled modelled.

        Raises:
            VortexError: `VV015` where a GPU does not hold an operating point.
        """
        from vortex_core.ir.modelled import modelled_decode

        plan = context.plan.section(self.name, ModelledSettings)
        model = context.model if plan.model is None else load_model(plan.model)
        metrics: dict[str, Metric] = {}
        detail: dict[str, dict[str, Any]] = {}
        bottlenecks: list[str] = []
        for name in plan.gpus:
            gpu = load_gpu(name)
            points = points_on(gpu, model, context.plan, plan)
            found = [
                modelled_decode(flow.program, flow.knobs, model, gpu, point.batch, point.context)
                for point in points
            ]
            speedup = _mean(points, [x.speedup for x in found])
            tps = _mean(points, [x.tokens_per_second for x in found])
            metrics[f"modelled_tps_{name}"] = Metric(tps, unit="tokens/s", how="modelled")
            metrics[f"modelled_speedup_{name}"] = Metric(speedup, unit="x", how="modelled")
            bottlenecks.append(found[-1].bottleneck)
            detail[name] = {str(p.context): _row(p, x) for p, x in zip(points, found, strict=True)}
        first, last = load_gpu(plan.gpus[0]), points_on(load_gpu(plan.gpus[0]), model, context.plan, plan)[-1]
        info = {
            "model": model.name,
            "gpus": detail,
            "bottleneck": bottlenecks[0],
            "roofline": _launches(flow, model, first, last),
        }
        return StageResult(self.name, passed=True, metrics=metrics, info=info)


def _launches(flow: Flow, model: ModelSpec, gpu: GpuSpec, point: OperatingPoint) -> dict[str, str]:
    """A selecting layer's launches at the last operating point: time on the roofline, and bytes by what they hold."""
    from vortex_core.ir.launches import launch_costs
    from vortex_core.ir.modelled import roofline_seconds

    found: dict[str, str] = {}
    program, geometry = flow.program.canonical(), model.geometry()
    for launch in launch_costs(
        program, flow.knobs, geometry, batch=point.batch, length=point.context, kv_bytes=flow.knobs.kv_bytes
    ):
        cost = launch.cost
        held = {name: getattr(cost, f"{name}_bytes") for name in _HELD}
        bytes_ = ", ".join(f"{name} {value / 1e6:.3g} MB" for name, value in held.items() if value)
        name = launch.kind if launch.kind not in found else f"{launch.kind} {len(found)}"
        found[name] = f"{roofline_seconds([cost], gpu) * 1e6:.3g} us{f' ({bytes_})' if bytes_ else ''}"
    return found


def points_on(
    gpu: GpuSpec, model: ModelSpec, plan: EvaluationPlan, settings: ModelledSettings
) -> list[OperatingPoint]:
    """The operating points that a GPU holds beside the model's weights.

    Raises:
        VortexError: `VV015` where it does not.
    """
    tokens = int(gpu.kv_capacity_tokens(model) * _KV_SHARE)
    points = settings.points(plan, tokens, new=1)
    for point in points:
        if point.batch == 0 or point.batch * (point.context + 1) > gpu.kv_capacity_tokens(model):
            raise decode_does_not_fit(point.context, tokens, f"a {gpu.product} with {model.name}")
    return points


def _mean(points: list[OperatingPoint], values: list[float]) -> float:
    return math.exp(sum(p.weight * math.log(v) for p, v in zip(points, values, strict=True)))


def _row(point: OperatingPoint, found: ModelledDecode) -> dict[str, Any]:
    return {
        "batch": point.batch,
        "weight": round(point.weight, 4),
        "speedup": round(found.speedup, 4),
        "step_ms": round(found.seconds_per_step * 1e3, 4),
        "bound_by": found.bound_by,
        "dense_tokens_per_second": round(found.dense_tokens_per_second, 1),
        "density": round(found.density, 4),
    }

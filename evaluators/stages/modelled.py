"""Stage `modelled`: throughput by the cost model, for GPUs that are not here."""

from __future__ import annotations

from pydantic import Field, PositiveInt

from evaluators.results import Metric, StageResult
from evaluators.stages.base import Context, Deadline, Needs
from evaluators.stages.settings import StageSettings
from vortex_core.ir.flow import Flow
from vortex_core.specs import load_gpu, load_model


class ModelledSettings(StageSettings):
    """Throughput by the cost model; never a measurement."""

    gpus: tuple[str, ...] = Field(min_length=1, description="names in configs/hardware")
    model: str | None = Field(None, description="name in configs/models; None: the model evaluated")
    batch: PositiveInt
    length: PositiveInt = Field(description="tokens of context of each sequence")

    def lengths(self) -> tuple[int, ...]:
        """The length it models."""
        return (self.length,)

    def longest(self) -> int:
        """As long a text as the model evaluated would have to read, if it is that one."""
        return self.length if self.model is None else 0


class ModelledStage:
    """Decode throughput on named GPUs by the cost model: bytes and FLOPs over the roofline. Not measured."""

    name = "modelled"
    needs: Needs = "cpu"
    settings = ModelledSettings

    def run(self, flow: Flow, context: Context, seed: int, deadline: Deadline) -> StageResult:
        """One pair of metrics per GPU, labelled modelled."""
        from vortex_core.ir.cost import modelled_decode

        plan = context.plan.section(self.name, ModelledSettings)
        model = context.model if plan.model is None else load_model(plan.model)
        metrics: dict[str, Metric] = {}
        detail = {}
        for name in plan.gpus:
            found = modelled_decode(flow.program, flow.knobs, model, load_gpu(name), plan.batch, plan.length)
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

"""What a measured decode step moved, by the realised density, and what no step can beat."""

from __future__ import annotations

from dataclasses import dataclass

from vortex_core.ir.flow import Flow
from vortex_core.ir.launches import layer_costs
from vortex_core.ir.layers import LayerPlan
from vortex_core.specs import GpuSpec, ModelSpec, list_gpus, load_gpu


@dataclass(frozen=True)
class StepBytes:
    """Bytes of one decode step on each GPU that holds a part of the model.

    Attributes:
        weights: read once; of a mixture of experts those that a batch is expected to touch.
        least_weights: those of a batch that all goes to the same experts.
        kv: keys and values of the pages attended.
        states: page states read and written.
        other: queries, scores, lists and what passes between launches.
    """

    weights: float
    least_weights: float
    kv: float
    states: float
    other: float

    @property
    def total(self) -> float:
        """Everything."""
        return self.weights + self.kv + self.states + self.other

    def least_seconds(self, gpu: GpuSpec, cached: float) -> float:
        """A time that no step can beat: weights and attended KV, less what the L2 cache may hold, at the datasheet's
        bandwidth."""
        return max(0.0, self.least_weights + self.kv - cached) / gpu.hbm_bandwidth

    def share(self, gpu: GpuSpec, seconds: float) -> float:
        """Share of the roofline: all bytes at the bandwidth that a good kernel reaches, over the time taken."""
        return self.total / gpu.usable_bandwidth / seconds


def step_bytes(
    flow: Flow, model: ModelSpec, *, batch: int, length: int, density: float, kv_bytes: float, ranks: int = 1
) -> StepBytes:
    """Bytes of a step of a flow that attended `density` of the pages of its sparse layers.

    Args:
        kv_bytes: bytes of a cached channel.
        ranks: GPUs that hold the model together; each is taken to move an equal part.
    """
    program, knobs = flow.program, flow.knobs
    costs = layer_costs(program, knobs, model.geometry(), batch=batch, length=length, kv_bytes=kv_bytes)
    sparse = [leader is not None for leader in LayerPlan(program.canonical(), knobs, model.layers).leader]
    planned = [cost.density for cost, chosen in zip(costs, sparse, strict=True) if chosen]
    scale = density * len(planned) / sum(planned) if planned else 1.0
    kv = sum(c.kv_bytes * (scale if chosen else 1.0) for c, chosen in zip(costs, sparse, strict=True))
    return StepBytes(
        weights=model.weight_bytes_read_per_step(batch) / ranks,
        least_weights=model.weight_bytes_read_per_step(1) / ranks,
        kv=kv / ranks,
        states=sum(c.state_bytes + c.update_bytes for c in costs) / ranks,
        other=sum(c.query_bytes + c.index_bytes + c.scratch_bytes for c in costs) / ranks,
    )


def described_gpu(product: str) -> GpuSpec | None:
    """The description of a GPU by the name its driver gives (`NVIDIA H100 80GB HBM3`); None where there is none."""
    words = product.lower().split()
    return next((load_gpu(name) for name in list_gpus() if name in words), None)

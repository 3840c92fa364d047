"""How long a decode step takes on a named GPU at best: the time no kernel can beat, and an assumed cost per launch.

Everything here is modelled; nothing is measured. The usable bandwidth is that of `GpuSpec` (measured where it was). For
dense decode of a Qwen3-1.7B shape on an H100 (batch 16, 32k tokens) the model gives 21.2 ms a step, where SGLang with
FlashAttention 3 was measured at 21.4 ms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from vortex_core.ir.cost import Cost
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.launches import dense_program, layer_launches
from vortex_core.ir.program import Program

if TYPE_CHECKING:
    from vortex_core.specs import GpuSpec, ModelSpec


@dataclass(frozen=True)
class ModelledDecode:
    """A modelled decode step of a whole model. Never a measurement.

    Attributes:
        tokens_per_second: over the batch.
        seconds_per_step: one token for every sequence.
        dense_tokens_per_second: the same model with full attention.
        speedup: over dense.
        bound_by: the largest part of the step: `kv`, `weights`, `states`, `launches`, `layers`, `compute`, `other`.
        density: share of tokens that a kv head reads, mean over layers.
        launches: kernels of attention, over all layers; a mean over steps where selections are kept for some.
        parts: seconds by part.
    """

    tokens_per_second: float
    seconds_per_step: float
    dense_tokens_per_second: float
    speedup: float
    bound_by: str
    density: float
    launches: float
    parts: Mapping[str, float]

    @property
    def bottleneck(self) -> str:
        """The largest part that a flow decides: neither `weights` nor `layers`, which every flow's step has."""
        return max(self.parts.keys() - {"weights", "layers"}, key=lambda part: (self.parts[part], part))


def kernel_seconds(cost: Cost, gpu: GpuSpec) -> float:
    """The larger of moving a launch's bytes and doing its arithmetic."""
    compute = cost.tensor_flops / gpu.bf16_flops + cost.vector_flops / gpu.fp32_flops
    return max(cost.bytes / gpu.usable_bandwidth, compute)


def roofline_seconds(launches: Iterable[Cost], gpu: GpuSpec) -> float:
    """Time of some launches, one after the other, with the assumed cost of each launch."""
    return sum(kernel_seconds(x, gpu) + x.launches * gpu.launch_overhead_assumed for x in launches)


def modelled_decode(
    program: Program, knobs: Knobs, model: ModelSpec, gpu: GpuSpec, batch: int, length: int
) -> ModelledDecode:
    """Modelled decode throughput of a whole model: weights once a step, every layer's attention, launches, and what a
    layer takes beside both (`GpuSpec.layer_overhead`)."""
    weights = model.weight_bytes_read_per_step(batch) / gpu.usable_bandwidth
    others = gpu.layer_overheads(model)
    dense = Knobs(page_size=knobs.page_size, budget="length")
    geometry, kv_bytes = model.geometry(), knobs.kv_bytes
    dense_layers = layer_launches(dense_program(), dense, geometry, batch=batch, length=length)
    layers = layer_launches(program, knobs, geometry, batch=batch, length=length, kv_bytes=kv_bytes)
    dense_seconds = weights + others + sum(_parts(chain(*dense_layers), gpu).values())
    launches = list(chain(*layers))
    parts = {"weights": weights, "layers": others, **_parts(launches, gpu)}
    seconds = sum(parts.values())
    return ModelledDecode(
        tokens_per_second=batch / seconds,
        seconds_per_step=seconds,
        dense_tokens_per_second=batch / dense_seconds,
        speedup=dense_seconds / seconds,
        bound_by=max(parts, key=lambda k: parts[k]),
        density=sum(cost.density for cost in launches) / len(layers),
        launches=sum(cost.launches for cost in launches),
        parts=parts,
    )


def _parts(launches: Iterable[Cost], gpu: GpuSpec) -> dict[str, float]:
    """Seconds of launches by what they are spent on."""
    parts = dict.fromkeys(("kv", "states", "other", "launches", "compute"), 0.0)
    for cost in launches:
        parts["kv"] += cost.kv_bytes / gpu.usable_bandwidth
        parts["states"] += (cost.state_bytes + cost.update_bytes) / gpu.usable_bandwidth
        parts["other"] += (cost.query_bytes + cost.index_bytes + cost.scratch_bytes) / gpu.usable_bandwidth
        parts["compute"] += kernel_seconds(cost, gpu) - cost.bytes / gpu.usable_bandwidth
        parts["launches"] += cost.launches * gpu.launch_overhead_assumed
    return parts

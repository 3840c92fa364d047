"""What a program's decode step costs, part by part, for whoever changes it next: modelled, where speed is asked."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from search.config import CampaignConfig
from search.log.state import CampaignState
from vortex_core.errors import VortexError
from vortex_core.ir.cost import kv_row_bytes, state_bytes
from vortex_core.ir.flow import Flow
from vortex_core.ir.launches import launch_costs
from vortex_core.ir.modelled import modelled_decode, roofline_seconds
from vortex_core.specs import ModelSpec, load_gpu

_PREFIX = "modelled_speedup_"


def costs(flow: Flow, state: CampaignState, config: CampaignConfig, model: dict[str, Any]) -> dict[str, Any]:
    """Where a step's time goes, the launches of a layer, and what each state takes; empty where it cannot be known.

    Args:
        model: description of the model served.
    """
    name, dense = config.objective.speed, next((c for c in state.candidates.values() if c.is_dense), None)
    if dense is None or not name.startswith(_PREFIX):
        return {}
    gpu_name = name.removeprefix(_PREFIX)
    points = (dense.info().get("modelled") or {}).get("gpus", {}).get(gpu_name) or {}
    try:
        spec, gpu = ModelSpec.model_validate(model), load_gpu(gpu_name)
    except (ValidationError, VortexError):  # a model told in other words, a third party's metric
        return {}
    if not points:
        return {}
    context = max(map(int, points))
    batch = points[str(context)]["batch"]
    program, knobs, geometry = flow.program.canonical(), flow.knobs, spec.geometry()
    step = modelled_decode(program, knobs, spec, gpu, batch, context)
    total = sum(step.parts.values())
    launches: dict[str, str] = {}
    for launch in launch_costs(
        program, knobs, geometry, batch=batch, length=context, kv_bytes=knobs.kv_bytes
    ):
        kind = launch.kind if launch.kind not in launches else f"{launch.kind} {len(launches)}"
        launches[kind] = f"{roofline_seconds([launch.cost], gpu) * 1e6:.3g} us"
    whole, sizes = kv_row_bytes(geometry, knobs.kv_bytes), geometry.symbols(knobs.page_size)
    kept = []
    for declared in flow.program.page_states:
        share = geometry.kv_heads * state_bytes(declared, sizes) / knobs.page_size / whole
        dims = " x ".join(f"{dim}={extent}" for dim, extent in declared.dims)
        kept.append(f"{declared.dtype} {dims or 'one number'} {share:.3g}")
    return {
        "at": f"{context} tokens x {batch} sequences, {gpu.product}",
        "bottleneck": step.bottleneck,
        "step": ", ".join(
            f"{part} {seconds / total:.0%}"
            for part, seconds in sorted(step.parts.items(), key=lambda item: -item[1])
            if seconds >= 0.005 * total
        ),
        "launches of a layer": ", ".join(f"{kind} {time}" for kind, time in launches.items()),
        "state_share by state": "; ".join(kept),
    }

"""`vortex-search explain`: the cost model's account of a flow, as plain values."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from search.commands.crossovers import crossover_map
from vortex_core.compiler.triton.launch_plan import launch_plan
from vortex_core.compiler.triton.tuning.results import describe
from vortex_core.flow.trace import Traced
from vortex_core.ir.cost import kv_row_bytes, page_cost, state_bytes_per_token
from vortex_core.ir.launches import recording_cost, step_cost
from vortex_core.ir.layers import LayerPlan
from vortex_core.ir.modelled import kernel_seconds, modelled_decode, roofline_seconds
from vortex_core.specs import GpuSpec, ModelSpec, list_models, load_model


def explanation(
    traced: Traced, model: str, gpu: GpuSpec, *, batch: int, length: int, flow: str = ""
) -> dict[str, Any]:
    """One decode step of a flow: a sparse layer in detail, the whole model in sum. All of it modelled.

    Args:
        model: a described model, or a directory or hub id whose configuration gives the dimensions.
        batch: sequences decoded together.
        length: tokens in each.
        flow: how the user names it, for the command that would tune it.

    Raises:
        VortexError: unknown model, or one whose dimensions cannot be read.
    """
    spec = dimensions(model)
    geometry, program, knobs = spec.geometry(), traced.program, traced.knobs
    kv_bytes = knobs.kv_bytes
    cost = step_cost(program, knobs, geometry, batch=batch, length=length, kv_bytes=kv_bytes)
    state = state_bytes_per_token(program, knobs, geometry)
    share = state / kv_row_bytes(geometry, kv_bytes)
    page = page_cost(program, knobs, geometry, kv_bytes)
    plan = launch_plan(program, knobs, geometry, batch=batch, length=length, kv_bytes=kv_bytes)
    whole = modelled_decode(program, knobs, spec, gpu, batch, length)
    command = f"vortex-search tune {flow or traced.name} --model {model} --batch {batch} --context {length}"
    tuning = describe(program, knobs, geometry, batch=batch, length=length, command=command)
    measure = f"vortex-search tune {flow or traced.name} --model {model} --crossover"
    crossover = crossover_map(program, knobs, spec, gpu, command=measure)
    layer = {
        "launches": cost.launches,
        "bytes: queries and outputs": cost.query_bytes,
        "bytes: page states": cost.state_bytes,
        "bytes: scores and page lists": cost.index_bytes,
        "bytes: keys and values": cost.kv_bytes,
        "bytes: state updates": cost.update_bytes,
        "bytes: values passed between launches": cost.scratch_bytes,
        "bytes in all": cost.bytes,
        "FLOPs: contractions and attention": cost.tensor_flops,
        "FLOPs: the rest": cost.vector_flops,
        "a completed page, bytes": page.bytes,
        "a completed page, FLOPs": page.flops,
        "share of tokens that a kv head reads": cost.density,
        "state bytes per token": state,
        "state bytes per token, share of KV": share,
        "roofline seconds": roofline_seconds((launch.cost for launch in plan.launches), gpu),
    }
    return {
        "flow": traced.name,
        "ir_hash": traced.ir_hash,
        "model": spec.name,
        "gpu": gpu.name,
        "batch": batch,
        "length": length,
        "how": "modelled",
        "layer": layer,
        "launches": [
            {
                "name": launch.name,
                "does": launch.does,
                "why": launch.why,
                "bytes": launch.bytes,
                "flops": launch.flops,
                "roofline_seconds": kernel_seconds(launch.cost, gpu),  # launch overhead aside
            }
            for launch in plan.launches
        ],
        "mass_layers": sorted(LayerPlan(program, knobs, geometry.layers).mass_layers),
        "mass_bytes": recording_cost(geometry, batch=batch, length=length, page_size=knobs.page_size).bytes,
        "tuning": tuning,
        "crossover": crossover,
        "scratch": [asdict(buffer) for buffer in plan.buffers],
        "scratch_bytes": plan.scratch_bytes,
        "step": {
            "seconds": whole.seconds_per_step,
            "seconds_by_part": dict(whole.parts),
            "bound_by": whole.bound_by,
            "tokens_per_second": whole.tokens_per_second,
            "dense_tokens_per_second": whole.dense_tokens_per_second,
            "speedup": whole.speedup,
            "density": whole.density,
        },
    }


def launch_rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """The launches as (name, what it does, why it is apart, bytes, FLOPs, roofline time)."""
    return [
        (
            launch["name"],
            launch["does"],
            launch["why"],
            f"{launch['bytes'] / 2**20:,.2f} MiB",
            f"{launch['flops'] / 1e9:,.3f} G",
            f"{launch['roofline_seconds'] * 1e6:,.1f} us",
        )
        for launch in found["launches"]
    ]


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The layer's account as (what, value) with units."""
    return [(name, _worded(name, value)) for name, value in found["layer"].items()]


def sentences(found: dict[str, Any]) -> list[str]:
    """The whole model's account in words."""
    step = found["step"]
    parts = ", ".join(f"{name} {seconds * 1e3:.3f} ms" for name, seconds in step["seconds_by_part"].items())
    speed = (
        f"{step['tokens_per_second']:,.0f} tokens/s against {step['dense_tokens_per_second']:,.0f} dense: "
        f"x{step['speedup']:.2f}, bound by {step['bound_by']}"
    )
    dense = ", ".join(map(str, found["mass_layers"]))
    recorded = (
        f"dense layers {dense} leave the mass of their pages: {found['mass_bytes'] / 2**20:,.2f} MiB each"
    )
    return [
        f"whole model: {step['seconds'] * 1e3:.3f} ms a step ({parts})",
        speed,
        *([recorded] if dense else []),
        f"scratch: {found['scratch_bytes'] / 2**20:,.2f} MiB, shared by all layers ({_lives(found['scratch'])})",
        f"page states add {found['layer']['state bytes per token, share of KV']:.1%} to the KV cache",
        f"launches: {found['tuning']['words']}",
        f"faster than dense from: {found['crossover']['words']}",
        "modelled from bytes, FLOPs and launches on the usable bandwidth; nothing was run",
    ]


def _lives(buffers: list[dict[str, Any]]) -> str:
    spans = [f"{b['name']} from {b['written_by']} to {b['read_by']}" for b in buffers]
    return ", ".join(spans) or "none"


def _worded(name: str, value: float) -> str:
    if name.startswith("a completed page"):
        return f"{value:,.0f}"
    if name.startswith("bytes"):
        return f"{value / 2**20:,.3f} MiB"
    if name.startswith("FLOPs"):
        return f"{value / 1e9:,.3f} G"
    if "share" in name:
        return f"{value:.2%}"
    if name == "roofline seconds":
        return f"{value * 1e6:,.1f} us"
    return f"{value:,.1f}"


def dimensions(model: str) -> ModelSpec:
    """The dimensions of a described model, a directory or a hub id; they need no weights."""
    if model in list_models():
        return load_model(model)
    from vortex_core.engine.models.weights import resolve_model

    return resolve_model(model, fetch=False, check_memory=False).spec

"""The page of one program: formula, sentence, picture, simplified source, launches; all from its IR."""

from __future__ import annotations

from typing import Any

from search.commands.kernels import generated_kernels
from search.config import CampaignConfig
from search.log.run import Run
from search.log.state import Candidate
from search.report.dataflow import dataflow
from vortex_core.errors import VortexError
from vortex_core.flow.emit import emit
from vortex_core.flow.naming import state_labels
from vortex_core.ir.flow import Flow
from vortex_core.ir.formula import formula
from vortex_core.ir.sentence import sentences
from vortex_core.specs import list_models, load_gpu, load_model
from vortex_core.text import visible

GPU, BATCH, LENGTH = "h200", 32, 32768
BATCHES, LENGTHS = (1, 8, 64, 256), (512, 2048, 8192, 32768, 131072)
"""Where launches and bytes are modelled, unless the reader asks elsewhere."""

DOES = {
    "update": "states of pages that became complete",
    "query": "what depends on the query alone, once a row",
    "score": "scores of pages, all pages in parallel",
    "rows": "operators across pages, one row at a time",
    "candidates": "the pages whose fine score is computed",
    "refine": "fine scores of the candidates alone",
    "residual": "pages left out, one entry each",
    "pool": "scores of kv heads that share a selection",
    "select": "the pages to read, within the budget",
    "attend": "attention over the pages selected",
    "merge": "parts of long rows put together",
}
"""What each kind of launch computes."""


def program_page(
    run: Run, candidate: Candidate, config: CampaignConfig, *, kernels: bool = True, pays: bool = True
) -> dict[str, Any]:
    """Everything about a candidate that follows from its IR, as JSON values; `why` where it cannot be read.

    Args:
        kernels: also the generated kernels; making them imports torch, which takes a second.
        pays: also where it is faster than dense (`where_it_pays`).
    """
    try:
        flow = candidate.flow(run.files)
    except VortexError as error:
        return {"why": str(error.message)}
    page = describe(flow, config.model)
    if kernels:
        page["kernels"] = kernels_of(flow, config.model)
    if pays:
        page["pays"] = where_it_pays(flow, config.model)
        if kernels:
            page["crossover"] = crossover_of(flow, config.model)
    return page


def describe(flow: Flow, model: str | None) -> dict[str, Any]:
    """Formula, sentences, picture, simplified source and launches of a flow."""
    labels = state_labels(flow.program)
    lines = formula(flow.program, labels)
    try:
        source = emit(flow.program, flow.knobs, flow.name.partition(" ")[0] or "flow", "", beside=True)
    except VortexError as error:
        source = f"# {error.message}"
    return {
        "says": sentences(flow.program, labels),
        "formula": [[line.stage, line.text, line.mathml] for line in lines],
        "picture": dataflow(flow.program, labels),
        "simple": source,
        "launches": launches(flow, model) if model else [],
    }


def kernels_of(flow: Flow, model: str) -> dict[str, Any]:
    """Text, hash and dimensions of the generated kernels; `why` where there are none."""
    if model not in list_models():  # a folder of weights: reading a report opens none
        return {"why": f"only for models that are described, and {visible(model)} is not"}
    try:
        text, about = generated_kernels(flow, model)
    except VortexError as error:
        return {"why": error.message}
    return {"text": text, **about}


def where_it_pays(flow: Flow, model: str) -> dict[str, Any]:
    """Modelled speed-up over dense of a whole decode step on a named GPU, by batch (rows) and context (columns).

    Contexts go as far as the model reads; None where the keys and values do not fit beside the weights.
    """
    from vortex_core.ir.modelled import modelled_decode

    if model not in list_models():
        return {}
    spec, gpu = load_model(model), load_gpu(GPU)
    lengths = [n for n in LENGTHS if n <= spec.max_context]
    room = gpu.kv_capacity_tokens(spec)
    try:
        rows = [
            [
                round(modelled_decode(flow.program, flow.knobs, spec, gpu, batch, n).speedup, 3)
                if batch * n <= room
                else None
                for n in lengths
            ]
            for batch in BATCHES
        ]
    except VortexError:
        return {}
    return {"gpu": GPU, "batches": BATCHES, "contexts": lengths, "speedups": rows}


def crossover_of(flow: Flow, model: str) -> dict[str, Any]:
    """From which length on it is faster than dense attention: measured on this machine, else modelled."""
    from search.commands.crossovers import crossover_map

    if model not in list_models():
        return {}
    try:
        return crossover_map(flow.program, flow.knobs, load_model(model), load_gpu(GPU))
    except VortexError:
        return {}


def launches(flow: Flow, model: str) -> list[dict[str, Any]]:
    """Launches of a sparse layer's step on a named GPU, with bytes, FLOPs and the time no kernel can beat: modelled."""
    from vortex_core.ir.launches import launch_costs
    from vortex_core.ir.modelled import kernel_seconds

    if model not in list_models():
        return []  # a folder of weights: reading a report loads none
    knobs = flow.knobs
    try:
        found = launch_costs(
            flow.program,
            knobs,
            load_model(model).geometry(),
            batch=BATCH,
            length=LENGTH,
            kv_bytes=knobs.kv_bytes,
        )
    except VortexError:
        return []
    gpu = load_gpu(GPU)
    return [
        {
            "name": launch.kind,
            "does": DOES[launch.kind],
            "bytes": launch.cost.bytes,
            "flops": launch.cost.tensor_flops + launch.cost.vector_flops,
            "us": round(kernel_seconds(launch.cost, gpu) * 1e6, 3),
        }
        for launch in found
    ]

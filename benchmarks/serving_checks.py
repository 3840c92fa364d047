"""Checks that precede figures: a tiny random model against transformers, hot swaps, and the same over several ranks."""

from __future__ import annotations

import copy
from typing import Any

import torch

from vortex_core import library
from vortex_core.engine.engine import Engine
from vortex_core.engine.models.parallel import Ranks, shard
from vortex_core.engine.models.random_weights import random_model
from vortex_core.engine.throughput import (
    Reference,
    against_reference,
    everything_selected,
    random_ids,
    reference,
)
from vortex_core.ir.knobs import Knobs
from vortex_core.specs import ModelSpec, load_model

TINY = {
    "layers": 3, "hidden": 128, "q_heads": 4, "kv_heads": 2, "head_dim": 64, "intermediate": 256,
    "vocab": 512, "tie_embeddings": False,
}  # fmt: skip


def tiny_model(device: str) -> tuple[Any, ModelSpec, list[Reference]]:
    """A tiny model in float32 whose attention looks far and whose logits are spread, and what transformers decodes."""
    spec = load_model("qwen3-1.7b").model_copy(update=TINY)
    model, spec = random_model(spec, device=device, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.mul_(8.0 if "proj" in name else 4.0)
    references = [reference(model, random_ids(n, spec.vocab, n), 12) for n in (300, 129, 20)]
    return model, spec, references


def tiny_check(device: str) -> dict[str, Any]:
    """Transformers' tokens, every flow's with everything selected, hot swaps."""
    model, spec, references = tiny_model(device)
    engine = Engine(model, spec=spec, max_tokens=8192)
    dense = against_reference(engine, references)
    worst = {}
    for name in ("block_topk", "quest"):
        worst[name] = everything_selected(engine, name, 16, 1e-3).worst
    swaps, memory = hot_swaps(engine)
    if dense.agreed < 1.0 or dense.worst > 1e-3:
        raise AssertionError(f"differs from transformers: {dense}")
    return {
        "transformers_logprob_error": dense.worst,
        "transformers_tokens_equal": dense.agreed,
        "everything_selected_logprob_error": max(worst.values()),
        "swap_seconds_median": sorted(swaps)[len(swaps) // 2],
        "swap_seconds_worst_warm": max(swaps[4:]),
        "memory_growth_bytes": memory[-1] - memory[5],  # both of Quest
    }


def ranks_check(device: str, ranks: Ranks) -> dict[str, Any]:
    """The tiny model divided over the ranks decodes what transformers decodes with all of it, and so does a flow."""
    model, spec, references = tiny_model(device)
    divided = copy.deepcopy(model)
    shard(divided, spec, ranks)
    engine = Engine(divided, spec=spec, max_tokens=8192)
    dense = against_reference(engine, references)
    sparse = everything_selected(engine, "quest", 16, 1e-3)
    if dense.agreed < 1.0 or dense.worst > 1e-3:
        raise AssertionError(f"{ranks.size} ranks differ from transformers: {dense}")
    return {
        "ranks": ranks.size,
        "kv_heads_here": engine.geometry.kv_heads,
        "transformers_logprob_error": dense.worst,
        "everything_selected_logprob_error": sparse.worst,
    }


def hot_swaps(engine: Engine, count: int = 20) -> tuple[list[float], list[int]]:
    """Load flow after flow over a pinned prompt, decoding with each; seconds of each swap and bytes after it."""
    prompt = engine.prefill(random_ids(700, engine.spec.vocab, 7))
    seconds, memory = [], []
    for i in range(count):
        name = ("block_topk", "quest")[i % 2]
        knobs = Knobs(page_size=16, budget=str(128 + 16 * (i // 2)))
        report = engine.load_flow(library.load(name).program, knobs)
        engine.decode([prompt], max_new_tokens=3)
        engine.synchronize()
        seconds.append(report.seconds)
        memory.append(torch.cuda.memory_allocated() if engine.device.type == "cuda" else 0)
    engine.load_flow(None)
    engine.release(prompt)
    return seconds, memory

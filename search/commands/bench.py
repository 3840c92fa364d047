"""`vortex-search bench`: serving speed of a flow beside dense attention, on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vortex_core.engine import Engine


@dataclass(frozen=True)
class BenchPlan:
    """What to measure.

    Attributes:
        target: a run, an exported folder, a library flow or a `.py` file.
        page_size: overrides the flow's own; None keeps it.
        budget: likewise.
        random_weights: true shapes, random numbers: throughput only.
        random_kv: prompts of random keys and values instead of a prefill: throughput only.
        serve: requests to run through continuous batching as well.
    """

    model: str
    target: str
    rank: int = 1
    device: str | None = None
    batch: tuple[int, ...] = (1,)
    context: tuple[int, ...] = (1024,)
    new_tokens: int = 32
    rounds: int = 3
    page_size: int | None = None
    budget: str | None = None
    random_weights: bool = False
    random_kv: bool = False
    serve: int = 0


def bench(plan: BenchPlan) -> Iterator[dict[str, Any]]:
    """Measure; yields every result as soon as it is there: `parity`, then `decode` rows, then `serve` rows.

    Raises:
        VortexError: for an unknown model or flow, `VE025` where the flow with everything selected is not dense
            attention: then nothing was measured.
    """
    import torch

    from search.commands.serve import find_flow
    from vortex_core.engine.throughput import (
        attention_share,
        fill,
        matches_dense,
        measure_decode,
        measure_serving,
    )

    found, _ = find_flow(plan.target, plan.rank)
    changes: dict[str, Any] = {"page_size": plan.page_size, "budget": plan.budget}
    knobs = found.knobs.with_(**{name: value for name, value in changes.items() if value is not None})
    flow = replace(found, knobs=knobs)
    engine = _engine(plan)
    parity = matches_dense(engine, flow, 0.05 if engine.dtype == torch.bfloat16 else 1e-3)
    yield {
        "kind": "parity",
        "model": engine.spec.name,
        "device": str(engine.device),
        "backend": engine.backend,
        **asdict(parity),
    }
    for batch in plan.batch:
        for context in plan.context:
            prompts = fill(engine, batch, context, random_kv=plan.random_kv)
            for measured in (None, flow):
                row = measure_decode(
                    engine, measured, prompts, new_tokens=plan.new_tokens, rounds=plan.rounds
                )
                yield {
                    "kind": "decode",
                    **asdict(row),
                    "attention_share": attention_share(engine, prompts),
                    "random_kv": plan.random_kv,
                }
            for prompt in prompts:
                engine.release(prompt)
    for measured in (None, flow) if plan.serve else ():
        served = measure_serving(
            engine, measured, requests=plan.serve, context=plan.context[0], new_tokens=plan.new_tokens,
            max_batch=max(plan.batch),
        )  # fmt: skip
        yield {"kind": "serve", **asdict(served)}


def write_results(folder: Path, plan: BenchPlan, results: list[dict[str, Any]]) -> Path:
    """`bench.json` in a folder: what was measured, and how."""
    import json

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "bench.json"
    document = {"plan": asdict(plan), "results": results}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return path


def _engine(plan: BenchPlan) -> Engine:
    """The model, with its weights or with random ones."""
    import torch

    from search.errors import no_gpu
    from vortex_core.engine import Engine

    device = plan.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise no_gpu("this machine")
    needed = max(plan.batch) * (max(plan.context) + plan.new_tokens + 256) + 1024
    tokens = max(needed, 4096) if device == "cpu" else None
    if not plan.random_weights:
        return Engine.from_model(plan.model, device=device, max_tokens=tokens)
    from vortex_core.engine.models.random_weights import random_model
    from vortex_core.specs import load_model

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model, spec = random_model(load_model(plan.model), device=device, dtype=dtype)
    return Engine(model, spec=spec, max_tokens=tokens)

"""The engine and transformers in bf16, both against transformers in float32, on the same random weights of real shapes.

    python -m benchmarks.parity --case glm-4.7-flash:3 --case glm-4.7-flash:8 --case minimax-m2.7:2

A case is a model and how many of its layers; float32 needs 4 bytes a parameter beside the 2 of bf16. Each runs with a
router whose correction decides its choices ("decisive": rounding changes none) and with a plain one.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import needs
from vortex_core import library
from vortex_core.engine.engine import Engine
from vortex_core.engine.models.random_weights import random_model
from vortex_core.engine.throughput import random_ids
from vortex_core.specs import ModelSpec, load_model

LENGTHS, STEPS = (33, 300), 12
PAIRS = {
    "transformers bf16 - fp32": ("theirs", "exact"),
    "ours bf16 - fp32": ("dense", "exact"),
    "ours - transformers bf16": ("dense", "theirs"),
    "flow - dense": ("flow", "dense"),
}


@torch.inference_mode()
def by_transformers(model: Any, prompts: Sequence[Any], forced: Sequence[Any]) -> torch.Tensor:
    """Log-probabilities of forced tokens, `[prompt, token]`."""
    found = []
    for ids, tokens in zip(prompts, forced, strict=True):
        row = torch.tensor([[*ids, *tokens]], device=model.device)
        logits = model(row, use_cache=False).logits[0, len(ids) - 1 : -1].float()
        found.append(logits.log_softmax(-1).cpu()[range(len(tokens)), list(tokens)])
    return torch.stack(found)


def by_engine(engine: Engine, prompts: Sequence[Any], forced: Sequence[Any]) -> torch.Tensor:
    """The same from the engine, whatever it has loaded."""
    pinned = [engine.prefill(ids) for ids in prompts]
    result = engine.decode(pinned, max_new_tokens=STEPS, forced=forced)
    for prompt in pinned:
        engine.release(prompt)
    return torch.tensor(result.logprobs)


def measure(spec: ModelSpec, router: str, device: str) -> dict[str, Any]:
    """Mean and worst difference of a forced token's log-probability, for each of `PAIRS`."""
    model, spec = random_model(spec, device=device, dtype=torch.bfloat16)
    if router == "decisive":
        draw = torch.Generator().manual_seed(1)
        for where, buffer in model.named_buffers():
            if where.endswith("e_score_correction_bias"):
                buffer.copy_(torch.randn(buffer.shape, generator=draw) * 10)
    prompts = [random_ids(n, spec.vocab, n) for n in LENGTHS]
    forced = [random_ids(STEPS, spec.vocab, n) for n in (7, 8)]
    said = {"exact": by_transformers(copy.deepcopy(model).float(), prompts, forced)}
    said["theirs"] = by_transformers(model, prompts, forced)
    engine = Engine(model, spec=spec, max_tokens=2048)
    said["dense"] = by_engine(engine, prompts, forced)
    traced = library.load("block_topk").with_knobs(page_size=64, budget="length")
    engine.load_flow(traced.program, traced.knobs)
    said["flow"] = by_engine(engine, prompts, forced)
    row: dict[str, Any] = {"router": router, "logprob_std": float(said["exact"].std())}
    for label, (a, b) in PAIRS.items():
        apart = (said[a] - said[b]).abs()
        row[label] = [float(apart.mean()), float(apart.max())]
    return row


def to_markdown(rows: Sequence[dict[str, Any]], where: str) -> str:
    """A table."""
    cases = dict.fromkeys(f"--case {row['model']}:{row['layers']}" for row in rows)
    lines = [
        "# Rounding of the engine and of transformers",
        "",
        (
            f"`python -m benchmarks.parity {' '.join(cases)}`, {where}. Differences of a forced token's "
            "log-probability, mean (worst), on random weights of real shapes; the flow selects everything."
        ),
        "",
        "| model | layers | router | " + " | ".join(PAIRS) + " |",
        "|---|---:|---|" + "---:|" * len(PAIRS),
    ]
    for row in rows:
        cells = " | ".join(f"{row[label][0]:.4f} ({row[label][1]:.3f})" for label in PAIRS)
        lines.append(f"| {row['model']} | {row['layers']} | {row['router']} | {cells} |")
    return "\n".join([*lines, ""])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--case", action="append", required=True, help="MODEL:LAYERS")
    found.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    found.add_argument("--out", type=Path)
    return found


def main() -> int:
    """Entry point."""
    command_line = parser()
    args = command_line.parse_args()
    if args.device == "cuda":
        needs.gpus(command_line)
    rows: list[dict[str, Any]] = []
    for case in args.case:
        name, layers = case.split(":")
        spec = load_model(name).model_copy(update={"layers": int(layers)})
        for router in ("decisive", "random"):
            row = {"model": name, "layers": int(layers), **measure(spec, router, args.device)}
            rows.append(row)
            print(json.dumps(row), flush=True)
            gc.collect()
            torch.cuda.empty_cache()
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        where = torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU"
        (args.out / "parity.json").write_text(json.dumps(rows, indent=1) + "\n")
        (args.out / "parity.md").write_text(to_markdown(rows, where))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

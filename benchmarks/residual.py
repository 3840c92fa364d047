"""What an entry for every page left out does to attention's output: python -m benchmarks.residual --recording FILE

On the recorded attention of `benchmarks.recall` (the same prompts, made anew where FILE is not there), every flow
attends at several shares of the context, with and without what its residual adds, and its output is compared with
dense attention's. Writes benchmarks/results/residual.json and residual.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from benchmarks.recall import record
from evaluators.recall import Recording, first_pages, view_of
from vortex_core import library
from vortex_core.compiler import backends
from vortex_core.engine.decode.selection import LoadedFlow
from vortex_core.engine.kv.blocks import BLOCK_TOKENS, blocks_for
from vortex_core.engine.kv.pool import KVPool
from vortex_core.flow.trace import Traced
from vortex_core.geometry import Geometry
from vortex_core.runtime.torch_attention import sparse_decode

RATIOS = (0.025, 0.05, 0.1, 0.2, 0.4)
FLOWS = ("block_topk", "quest", "sparq", "twilight", "retroinfer", "topk_completion")
PAGE = 16


def errors(traced: Traced, recording: Recording, steps: int) -> dict[bool, float]:
    """Squared error of the attention output over its square, mean over layers: of the selection alone, and (True) with
    what stands for the pages left out."""
    compiled = backends.get("torch").compile(traced.program, traced.knobs, recording.geometry)
    flow = LoadedFlow(compiled, recording.pool)
    residual = compiled.program.residual is not None
    g, found = (
        recording.geometry,
        {with_it: torch.zeros(recording.geometry.layers) for with_it in (False, True)[: 1 + residual]},
    )
    firsts = first_pages(recording, flow.page_size)
    blocks = [
        list(range(start // BLOCK_TOKENS, start // BLOCK_TOKENS + blocks_for(n)))
        for start, n in zip(recording.starts, recording.lengths, strict=True)
    ]
    with torch.inference_mode():
        for step in range(steps):
            lengths = recording.lengths_at(step)
            flow.cover(zip(blocks, lengths, strict=True))
            for layer in range(g.layers):
                q = recording.queries[layer][step].float()
                view = view_of(flow, firsts, lengths, layer)
                pages = flow.select(layer, q, view)
                kv = recording.pool.paged(layer, flow.page_size)
                lse = torch.empty(q.shape[:2])
                alone, _ = sparse_decode(q, kv, pages, recording.scale, lse=lse)
                dense = torch.stack(
                    [
                        recording.probabilities[layer][step][b, :, :n].unflatten(0, (g.kv_heads, g.group))
                        @ recording.pool.v[layer, :, start : start + n].float()
                        for b, (start, n) in enumerate(zip(recording.starts, lengths, strict=True))
                    ]
                ).flatten(1, 2)
                outs = {False: alone}
                if residual:
                    outs[True] = compiled.merge_residual(alone, lse, pages, flow.states[layer], view)
                for with_it, out in outs.items():
                    found[with_it][layer] += (out - dense).square().sum() / dense.square().sum() / steps
    return {with_it: float(x.mean()) for with_it, x in found.items()}


def markdown(rows: dict[str, list[float]], about: str) -> str:
    """The report."""
    lines = [
        "# What is left out, merged into the output", "",
        f"Made by `python -m benchmarks.residual`. {about} Error: squared difference from dense attention's output",
        "over its square, mean over layers, at shares of the context (first page and two newest inside). *residual*",
        "rows add one entry for every page left out; *alone* rows are the same selection without it.", "",
        "| flow | " + " | ".join(f"{r:.1%}" for r in RATIOS) + " |", "|" + "---|" * (len(RATIOS) + 1),
    ]  # fmt: skip
    lines += [f"| {name} | " + " | ".join(f"{x:.4f}" for x in found) + " |" for name, found in rows.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--recording", type=Path, help="file that keeps the recording between runs")
    parser.add_argument("--flows", nargs="*", default=FLOWS)
    parser.add_argument("--steps", type=int, default=2, help="of the recorded ones")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.recording is not None and args.recording.exists():
        with torch.serialization.safe_globals([Recording, KVPool, Geometry]):  # and nothing else is unpickled
            recording, about = torch.load(args.recording, weights_only=True)
    else:
        recording, about = record(args.model, args.threads, args.steps)
        if args.recording is not None:
            torch.save((recording, about), args.recording)
    rows: dict[str, list[float]] = {}
    for name in args.flows:
        for ratio in RATIOS:
            traced = library.load(name).with_knobs(
                page_size=PAGE, budget=f"{ratio:g} * length", keep_first=1, keep_last=2, dense_layers=()
            )
            for with_it, error in errors(traced, recording, args.steps).items():
                label = f"{name}, residual" if with_it else f"{name}, alone"
                rows.setdefault(label, []).append(error)
                print(f"{label:28} {ratio:6.1%} {error:.4f}", flush=True)
    text = f"Model {about['model']} ({about['dtype']}), prompts of {about['needles']} and {about['speeches']} tokens, "
    text += f"{args.steps} decode steps each, page {PAGE}."
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "residual.json").write_text(json.dumps({"about": text, "rows": rows}, indent=1) + "\n")
    (args.out / "residual.md").write_text(markdown(rows, text))


if __name__ == "__main__":
    main()

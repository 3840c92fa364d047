"""Does every program compile, and what do its kernels take: python -m benchmarks.limits --seed 2 --count 100

Library flows and programs of the grammar at random sizes of heads, groups, pages and dtypes are compiled for an H100
that need not be here (`compiler/triton/ahead.py`), states and scores alone: attention is the same for all. A row is
written as it comes, so a run may be cut. Writes benchmarks/results/limits.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import statistics
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.programs import grammar_flows
from vortex_core import library
from vortex_core.compiler.interface import BatchView, LayerKV
from vortex_core.compiler.triton import ahead
from vortex_core.compiler.triton.ahead import StepShape, compile_ahead
from vortex_core.compiler.triton.backend import TritonFlow
from vortex_core.compiler.triton.limits import SHARED_BYTES, STACK_BYTES
from vortex_core.errors import VortexError
from vortex_core.geometry import Geometry
from vortex_core.ir.flow import Flow

TARGET, TOKENS = "sm_90a", 32_768
DIMS, GROUPS, PAGES = (64, 96, 128, 192, 256, 576), (1, 2, 4, 5, 7, 8, 16), (16, 32, 64, 128)
LATENT_GROUPS = (16, 20, 32)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
DEADLINE = 60.0  # seconds a program on a busy core; `machine_code` has 25 in the plan `gpu`
_META = torch.device("meta")


def geometry(rng: random.Random) -> Geometry:
    """Heads of a model that might be."""
    dim = rng.choice(DIMS)
    if dim == 576:
        return Geometry(47, 1, rng.choice(LATENT_GROUPS), 576, 64, 512)
    turned = tuple(1e4 ** (-2 * i / dim) for i in range(dim // 2))
    return Geometry(28, 8, rng.choice(GROUPS), dim, dim, dim, turned)


def states_and_scores(flow: TritonFlow, shape: StepShape, dtype: torch.dtype) -> None:
    """What a layer launches for its pages and to score them, on tensors without storage."""
    g, size = flow.geometry, flow.knobs.page_size
    k = torch.empty(g.kv_heads, 64, size, g.head_dim, dtype=dtype, device=_META)
    states = flow.new_states(64, _META, shape.rows)
    table = torch.empty(shape.rows, shape.tokens // size, dtype=torch.int32, device=_META)
    lengths = torch.empty(shape.rows, dtype=torch.int32, device=_META)
    flow.update_decode(
        states, LayerKV(k, k[..., : g.value_dim]), BatchView(table, lengths, lengths, shape.tokens), 0
    )
    q = torch.empty(shape.rows, g.q_heads, g.head_dim, dtype=dtype, device=_META)
    work = flow.workspace(shape.rows, table.shape[1], _META)
    mass = torch.empty(shape.rows, g.q_heads, table.shape[1], device=_META)
    reads = flow.program.reads_dense_mass
    flow.launch_scores(q, states, table, lengths, lengths, work, 0, mass if reads else None)
    flow._workspaces.clear()


def programs(rng: random.Random, seed: int, count: int) -> list[tuple[str, Flow]]:
    """Seven in ten of the grammar, the others of the library."""
    drawn = list(grammar_flows(seed, count))
    names = [n for n in library.names() if n != "dense"]
    return [drawn[n] if rng.random() < 0.7 else _of_library(rng.choice(names)) for n in range(count)]


def _of_library(name: str) -> tuple[str, Flow]:
    return name, library.load(name).flow


def measure(name: str, flow: Flow, rng: random.Random) -> dict[str, Any]:
    """Compile one program at random sizes, in a process of its own that ends with the deadline."""
    sizes = geometry(rng), rng.choice(PAGES), rng.choice(("bf16", "bf16", "fp16", "fp32"))
    fork = multiprocessing.get_context("fork")
    receive, send = fork.Pipe(duplex=False)
    child = fork.Process(target=_measured, args=(send, name, flow, *sizes))
    child.start()
    send.close()  # the child's alone: a pipe that nobody writes to any more says that it died
    row = _about(name, *sizes)
    try:
        if receive.poll(DEADLINE):
            row = receive.recv()
        else:
            row |= {"refused": "deadline", "why": f"not done in {DEADLINE:.0f} s", "seconds": DEADLINE}
    except EOFError:
        child.join()
        raise RuntimeError(f"{row}: the process ended with {child.exitcode} and said nothing") from None
    child.kill()
    child.join()
    return row


def _about(name: str, shape: Geometry, page: int, dtype: str) -> dict[str, Any]:
    return {"flow": name, "dim": shape.head_dim, "group": shape.group, "page": page, "dtype": dtype}


def _measured(send: Any, name: str, flow: Flow, shape: Geometry, page: int, dtype: str) -> None:
    row = _about(name, shape, page, dtype)
    started = time.perf_counter()
    try:
        found = compile_ahead(
            flow.program, flow.knobs.with_(page_size=page, budget="2048"), shape,
            [StepShape(rows, TOKENS) for rows in (1, 64)], TARGET, threads=1, dtype=DTYPES[dtype],
        )  # fmt: skip
    except VortexError as error:
        row |= {"refused": error.code, "why": error.message}
    else:
        row["kernels"] = {kernel: asdict(use) for kernel, use in found.items()}
    send.send({**row, "seconds": round(time.perf_counter() - started, 1)})


def markdown(rows: list[dict[str, Any]], seed: int) -> str:
    """The report."""
    fits = [r for r in rows if "kernels" in r]
    refused = Counter(r["refused"] for r in rows if "refused" in r)
    uses = [(r, k, u) for r in fits for k, u in r["kernels"].items()]
    shared, stack = ([u[key] for _, _, u in uses] for key in ("shared_bytes", "stack_bytes"))
    seconds = [r["seconds"] for r in rows]
    said = ", ".join(f"{n} with `{code}`" for code, n in sorted(refused.items())) or "none"
    lines = f"""# What kernels take

Measured; made by `python -m benchmarks.limits --seed {seed} --count {len(rows)}`: library flows and programs of the
grammar at random sizes, compiled for {TARGET} without a GPU; states and scores, the most that steps of 1 and 64
sequences of {TOKENS:,} tokens take.

- {len(fits)} of {len(rows)} compile and fit; refused: {said}.
- Shared memory of a block: median {statistics.median(shared):,.0f} bytes, most {max(shared):,}
  (limit {SHARED_BYTES[TARGET]:,}).
- {sum(n > 0 for n in stack)} of {len(uses)} kernels spill, {sum(n > 1024 for n in stack)} of them more than 1 KiB of
  stack a thread, most {max(stack):,} bytes (limit {STACK_BYTES:,}).
- Seconds a program, one core of a busy machine: median {statistics.median(seconds):.1f}, {sum(n > 30 for n in seconds)}
  took over 30, most {max(seconds):.0f}.

## Refused, or more than 1 KiB of stack

| program | channels | group | page | dtype | seconds | what |
|---|---|---|---|---|---|---|""".splitlines()
    for r in rows:
        heavy = [
            f"{k} {u['stack_bytes']:,} B" for k, u in r.get("kernels", {}).items() if u["stack_bytes"] > 1024
        ]
        what = f"{r['refused']}: {r['why']}" if "refused" in r else ", ".join(heavy)
        if what:
            sizes = f"{r['dim']} | {r['group']} | {r['page']} | {r['dtype']} | {r['seconds']}"
            lines.append(f"| {r['flow']} | {sizes} | {what.splitlines()[0][:160].replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, or write the report of rows measured before."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--rows", type=Path, default=Path("runs/limits.jsonl"), help="rows as they come")
    parser.add_argument("--report", action="store_true", help="of the rows that are there")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    if not args.report:
        ahead._launch = states_and_scores
        rng = random.Random(args.seed)
        args.rows.parent.mkdir(parents=True, exist_ok=True)
        with args.rows.open("w") as file:
            for name, flow in programs(rng, args.seed, args.count):
                row = measure(name, flow, rng)
                print(json.dumps(row), file=file, flush=True)
    rows = [json.loads(line) for line in args.rows.read_text().splitlines()]
    (args.out / "limits.md").write_text(markdown(rows, args.seed))


if __name__ == "__main__":
    main()

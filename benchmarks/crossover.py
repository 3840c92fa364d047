"""Decode steps over a grid of batches and contexts, each flow beside dense attention, and its crossover measured first.

    python -m benchmarks.crossover --out benchmarks/results --seconds 240
    python -m benchmarks.crossover --model qwen3-1.7b --layers 2 --batch 1,2 --context 256,512 --budget 64 --out /tmp/x

Random weights and random keys and values: throughput only. Every cell is written as soon as it is there, and a run
goes on where the one before it ended (`--anew`: from the start). Arms of a cell: the flow under its crossover, as
engines run it, and, with `--as-written`, the flow at every length. A cell is a speed-up over dense steps of the same
batch, timed in turns with it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import needs
from vortex_core.compiler.triton.tuning.crossover import measure_crossover
from vortex_core.engine.cores import wait_passively
from vortex_core.engine.engine import Engine
from vortex_core.engine.kv.blocks import BLOCK_TOKENS, blocks_for
from vortex_core.engine.models.random_weights import random_model
from vortex_core.engine.throughput import fill, flows_named, measure_decode
from vortex_core.errors import VortexError
from vortex_core.ir.crossover import NEVER, Crossover
from vortex_core.ir.flow import Flow
from vortex_core.specs import ModelSpec, load_model

NAME = "crossover"


class Journal:
    """What was found so far, kept whole after every cell."""

    def __init__(self, out: Path, head: dict[str, Any], *, anew: bool) -> None:
        self.path = out / f"{NAME}.json"
        out.mkdir(parents=True, exist_ok=True)
        self.data: dict[str, Any] = {**head, "crossovers": {}, "cells": []}
        if not anew and self.path.exists():
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if all(found.get(name) == value for name, value in head.items() if name != "command"):
                self.data = found

    def has(self, batch: int, context: int, flow: str, arm: str) -> bool:
        """Whether a cell is there."""
        wanted = {"batch": batch, "context": context, "flow": flow, "arm": arm}
        return any(all(cell[n] == v for n, v in wanted.items()) for cell in self.data["cells"])

    def write(self) -> None:
        """The file and the page."""
        self.path.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
        self.path.with_suffix(".md").write_text(page(self.data), encoding="utf-8")


def measured(journal: Journal, flows: list[Flow], spec: ModelSpec, most: int) -> dict[str, Crossover]:
    """The crossover of each flow: of an earlier run, or measured now, before the engine takes the memory."""
    kept = journal.data["crossovers"]
    for flow in flows:
        if flow.name in kept:
            continue
        began = time.perf_counter()
        found = measure_crossover(
            flow.program, flow.knobs, spec.geometry(), most=most,
            report=lambda p: print(
                f"  {p.batch} x {p.context}: {p.sparse_us:.1f} us the flow, {p.dense_us:.1f} us dense", flush=True
            ),
        )  # fmt: skip
        kept[flow.name] = {**found.to_json(), "seconds": round(time.perf_counter() - began, 1)}
        print(f"{flow.name}: crossover {found.crossover.text}", flush=True)
        journal.write()
        torch.cuda.empty_cache()
    return {flow.name: Crossover.from_json(kept[flow.name]["crossover"]) for flow in flows}


def page(data: dict[str, Any]) -> str:
    """The results as a page: a grid a flow, speed-ups over dense steps and the density that ran."""
    lines = [
        f"`{data['command']}`",
        "",
        f"{data['model']}, {data['device']}, {data['versions']}; random weights and KV.",
        "",
    ]
    for name, found in data["crossovers"].items():
        lines.append(f"{name}: crossover (batch x tokens) {Crossover.from_json(found['crossover']).text}.")
    contexts = sorted({cell["context"] for cell in data["cells"]})
    kinds = sorted({(cell["flow"], cell["arm"]) for cell in data["cells"]})
    for flow, arm in kinds:
        cells = {(c["batch"], c["context"]): c for c in data["cells"] if (c["flow"], c["arm"]) == (flow, arm)}
        lines += ["", f"## {flow}, {arm}", "", "| batch | " + " | ".join(f"{n:,}" for n in contexts) + " |"]
        lines.append("|---:|" + "---:|" * len(contexts))
        for batch in sorted({b for b, _ in cells}):
            row = (cells.get((batch, n)) for n in contexts)
            shown = ("" if c is None else f"{c['speedup']:.2f}x ({c['density']:.2f})" for c in row)
            lines.append(f"| {batch} | " + " | ".join(shown) + " |")
        least = min(cells.values(), key=lambda c: c["speedup"])
        lines += ["", f"Least: {least['speedup']:.3f}x at {least['batch']} x {least['context']:,}."]
    return "\n".join(lines) + "\n"


def run(args: argparse.Namespace) -> int:
    """Every cell that fits, the smallest first, while there is time; 1 if one failed."""
    began = time.perf_counter()
    spec = load_model(args.model)
    if args.layers:
        spec = spec.model_copy(update={"layers": args.layers})
    flows = [
        flow for flow in flows_named(args.flows, page_size=args.page, budget=args.budget) if flow is not None
    ]
    on_gpu = args.device == "cuda"
    head = {
        "command": " ".join(["python -m benchmarks.crossover", *args.shown]),
        "model": f"{spec.name} ({spec.layers} layers)",
        "device": torch.cuda.get_device_name() if on_gpu else "CPU", "versions": f"torch {torch.__version__}",
        "budget": args.budget, "page": args.page,
    }  # fmt: skip
    journal = Journal(args.out, head, anew=args.anew)
    if args.crossover is not None:
        rules = dict.fromkeys((flow.name for flow in flows), args.crossover)
    else:
        rules = measured(journal, flows, spec, max(args.context))
    arms = [("under its crossover", rules), ("as written", dict.fromkeys(rules, NEVER))][
        : 1 + args.as_written
    ]
    model, named = random_model(
        spec, device=args.device, dtype=torch.bfloat16 if on_gpu else torch.float32, ranks=None
    )
    engine = Engine(model, spec=named, max_tokens=args.tokens or (None if on_gpu else 8192))
    print(f"room for {engine.cache.pool.slots:,} tokens, {time.perf_counter() - began:.0f} s", flush=True)
    failures = 0
    for batch, context in sorted(
        ((b, c) for c in args.context for b in args.batch), key=lambda s: (s[0] * s[1], s)
    ):
        wanted = [
            (flow, arm, rule[flow.name]) for flow in flows for arm, rule in arms
            if not journal.has(batch, context, flow.name, arm)
        ]  # fmt: skip
        need, there = batch * blocks_for(context + args.new_tokens), engine.cache.blocks.available
        if not wanted or need > there:
            if wanted:
                tokens, room = need * BLOCK_TOKENS, there * BLOCK_TOKENS
                print(f"{batch} x {context}: {tokens:,} tokens do not fit {room:,}", flush=True)
            continue
        if args.seconds and time.perf_counter() - began > args.seconds:
            print(f"{args.seconds:.0f} seconds are over; run it again for the rest", flush=True)
            break
        engine.load_flow(None)
        prompts = fill(engine, batch, context, random_kv=True)
        try:
            for flow, arm, rule in wanted:
                row = measure_decode(
                    engine, flow, prompts, new_tokens=args.new_tokens, rounds=args.rounds, crossover=rule
                )
                journal.data["cells"].append({**asdict(row), "batch": batch, "context": context, "arm": arm})
                journal.write()
                print(
                    f"{batch} x {context} {flow.name} {arm}: {row.step_ms:.3f} ms, dense {row.dense_step_ms:.3f}, "
                    f"{row.speedup:.3f}x, density {row.density:.3f}, {time.perf_counter() - began:.0f} s",
                    flush=True,
                )
        except VortexError as error:
            failures += 1
            print(f"{batch} x {context}: {error}", flush=True)
        finally:
            for prompt in prompts:
                engine.release(prompt)
    print(page(journal.data))
    return int(failures > 0)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def numbers(text: str) -> list[int]:
        return [int(x) for x in text.split(",")]

    found.add_argument("--model", default="qwen3-1.7b")
    found.add_argument("--layers", type=int, default=0, help="only so many layers")
    found.add_argument("--flows", type=lambda s: s.split(","), default=["block_topk", "quest"])
    found.add_argument("--page", type=int, default=64)
    found.add_argument("--budget", default="2048", help="tokens a step may attend, a number or an expression")
    found.add_argument("--batch", type=numbers, default=[1, 2, 4, 8, 16, 32, 64])
    found.add_argument("--context", type=numbers, default=[4096, 8192, 16384, 32768, 65536, 131072])
    found.add_argument(
        "--tokens",
        type=int,
        help="of the pool; by default, on a GPU, what fits beside states of an eighth of it",
    )
    found.add_argument("--new-tokens", type=int, default=24)
    found.add_argument("--rounds", type=int, default=3)
    found.add_argument("--as-written", action="store_true", help="also without the crossover")
    found.add_argument(
        "--crossover", type=Crossover.parse, help="BATCHxTOKENS,... or off, instead of measuring it"
    )
    found.add_argument("--seconds", type=float, default=0, help="begin no cell after so long; 0: no limit")
    found.add_argument("--anew", action="store_true", help="measure cells again that are there")
    found.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    found.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return found


def main() -> int:
    """Measure and write `crossover.json` and `crossover.md`."""
    command_line = parser()
    args = command_line.parse_args()
    args.shown = sys.argv[1:]
    if args.device == "cuda":
        needs.gpus(command_line)
    elif args.crossover is None:
        command_line.error("a crossover is measured on a GPU: give --crossover with --device cpu")
    wait_passively()
    return run(args)


if __name__ == "__main__":
    sys.exit(main())

"""Serving speed of a model with dense attention and with flows: parity first, then decode in turns, then requests.

    python -m benchmarks.serving --model qwen3-1.7b --random-weights --random-kv --out benchmarks/results \\
        --batch 1,8,16,64 --context 8192,32768,131072 --flows dense,block_topk@64,block_topk@16 --seconds 100
    python -m benchmarks.serving --model qwen3-8b --random-weights --random-kv --tp 2 --batch 16 --context 32768
    python -m benchmarks.serving --model smollm2-135m --batch 2 --context 512 --new-tokens 8 --serve 4

Every result is printed and written as soon as it is there. `--random-kv` fills the cache with random numbers instead
of prefilling (speed only). `--check` first compares a tiny random model with transformers and swaps twenty flows;
over several ranks the tiny model is always compared. A batch and context that the pool cannot hold are skipped with the
batch that it can.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks import needs
from benchmarks.serving_checks import ranks_check, tiny_check
from benchmarks.serving_speedups import COPY_BANDWIDTH
from vortex_core.engine.cores import wait_passively
from vortex_core.engine.engine import Engine
from vortex_core.engine.kv.blocks import BLOCK_TOKENS, blocks_for
from vortex_core.engine.kv.cache import Prompt
from vortex_core.engine.models.parallel import Ranks, join_ranks
from vortex_core.engine.models.random_weights import LABEL, random_model
from vortex_core.engine.throughput import (
    Reference,
    against_reference,
    attention_part,
    attention_share,
    experts_used,
    fill,
    flows_named,
    matches_dense,
    measure_decode,
    measure_serving,
    random_ids,
    reference,
    step_launches,
)
from vortex_core.ir.flow import Flow
from vortex_core.specs import ModelSpec, load_model


class Journal:
    """Results as they come: a line each, and a JSON file that is whole after every one.

    Of several ranks, the first speaks. `seconds`: how long new parts may begin; 0 for ever.
    """

    def __init__(self, out: Path | None, as_json: bool, ranks: Ranks | None, seconds: float) -> None:
        self.started = time.perf_counter()
        self.ranks, self.seconds = ranks, seconds
        self.speaks = ranks is None or ranks.rank == 0
        out = out if self.speaks else None
        self.path = None if out is None else out / "serving.json"
        self.as_json = as_json
        self.document: dict[str, Any] = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor(),
            "results": [],
        }
        self.failures = 0
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)

    def time_left(self) -> bool:
        """Whether another part may begin: the first rank's clock decides for all."""
        left = not self.seconds or time.perf_counter() - self.started < self.seconds
        if self.ranks is not None:
            said = [left]
            dist.broadcast_object_list(said, src=0, group=self.ranks.group)
            left = said[0]
        return left

    def add(self, kind: str, **values: Any) -> None:
        """Write one result."""
        row = {"kind": kind, "at_s": round(time.perf_counter() - self.started, 1), **values}
        self.document["results"].append(row)
        if not self.speaks:
            return
        if self.path is not None:
            self.path.write_text(json.dumps(self.document, indent=1) + "\n", encoding="utf-8")
        if self.as_json:
            print(json.dumps(row), flush=True)
        else:
            print(kind, *(f"{k}={_short(v)}" for k, v in row.items() if k != "kind"), flush=True)

    def run(self, kind: str, part: Callable[[], dict[str, Any]]) -> bool:
        """Run a part that must not keep the others from running; its failure is a result too."""
        try:
            self.add(kind, **part())
        except Exception as error:  # noqa: BLE001  # every later part is worth its own try
            self.failures += 1
            traceback.print_exc()
            self.add(kind, failed=f"{type(error).__name__}: {error}"[:500])
            return False
        return True


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _row(part: Callable[[], Any], **more: Any) -> dict[str, Any]:
    """A dataclass that a part returns, as a result."""
    return {**more, **asdict(part())}


def spec_of(args: argparse.Namespace) -> ModelSpec:
    """The model's dimensions, with fewer layers where that is asked for: its name then says so."""
    spec = load_model(args.model)
    if not args.layers or args.layers >= spec.layers:
        return spec
    name = f"{spec.name}, {args.layers} of {spec.layers} layers"
    return spec.model_copy(update={"name": name, "layers": args.layers})


def build(args: argparse.Namespace, journal: Journal) -> tuple[Engine, list[Reference]]:
    """The engine, and what transformers says about a few prompts before the engine takes the model over."""
    started = time.perf_counter()
    tokens = None if args.max_tokens == 0 else args.max_tokens
    if not args.random_weights:
        engine = Engine.from_model(args.model, device=args.device, max_tokens=tokens, kv_dtype=args.kv_dtype)
        journal.add("model", name=engine.spec.name, seconds=time.perf_counter() - started)
        return engine, []
    spec = spec_of(args)
    model, named = random_model(spec, device=args.device, dtype=_dtype(args), ranks=journal.ranks)
    references = []
    if (
        journal.ranks is None and spec.moe is None
    ):  # transformers cannot run a part of a model; experts: see below
        references = [reference(model, random_ids(n, spec.vocab, n), 8) for n in args.reference]
    built = time.perf_counter() - started
    engine = Engine(model, spec=named, max_tokens=tokens, kv_dtype=args.kv_dtype)
    engine.synchronize()
    weights = sum(p.nbytes for p in {id(p): p for p in engine.model.parameters()}.values())
    floor = None
    if journal.document["device"] in COPY_BANDWIDTH and spec.moe is None:  # a step reads some of the experts
        floor = weights / COPY_BANDWIDTH[journal.document["device"]] * 1e3
    journal.add(
        "model", name=named.name, model_seconds=built, seconds=time.perf_counter() - started,
        weight_gib=weights / 2**30, weight_floor_ms=floor, pool_tokens=engine.cache.pool.slots,
        kv_dtype=str(engine.kv_dtype), ranks=1 if journal.ranks is None else journal.ranks.size,
    )  # fmt: skip
    return engine, references


def first_layers(args: argparse.Namespace, count: int = 3) -> dict[str, Any]:
    """A model of experts against transformers on its first layers.

    In bf16 a random router's choices are soon others by rounding alone: over all 47 layers of GLM-4.7-Flash
    transformers does not agree with itself in float32 (`benchmarks.rounding`).
    """
    spec = spec_of(args)
    spec = spec.model_copy(update={"layers": min(count, spec.layers)})
    model, named = random_model(spec, device=args.device, dtype=_dtype(args))
    references = [reference(model, random_ids(n, spec.vocab, n), 8) for n in args.reference]
    engine = Engine(model, spec=named, max_tokens=4096, kv_dtype=args.kv_dtype)
    return {"layers": spec.layers, **asdict(against_reference(engine, references))}


def _dtype(args: argparse.Namespace) -> torch.dtype:
    return torch.bfloat16 if args.device == "cuda" else torch.float32


def decode_table(engine: Engine, args: argparse.Namespace, journal: Journal) -> None:
    """Decode steps for every batch and context that fits, the smallest first, while there is time."""
    blocks = engine.cache.blocks.available
    wanted = sorted(((b, c) for c in args.context for b in args.batch), key=lambda bc: (bc[0] * bc[1], bc))
    for batch, context in wanted:
        each = blocks_for(context + args.new_tokens)
        if batch * each > blocks:
            why = f"needs {batch * each * BLOCK_TOKENS:,} tokens of KV, {blocks * BLOCK_TOKENS:,} are there"
            journal.add("skipped", batch=batch, context=context, why=why, batch_that_fits=blocks // each)
        elif not journal.time_left():
            journal.add("skipped", batch=batch, context=context, why=f"{args.seconds} seconds were over")
        else:
            decode_row(engine, args, journal, batch, context)


def decode_row(engine: Engine, args: argparse.Namespace, journal: Journal, batch: int, context: int) -> None:
    """Decode steps of every flow for one batch and context."""
    held: list[Prompt] = []

    def prepare() -> dict[str, Any]:
        started = time.perf_counter()
        engine.load_flow(None)
        held.extend(fill(engine, batch, context, random_kv=args.random_kv))
        engine.synchronize()
        seconds = time.perf_counter() - started
        return {"batch": batch, "context": context, "random_kv": args.random_kv, "seconds": seconds}

    if journal.run("prompts", prepare):
        chosen = flows_named(args.flows, page_size=args.page, budget=args.budget)
        for flow in chosen:
            measure = partial(
                measure_decode, engine, flow, held, new_tokens=args.new_tokens, rounds=args.rounds
            )
            journal.run("decode", partial(_row, measure))
        if engine.spec.moe is not None:
            journal.run("experts", partial(experts, engine, held))
        # Afterwards: a profiler that fails or slows the process must not touch the figures above.
        if not args.no_share:
            for flow in chosen:
                journal.run("share", partial(share, engine, flow, held))
    for prompt in held:
        engine.release(prompt)


def experts(engine: Engine, prompts: list[Prompt]) -> dict[str, Any]:
    """How many experts the layers of a step read."""
    engine.load_flow(None)
    assert engine.spec.moe is not None
    used = experts_used(engine, prompts)
    return {"batch": len(prompts), "used": used, "of": engine.spec.moe.experts}


def share(engine: Engine, flow: Flow | None, prompts: list[Prompt]) -> dict[str, Any]:
    """Of a decode step's time, how much is attention."""
    engine.load_flow(None) if flow is None else engine.load_flow(flow.program, flow.knobs)
    row: dict[str, Any] = {
        "flow": "dense" if flow is None else flow.name,
        "page_size": 0 if flow is None else flow.knobs.page_size,
    }
    if engine.device.type != "cuda":
        row["attention_share"] = attention_share(engine, prompts)
    else:
        launches = step_launches(engine, prompts)
        row["attention_share"] = attention_part(launches)
        row["launches"] = sum(x.count for x in launches)
        row["longest"] = [f"{x.microseconds:.0f} us in {x.count:g} {x.kernel[:60]}" for x in launches[:16]]
    return row


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def numbers(text: str) -> list[int]:
        return [int(x) for x in text.split(",")]

    found.add_argument("--model", default="smollm2-135m")
    found.add_argument("--random-weights", action="store_true", help=LABEL)
    found.add_argument("--random-kv", action="store_true", help="random keys and values, throughput only")
    found.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    found.add_argument("--tp", type=int, default=1, help="tensor-parallel ranks, a process each")
    found.add_argument("--layers", type=int, default=0, help="with random weights: only so many layers")
    found.add_argument(
        "--flows",
        type=lambda s: s.split(","),
        default=["dense", "block_topk", "quest"],
        help="library flows, NAME or NAME@PAGE",
    )
    found.add_argument("--batch", type=numbers, default=[1])
    found.add_argument("--context", type=numbers, default=[1024], help="tokens of each prompt")
    found.add_argument("--new-tokens", type=int, default=32)
    found.add_argument("--rounds", type=int, default=3)
    found.add_argument("--page", type=int, default=16)
    found.add_argument("--budget", default="2048", help="tokens a step may attend, a number or an expression")
    found.add_argument("--max-tokens", type=int, default=0, help="of the KV pool; 0 for the default")
    found.add_argument("--kv-dtype", default="auto", help="of the KV pool: auto, fp8_e4m3 or fp8_e5m2")
    found.add_argument("--serve", type=int, default=0, help="requests to run through the scheduler as well")
    found.add_argument("--serve-context", type=int, default=1024)
    found.add_argument(
        "--reference", type=numbers, default=[200, 33], help="prompts compared with transformers"
    )
    found.add_argument(
        "--seconds", type=float, default=0, help="begin nothing new after so long; 0: no limit"
    )
    found.add_argument("--no-share", action="store_true", help="do not profile attention's share of a step")
    found.add_argument("--check", action="store_true", help="check a tiny model first")
    found.add_argument("--json", action="store_true", help="one JSON object a line")
    found.add_argument("--out", type=Path, help="folder for serving.json")
    return found


def spawn(ranks: int) -> int:
    """The same command once for each rank."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", str(ranks)]
    return subprocess.run([*command, "-m", "benchmarks.serving", *sys.argv[1:]], check=False).returncode


def main() -> int:
    """Run it; 1 if a part failed."""
    command_line = parser()
    args = command_line.parse_args()
    if args.device == "cuda":
        needs.gpus(command_line, args.tp)
    if args.tp > 1 and "WORLD_SIZE" not in os.environ:
        return spawn(args.tp)
    wait_passively()
    ranks = join_ranks(args.device)
    code = measure_all(args, Journal(args.out, args.json, ranks, args.seconds))
    if ranks is not None:
        # NCCL waits for captured graphs that hold its launches when the process group is taken down, and they for it.
        dist.barrier()
        sys.stdout.flush()
        os._exit(code)
    return code


def measure_all(args: argparse.Namespace, journal: Journal) -> int:
    """Checks, the decode table, requests; 1 if a part failed."""
    journal.add("start", command=" ".join(sys.argv[1:]), device=journal.document["device"])
    if journal.ranks is not None:
        journal.run("ranks", partial(ranks_check, args.device, journal.ranks))
    elif args.check:
        journal.run("tiny", partial(tiny_check, args.device))
    if args.random_weights and args.reference and journal.ranks is None and spec_of(args).moe is not None:
        journal.run("transformers", partial(first_layers, args))
    engine, references = build(args, journal)
    tolerance = 0.05 if engine.dtype == torch.bfloat16 else 1e-3
    if references:
        journal.run("transformers", partial(_row, partial(against_reference, engine, references)))
    for flow in flows_named(args.flows, page_size=args.page, budget=args.budget):
        if flow is not None:
            check = partial(matches_dense, engine, flow, tolerance)
            row = partial(_row, check, flow=flow.name, page_size=flow.knobs.page_size)
            journal.run("everything selected", row)
    decode_table(engine, args, journal)
    if args.serve:
        for flow in flows_named(args.flows, page_size=args.page, budget=args.budget):
            serve = partial(
                measure_serving, engine, flow, requests=args.serve, context=args.serve_context,
                new_tokens=args.new_tokens, max_batch=max(args.batch),
            )  # fmt: skip
            journal.run("serve", partial(_row, serve))
    return 1 if journal.failures else 0


if __name__ == "__main__":
    sys.exit(main())

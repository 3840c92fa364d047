"""Serving speed of a model with dense attention and with flows: parity first, then decode in turns, then requests.

    python -m benchmarks.serving --model qwen3-1.7b --random-weights --random-kv --out benchmarks/results
    python -m benchmarks.serving --model smollm2-135m --batch 2 --context 512 --new-tokens 8 --serve 4

Every result is printed and written as soon as it is there. `--random-kv` fills the cache with random numbers instead
of prefilling (speed only). `--check` first compares a tiny random model with transformers and swaps twenty flows.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vortex_core import library
from vortex_core.engine.cache import Prompt
from vortex_core.engine.cores import wait_passively
from vortex_core.engine.engine import Engine
from vortex_core.engine.models.random_weights import LABEL, random_model
from vortex_core.engine.throughput import (
    Candidate,
    Reference,
    against_reference,
    attention_share,
    candidates,
    everything_selected,
    fill,
    measure_decode,
    measure_serving,
    random_ids,
    reference,
)
from vortex_core.ir.knobs import Knobs
from vortex_core.specs import load_model

COPY_BANDWIDTH = {"NVIDIA H100 80GB HBM3": 3.03e12, "NVIDIA H200": 4.28e12}  # bytes/s, read + write, measured


class Journal:
    """Results as they come: a line each, and a JSON file that is whole after every one."""

    def __init__(self, out: Path | None, as_json: bool) -> None:
        self.started = time.perf_counter()
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

    def add(self, kind: str, **values: Any) -> None:
        """Write one result."""
        row = {"kind": kind, "at_s": round(time.perf_counter() - self.started, 1), **values}
        self.document["results"].append(row)
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


def tiny_check(device: str) -> dict[str, Any]:
    """A tiny model in float32: transformers' tokens, every flow's with everything selected, sampling, hot swaps."""
    spec = load_model("qwen3-1.7b").model_copy(
        update={
            "layers": 3, "hidden": 128, "q_heads": 4, "kv_heads": 2, "head_dim": 64, "intermediate": 256,
            "vocab": 512, "tie_embeddings": False,
        }
    )  # fmt: skip
    model, spec = random_model(spec, device=device, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.mul_(8.0 if "proj" in name else 4.0)  # attention that looks far, and spread logits
    references = [reference(model, random_ids(n, spec.vocab, n), 12) for n in (300, 129, 20)]
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


def build(args: argparse.Namespace, journal: Journal) -> tuple[Engine, list[Reference]]:
    """The engine, and what transformers says about a few prompts before the engine takes the model over."""
    started = time.perf_counter()
    tokens = None if args.max_tokens == 0 else args.max_tokens
    if not args.random_weights:
        engine = Engine.from_model(args.model, device=args.device, max_tokens=tokens)
        journal.add("model", name=engine.spec.name, seconds=time.perf_counter() - started)
        return engine, []
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    model, spec = random_model(load_model(args.model), device=args.device, dtype=dtype)
    references = [reference(model, random_ids(n, spec.vocab, n), 8) for n in args.reference]
    built = time.perf_counter() - started
    engine = Engine(model, spec=spec, max_tokens=tokens)
    engine.synchronize()
    weights = sum(p.nbytes for p in {id(p): p for p in engine.model.parameters()}.values())
    floor = None
    if journal.document["device"] in COPY_BANDWIDTH:
        floor = weights / COPY_BANDWIDTH[journal.document["device"]] * 1e3
    journal.add(
        "model", name=spec.name, model_seconds=built, seconds=time.perf_counter() - started,
        weight_gib=weights / 2**30, weight_floor_ms=floor, pool_tokens=engine.cache.pool.slots,
    )  # fmt: skip
    return engine, references


def decode_table(engine: Engine, args: argparse.Namespace, journal: Journal) -> None:
    """Decode steps for every batch and context."""
    for batch in args.batch:
        for context in args.context:
            held: list[Any] = []

            def prepare(batch: int = batch, context: int = context, held: list[Any] = held) -> dict[str, Any]:
                started = time.perf_counter()
                engine.load_flow(None)
                held.extend(fill(engine, batch, context, random_kv=args.random_kv))
                engine.synchronize()
                return {
                    "batch": batch,
                    "context": context,
                    "random_kv": args.random_kv,
                    "seconds": time.perf_counter() - started,
                }

            if journal.run("prompts", prepare):
                for candidate in candidates(args.flows, page_size=args.page, budget=args.budget):

                    def measure(candidate: Any = candidate, held: list[Any] = held) -> dict[str, Any]:
                        row = measure_decode(
                            engine, candidate, held, new_tokens=args.new_tokens, rounds=args.rounds
                        )
                        return asdict(row)

                    journal.run("decode", measure)
                # Afterwards: a profiler that fails or slows the process must not touch the figures above.
                for candidate in candidates(args.flows, page_size=args.page, budget=args.budget):
                    journal.run("share", partial(share, engine, candidate, held))
            for prompt in held:
                engine.release(prompt)


def share(engine: Engine, candidate: Candidate, prompts: list[Prompt]) -> dict[str, Any]:
    """Of a decode step's time, how much is attention."""
    engine.load_flow(candidate.program, candidate.knobs)
    return {"flow": candidate.name, "attention_share": attention_share(engine, prompts)}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def numbers(text: str) -> list[int]:
        return [int(x) for x in text.split(",")]

    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--random-weights", action="store_true", help=LABEL)
    parser.add_argument("--random-kv", action="store_true", help="random keys and values, throughput only")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--flows", type=lambda s: s.split(","), default=["dense", "block_topk", "quest"])
    parser.add_argument("--batch", type=numbers, default=[1])
    parser.add_argument("--context", type=numbers, default=[1024], help="tokens of each prompt")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--page", type=int, default=16)
    parser.add_argument(
        "--budget", default="2048", help="tokens a step may attend, a number or an expression"
    )
    parser.add_argument("--max-tokens", type=int, default=0, help="of the KV pool; 0 for the default")
    parser.add_argument("--serve", type=int, default=0, help="requests to run through the scheduler as well")
    parser.add_argument("--serve-context", type=int, default=1024)
    parser.add_argument(
        "--reference", type=numbers, default=[200, 33], help="prompts compared with transformers"
    )
    parser.add_argument("--check", action="store_true", help="check a tiny model first")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--out", type=Path, help="folder for serving.json")
    return parser.parse_args()


def main() -> int:
    """Run it; 1 if a part failed."""
    wait_passively()
    args = parse()
    journal = Journal(args.out, args.json)
    journal.add("start", command=" ".join(sys.argv[1:]), device=journal.document["device"])
    if args.check:
        journal.run("tiny", lambda: tiny_check(args.device))
    engine, references = build(args, journal)
    tolerance = 0.05 if engine.dtype == torch.bfloat16 else 1e-3
    if references:
        journal.run("transformers", lambda: asdict(against_reference(engine, references)))
    for flow in args.flows:
        if flow != "dense":
            check = partial(everything_selected, engine, flow, args.page, tolerance)
            journal.run("everything selected", partial(_row, check, flow=flow))
    decode_table(engine, args, journal)
    if args.serve:
        for candidate in candidates(args.flows, page_size=args.page, budget=args.budget):
            serve = partial(
                measure_serving, engine, candidate, requests=args.serve, context=args.serve_context,
                new_tokens=args.new_tokens, max_batch=max(args.batch),
            )  # fmt: skip
            journal.run("serve", partial(_row, serve))
    return 1 if journal.failures else 0


if __name__ == "__main__":
    sys.exit(main())

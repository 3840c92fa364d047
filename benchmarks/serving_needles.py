"""Needle accuracy with real weights: the same items through SGLang with the plug-in and through the embedded engine.

    python -m benchmarks.serving_needles --flows block_topk,quest --budget 256 --out benchmarks/results

Runs in this project's environment; SGLang runs in its own (`VORTEX_SGLANG_PYTHON`, docs/serving.md). The first new
token is handled alike: SGLang's comes from prefill and is dense, so the embedded engine's is dense too, and a flow
decodes from the second token on. Each engine continues its own first token. A `pair_recall` question (the model
retrieval-mla) has an answer of one token, so its last token, the key, is given as the answer's first: a flow reads it
and answers. Answers end where the evaluators end them; both engines are asked for the same number of tokens. The
paired interval is the evaluators' (Tango 1998).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from benchmarks import needs
from benchmarks.serving_shapes import CPU_VARIABLES
from evaluators import stats
from evaluators.tasks.base import Question
from evaluators.tasks.needle import needle_item
from evaluators.tasks.pairs import pair_item
from evaluators.tasks.tokens import encode
from vortex_core import library
from vortex_core.engine import Engine
from vortex_core.engine.models.weights import resolve_model
from vortex_core.ir.flow import Flow
from vortex_core.serving.bundle import write_flow
from vortex_core.serving.client import EngineProcess
from vortex_core.serving.settings import Settings

DENSE = "dense"
PAIRS = "pair_recall"
FIRST = {
    False: "The first new token is dense in both engines, a flow decodes from the second on.",
    True: "Each prompt's last token, the key asked for, is decoded with the flow, and so is the answer.",
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Answered:
    """One engine with one flow on all items.

    Attributes:
        tokens: of each item, up to where its answer ends.
        scores: 0 or 1 of each item.
        density: tokens attended of tokens there, while the flow decoded; None where dense.
        ir_hash: program that the engine says it ran.
        seconds: prefill and decode.
    """

    tokens: list[list[int]]
    scores: list[float]
    density: float | None
    ir_hash: str | None
    seconds: float


class Items:
    """The questions, and how answers to them are cut and scored."""

    def __init__(self, tokenizer: Any, tasks: Sequence[str], seed: int) -> None:
        self.tokenizer = tokenizer
        self.items: list[Question] = []
        kinds = set()
        for task in tasks:  # e.g. needle_multikey:1024:8:2
            name, context, count, distractors = f"{task}:0".split(":")[:4]
            where = {"context": int(context), "seed": seed, "distractors": int(distractors)}
            for i in range(int(count)):
                pairs = name == PAIRS
                item = pair_item(**where, index=i) if pairs else needle_item(
                    tokenizer, task=name, **where, index=i
                )  # fmt: skip
                self.items.append(item)
                kinds.add(pairs)
        if len(kinds) != 1:
            raise SystemExit(
                f"{PAIRS} is another model's task than the rest: name one kind, and one item at least"
            )
        given = kinds.pop()
        self.prompts = [list(item.prompt[:-1] if given else item.prompt) for item in self.items]
        self.starts = [[item.prompt[-1]] for item in self.items] if given else None
        self.new = max(item.max_new_tokens for item in self.items) + given
        stops = set() if given else {*encode(tokenizer, "."), *encode(tokenizer, "\n")}
        self.stops = {stop for stop in (tokenizer.eos_token_id, *stops) if stop is not None}

    def answered(
        self, found: Sequence[Sequence[int]], density: float | None, ir_hash: str | None, seconds: float
    ) -> Answered:
        """Cut each answer at its first stop, and score it."""
        cut, scores = [], []
        for item, tokens in zip(self.items, found, strict=True):
            tokens = tokens[1:] if self.starts else tokens
            end = next((i for i, token in enumerate(tokens) if token in self.stops), len(tokens))
            cut.append(list(tokens[:end]))
            scores.append(item.score(self.tokenizer.decode(cut[-1], skip_special_tokens=True)))
        return Answered(cut, scores, density, ir_hash, seconds)


def embedded(items: Items, flows: dict[str, Flow | None], args: argparse.Namespace) -> dict[str, Answered]:
    """All flows on one embedded engine; prompts are prefilled once."""
    room = sum(-(-(len(p) + items.new) // 128) + 1 for p in items.prompts) * 256
    engine = Engine.from_model(args.model, max_tokens=room, device=args.device, dtype=DTYPES[args.dtype])
    groups = batches(items.prompts, args.batch)
    began = time.perf_counter()
    firsts: list[int] = [start[0] for start in items.starts or ()]
    for group in groups if items.starts is None else ():
        prompts = [engine.prefill(ids) for ids in group]
        firsts += [tokens[0] for tokens in engine.decode(prompts, max_new_tokens=1).tokens]
    begun = [[*ids, first] for ids, first in zip(items.prompts, firsts, strict=True)]
    continued = [[engine.prefill(ids) for ids in group] for group in batches(begun, args.batch)]
    prefill = time.perf_counter() - began
    answers = {}
    for name, bundle in flows.items():
        began = time.perf_counter()
        engine.load_flow(*((bundle.program, bundle.knobs) if bundle else (None,)))
        found, densities = [], []
        for group in continued:
            result = engine.decode(group, max_new_tokens=items.new - 1)
            found += result.tokens
            densities.append(result.density)
        tokens = [[first, *rest] for first, rest in zip(firsts, found, strict=True)]
        density = sum(densities) / len(densities) if bundle else None
        seconds = prefill + time.perf_counter() - began
        answers[name] = items.answered(tokens, density, result.ir_hash if bundle else None, seconds)
        report("embedded", name, answers[name])
    return answers


def through_sglang(
    items: Items, flows: dict[str, Flow | None], args: argparse.Namespace, folder: Path
) -> tuple[dict[str, Answered], str]:
    """The same in SGLang, a process for each flow. Returns answers and SGLang's version."""
    longest = max(map(len, items.prompts)) + items.new
    options: dict[str, Any] = {
        "model_path": str(resolve_model(args.model).directory), "skip_tokenizer_init": True, "dtype": args.dtype,
        "grammar_backend": "none", "sampling_backend": "pytorch", "page_size": args.page,
        "context_length": longest + args.page, "max_running_requests": args.batch, "log_level": "info",
        "max_total_tokens": sum(map(len, items.prompts)) + 4 * args.batch * args.page, "random_seed": 0,
        "watchdog_timeout": 1200, "mem_fraction_static": 0.5,
    }  # fmt: skip
    variables = {"HF_HUB_OFFLINE": "1"}
    if items.starts:
        options["forced_starts"] = True
    if args.device == "cpu":
        options |= {"device": "cpu", "disable_cuda_graph": True}
        variables |= CPU_VARIABLES
    else:
        options["cuda_graph_bs_decode"] = [args.batch]

    def one(name: str) -> tuple[Answered, str]:
        bundle, settings, backend = flows[name], None, args.dense
        if bundle is not None:
            settings, backend = (
                Settings(str(write_flow(bundle, folder / f"{name}.json")), args.dense),
                "vortex",
            )
        with EngineProcess(options | {"attention_backend": backend}, settings, variables=variables) as engine:
            began = time.perf_counter()
            found: list[list[int]] = []
            starts = batches(items.starts, args.batch) if items.starts else repeat(None)
            for group, start in zip(batches(items.prompts, args.batch), starts, strict=False):
                found += engine.generate(group, items.new, starts=start).tokens
            seconds, status = time.perf_counter() - began, engine.status or {}
            version = str(engine.facts["sglang"])
        answered = items.answered(found, status.get("density"), status.get("ir_hash"), seconds)
        report("sglang", name, answered)
        return answered, version

    with ThreadPoolExecutor(args.parallel) as pool:
        results = dict(zip(flows, pool.map(one, flows), strict=True))
    return {name: answered for name, (answered, _) in results.items()}, results[DENSE][1]


def batches(prompts: Sequence[list[int]], size: int) -> list[list[list[int]]]:
    """In groups of `size`."""
    return [list(prompts[i : i + size]) for i in range(0, len(prompts), size)]


def report(engine: str, name: str, answered: Answered) -> None:
    """One line on the way."""
    right = int(sum(answered.scores))
    print(f"{engine} {name}: {right}/{len(answered.scores)} in {answered.seconds:.0f} s", flush=True)


def row(name: str, ours: Answered, theirs: Answered, dense: Answered) -> dict[str, Any]:
    """SGLang (`ours`) beside the embedded engine (`theirs`) and SGLang's dense answers, paired by item."""
    pairs = list(zip(ours.tokens, theirs.tokens, strict=True))
    same = sum(sum(a == b for a, b in zip(x, y, strict=False)) for x, y in pairs)
    against = [asdict(stats.paired_difference(ours.scores, other.scores)) for other in (theirs, dense)]
    return {
        "flow": name, "items": len(ours.scores), "sglang": sum(ours.scores) / len(ours.scores),
        "embedded": sum(theirs.scores) / len(theirs.scores), "difference": against[0],
        "over_dense": against[1], "same_answers": sum(a == b for a, b in pairs),
        "same_first_tokens": sum(a[:1] == b[:1] for a, b in pairs),
        "same_tokens": same / sum(max(len(x), len(y)) for x, y in pairs),
        "density_sglang": ours.density, "density_embedded": theirs.density,
        "ir_hash_sglang": ours.ir_hash, "ir_hash_embedded": theirs.ir_hash,
    }  # fmt: skip


def page(data: dict[str, Any]) -> str:
    """The result as Markdown."""
    about = (
        f"{data['date']}. {data['model']} (real weights), {data['dtype']}, {data['device']}; SGLang "
        f"{data['sglang']}, torch {data['torch']} here. Items: {', '.join(data['tasks'])} "
        f"(task:context:items:distractors), seed {data['seed']}; budget {data['budget']} tokens, pages of "
        f"{data['page']}. {data['first']} "
        "Differences in accuracy with their 95% interval, paired by item."
    )
    columns = (
        "| flow | SGLang | embedded | SGLang - embedded | SGLang - its dense | equal answers | equal tokens "
        "| density SGLang / embedded |"
    )
    lines = [
        "# Needle accuracy through SGLang and through the embedded engine", "", about, "",
        f"`{data['command']}`", "", columns, "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for r in data["rows"]:
        spans = [
            f"{d['value']:+.3f} ({d['low']:+.3f} .. {d['high']:+.3f})"
            for d in (r["difference"], r["over_dense"])
        ]
        density = (
            "" if r["density_sglang"] is None else f"{r['density_sglang']:.3f} / {r['density_embedded']:.3f}"
        )
        lines.append(
            f"| {r['flow']} | {r['sglang']:.3f} | {r['embedded']:.3f} | {spans[0]} | {spans[1]} "
            f"| {r['same_answers']}/{r['items']} | {r['same_tokens']:.1%} | {density} |"
        )
    return "\n".join([*lines, ""])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--model", default="smollm2-135m")
    found.add_argument("--flows", default="block_topk,quest")
    found.add_argument("--budget", default="256", help="tokens, or an expression")
    found.add_argument("--page", type=int, default=16)
    tasks = ["needle_single:1024:10", "needle_multikey:1024:10:2", "needle_single:2048:4"]
    found.add_argument("--tasks", nargs="+", default=tasks, metavar="TASK:CONTEXT:ITEMS[:DISTRACTORS]")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--batch", type=int, default=8)
    found.add_argument("--parallel", type=int, default=1, help="SGLang engines at a time")
    found.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    found.add_argument("--dtype", choices=DTYPES, help="of both engines; float32 on a CPU, else bfloat16")
    found.add_argument("--dense", help="SGLang backend: dense arm and prefill of all")
    found.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return found


def main() -> None:
    """Ask both engines; write `serving_needles.json` and `.md`."""
    command_line = parser()
    args = command_line.parse_args()
    needs.sglang(command_line)
    if args.device == "cuda":
        needs.gpus(command_line)
    model = resolve_model(args.model)
    if model.spec.mla is not None:  # SGLang's attention on a CPU cannot prefill latent rows
        needs.gpus(command_line)
    args.dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    args.dense = args.dense or ("torch_native" if args.device == "cpu" else "fa3")
    args.out.mkdir(parents=True, exist_ok=True)
    items = Items(
        AutoTokenizer.from_pretrained(model.directory, trust_remote_code=False), args.tasks, args.seed
    )
    flows: dict[str, Flow | None] = {DENSE: None}
    for name in args.flows.split(","):
        flows[name] = library.resolve(name).with_knobs(page_size=args.page, budget=args.budget).flow
    theirs = embedded(items, flows, args)
    if args.device == "cuda":  # the engine is gone, its memory is SGLang's
        gc.collect()
        torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory() as folder:
        ours, version = through_sglang(items, flows, args, Path(folder))
    gpu = args.device == "cuda"
    data = {
        "date": time.strftime("%Y-%m-%d"), "model": model.spec.name, "dtype": args.dtype,
        "sglang": version, "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if gpu else f"CPU ({platform.machine()}, {os.cpu_count()} cores)",
        "tasks": args.tasks, "seed": args.seed, "budget": args.budget, "page": args.page,
        "command": shlex.join(["python", "-m", "benchmarks.serving_needles", *sys.argv[1:]]),
        "first": FIRST[items.starts is not None],
        "rows": [row(name, ours[name], theirs[name], ours[DENSE]) for name in flows],
        "answers": {"sglang": {n: asdict(a) for n, a in ours.items()},
                    "embedded": {n: asdict(a) for n, a in theirs.items()}},
    }  # fmt: skip
    for r in data["rows"]:
        assert r["ir_hash_sglang"] == r["ir_hash_embedded"], (
            f"{r['flow']}: the engines ran different programs"
        )
    (args.out / "serving_needles.json").write_text(json.dumps(data) + "\n")
    (args.out / "serving_needles.md").write_text(page(data))
    print(page(data))


if __name__ == "__main__":
    main()

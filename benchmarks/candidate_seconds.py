r"""Seconds of a candidate by stage, on this machine's device: python -m benchmarks.candidate_seconds --model MODEL

Loads a model, prefills and answers densely once, then takes library flows through every stage of a plan, as a campaign
does, and prints what each stage took and found. Run twice, the second shows what compiled kernels save.

    python -m benchmarks.candidate_seconds --model smollm2-135m --plan gpu
    python -m benchmarks.candidate_seconds --model glm-4.7-flash --random-weights --accuracy-model retrieval-mla \
        --plan mla-gpu
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from benchmarks import needs
from evaluators.device import choose_device, device_kind
from evaluators.plan import EvaluationPlan, load_plan
from evaluators.worker import EvaluationWorker
from vortex_core import library
from vortex_core.ir.flow import Flow

FLOWS = "quest@16:512,quest@64:1024,block_topk@16:2048,block_topk@64:512,streaming@16:2048,nsa@16:512"
CRASHES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
SHOWN = (
    "gate_accuracy",
    "accuracy_delta",
    "recall",
    "perplexity_ratio",
    "decode_speedup",
    "modelled_speedup_h200",
)


def flows(text: str) -> list[Flow]:
    """`name@page:budget`, separated by commas."""
    found = []
    for wanted in text.split(","):
        name, _, settings = wanted.partition("@")
        page, _, budget = settings.partition(":")
        changes: dict[str, Any] = {"page_size": int(page)} if page else {}
        flow = library.load(name)
        found.append(flow.with_knobs(**changes, **({"budget": budget} if budget else {})))
    return found


def evaluated(worker: EvaluationWorker, flow: Flow) -> list[dict[str, Any]]:
    """Every stage in order until one does not pass; what propagates is shown and ends the flow."""
    rows = []
    for stage in worker.plan.stages:
        began, computed = time.perf_counter(), time.process_time()
        try:
            result = worker.run(stage, flow)
        except CRASHES as error:  # a lost device, a bug: the other flows are measured all the same
            traceback.print_exc()
            rows.append(
                {"stage": stage, "seconds": time.perf_counter() - began, "crashed": repr(error)[:500]}
            )
            break
        took = {
            "seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - computed,
        }  # fmt: skip
        rows.append(result.to_json() | took)
        if not result.passed:
            break
    return rows


def line(flow: Flow, rows: list[dict[str, Any]]) -> str:
    """A flow's seconds by stage, and its numbers."""
    name = f"{flow.name} page {flow.knobs.page_size} budget {flow.knobs.budget}"
    took = " ".join(f"{r['stage']} {r['seconds']:.2f}" for r in rows)
    values = {n: m for r in rows for n, m in r.get("metrics", {}).items()}
    numbers = ", ".join(f"{n} {_number(values[n])}" for n in SHOWN if n in values)
    failed = [r for r in rows if not r.get("passed", False)]
    why = ""
    if failed:
        error = (failed[0].get("failure") or {}).get("error", {})
        words = f"{error['code']} {error['message']}" if error else failed[0].get("crashed", "")
        why = f"\n    stopped in {failed[0]['stage']}: {words}"
    total = sum(r["seconds"] for r in rows)
    return f"{name}: {total:.2f} s\n    seconds: {took}\n    {numbers}{why}"


def _number(metric: dict[str, Any]) -> str:
    if metric["low"] is None or metric["high"] is None:
        return f"{metric['value']:.3f}"
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"


def points(rows: list[dict[str, Any]]) -> list[str]:
    """What the decode stage found at each operating point."""
    decode = next((r for r in rows if r["stage"] == "decode" and r.get("info")), None)
    if decode is None:
        return []
    return [
        f"      {context} x {p['batch']}: {p['step_ms_p50']:.3f} ms (P95 {p['step_ms_p95']:.3f}), dense "
        f"{p['dense_ms_p50']:.3f}, density {p['density']:.3f}"
        + (
            f", {p['bytes_per_second'] / 1e12:.2f} TB/s, {p['roofline_share']:.0%} of the roofline "
            f"(dense {p['dense_roofline_share']:.0%})"
            if "roofline_share" in p
            else ""
        )
        for context, p in decode["info"].get("points", {}).items()
    ]


def by_stage(candidates: list[list[dict[str, Any]]]) -> list[str]:
    """A table of seconds by stage over the candidates that reached it: by the clock, and of this process's computing,
    which says more where a machine has other work."""
    took: dict[str, list[tuple[float, float]]] = {}
    for rows in candidates:
        for row in rows:
            seconds = row["seconds"]
            took.setdefault(row["stage"], []).append((seconds, row.get("cpu_seconds", seconds)))
    lines = [
        "| stage | candidates | median s | longest s | computing, median s | longest s |",
        "|" + "---|" * 6,
    ]
    for stage, pairs in took.items():
        cells = []
        for seconds in zip(*pairs, strict=True):
            cells += [f"{statistics.median(seconds):.3f}", f"{max(seconds):.3f}"]
        lines.append(f"| {stage} | {len(pairs)} | {' | '.join(cells)} |")
    return lines


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--model", default="smollm2-135m")
    found.add_argument("--plan", help="gpu on a GPU, quick on a CPU")
    found.add_argument("--accuracy-model")
    found.add_argument("--random-weights", action="store_true")
    found.add_argument("--stages", help="comma-separated, in place of the plan's")
    found.add_argument("--device", default="auto")
    found.add_argument("--threads", type=int)
    found.add_argument("--flows", default=FLOWS, help="name@page:budget, comma-separated")
    found.add_argument("--out", type=Path, help="folder for candidate_seconds.json")
    return found


def main() -> None:
    """Load, prepare, evaluate, print; with `--out` also write everything as JSON."""
    command_line = parser()
    args = command_line.parse_args()
    device = choose_device(args.device)
    if args.device == "auto" and "gpu" in (args.plan or ""):  # long contexts, and models that no CPU holds
        needs.gpus(command_line)
    plan = load_plan(args.plan or ("quick" if device == "cpu" else "gpu"))
    if args.stages:
        plan = EvaluationPlan.model_validate(
            plan.model_dump(mode="json") | {"stages": args.stages.split(",")}
        )
    began = time.perf_counter()
    worker = EvaluationWorker(
        args.model, plan, device=device, threads=args.threads, accuracy_model=args.accuracy_model,
        random_weights=args.random_weights,
    )  # fmt: skip
    loaded = time.perf_counter() - began
    began = time.perf_counter()
    prefill = worker.prepare()
    prepared = time.perf_counter() - began
    engine = worker.speed.engine
    data: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"), "model": engine.spec.name, "device": device_kind(engine.device),
        "torch": torch.__version__, "plan": worker.plan.name, "pool_tokens": engine.cache.blocks.total * 128,
        "load_seconds": loaded, "prepare_seconds": prepared, "prefill_seconds": prefill, "candidates": [],
    }  # fmt: skip
    print(
        f"{worker.speed.label}: loaded in {loaded:.1f} s, pool of {data['pool_tokens']:,} tokens; prepared in "
        f"{prepared:.1f} s, of which prefill {prefill:.1f} s",
        flush=True,
    )
    if args.accuracy_model or not args.random_weights:
        reference = worker.reference()
        right = {key: f"{sum(s):.0f}/{len(s)}" for key, s in reference["scores"].items()}
        data["dense"] = right
        print(f"answers of {worker.bench.resident.label}; dense right: {right}", flush=True)
    totals = []
    for flow in flows(args.flows):
        rows = evaluated(worker, flow)
        totals.append(sum(r["seconds"] for r in rows))
        data["candidates"].append({"flow": flow.name, "knobs": flow.knobs.to_json(), "stages": rows})
        print("\n".join([line(flow, rows), *points(rows)]), flush=True)
    print("\n".join(by_stage([candidate["stages"] for candidate in data["candidates"]])))
    print(f"median {statistics.median(totals):.2f} s a candidate", flush=True)
    if device != "cpu":
        data["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        print(f"at most {data['memory_gib']:.1f} GiB allocated", flush=True)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "candidate_seconds.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

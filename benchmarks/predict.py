"""Which fidelity predicts the next: python -m benchmarks.predict --model retrieval-mla --plan retrieval --out runs/x

Takes the library at several budgets through the screen (recorded attention), the answers of the plan's accuracy items
and the perplexity of its passages, and prints Spearman's rank correlation of every number of the screen with what the
model then did, with an interval that resamples programs. Rows are written one by one, so a second run goes on where the
first one stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from evaluators.bench import Bench
from evaluators.plan import EvaluationPlan, load_plan
from evaluators.stages.base import Deadline
from evaluators.worker import EvaluationWorker
from vortex_core import library
from vortex_core.errors import VortexError
from vortex_core.ir.flow import Flow

SCREENED = ("beyond", "recall", "output_error", "logit_error", "density")
WANTED = ("accuracy", "perplexity_ratio")
RESAMPLES = 2000


def programs(budgets: list[int], page: int, files: list[Path]) -> list[Flow]:
    """Library flows and those of files, each at every budget in tokens, with common page size and kept pages."""
    found: dict[str, Flow] = {}
    for name in [*library.names(), *map(str, files)]:
        try:
            flow = library.resolve(name).flow
        except VortexError:  # needs learned values
            continue
        if flow.program.selects_everything:
            continue
        for budget in budgets:
            one = flow.with_knobs(
                page_size=page, budget=str(budget), keep_first=1, keep_last=2, dense_layers=()
            )
            found.setdefault(one.key, one)
    return list(found.values())


def measure(worker: EvaluationWorker, flow: Flow, seed: int, *, passages: bool) -> dict[str, Any]:
    """One program through the screen, the answers and the passages."""
    bench: Bench = worker.bench
    began = time.process_time()
    score = bench.screener(seed).score(flow)
    row: dict[str, Any] = {
        "flow": flow.name,
        "budget": flow.knobs.budget,
        "key": flow.key,
        "screen_seconds": time.process_time() - began,
    }
    assert score.own is not None
    row |= {name: getattr(score.own, name) for name in SCREENED}
    places = bench.prompts(seed).items.in_order(1)
    began = time.process_time()
    answers = bench.answer(flow, seed, places, Deadline("predict", None))
    row["answer_seconds"] = time.process_time() - began
    row["accuracy"] = sum(answers.scores[p] for p in places) / len(places)
    if passages:
        dense = bench.reference(seed).logprobs
        ours = bench.continuation(flow, seed).logprobs
        gaps = [b - a for x, y in zip(ours, dense, strict=True) for a, b in zip(x, y, strict=True)]
        row["perplexity_ratio"] = float(np.exp(np.mean(gaps)))
    return row


def correlation(rows: list[dict[str, Any]], screened: str, wanted: str) -> tuple[float, float, float]:
    """Spearman's correlation and its 95% interval over resampled programs."""
    x = np.array([row[screened] for row in rows], dtype=float)
    y = np.array([row[wanted] for row in rows], dtype=float)
    n, generator = len(rows), np.random.default_rng(0)
    at = np.concatenate([np.arange(n)[None], generator.integers(0, n, (RESAMPLES, n))])
    ranks = [rankdata(values[at], axis=1) for values in (x, y)]
    a, b = (r - r.mean(1, keepdims=True) for r in ranks)
    with np.errstate(invalid="ignore"):  # a resample of equal numbers has no correlation
        found = (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
    low, high = np.nanquantile(found[1:], [0.025, 0.975])
    return float(found[0]), float(low), float(high)


def report(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """The table of correlations, over all programs and within each budget."""
    lines = [f"{about['model']}, plan {about['plan']}: {len(rows)} programs", ""]
    lines += ["| screen | predicts | all budgets | " + " | ".join(f"at {b}" for b in about["budgets"]) + " |"]
    lines += ["|" + "---|" * (3 + len(about["budgets"]))]
    for wanted in (w for w in WANTED if w in rows[0]):
        for screened in (s for s in SCREENED if rows[0].get(s) is not None):
            cells = []
            for part in (rows, *([r for r in rows if r["budget"] == str(b)] for b in about["budgets"])):
                varied = len({r[screened] for r in part}) > 1 and len({r[wanted] for r in part}) > 1
                cells.append(
                    "{:+.2f} [{:+.2f}, {:+.2f}]".format(*correlation(part, screened, wanted))
                    if varied
                    else "-"
                )
            lines.append(f"| {screened} | {wanted} | {' | '.join(cells)} |")
    seconds = sorted(row["screen_seconds"] for row in rows)
    lines += [
        "",
        f"Screening: median {seconds[len(seconds) // 2]:.2f} s of one core, longest {seconds[-1]:.2f} s.",
    ]
    answers = sorted(row["answer_seconds"] for row in rows)
    lines += [f"Answers: median {answers[len(answers) // 2]:.1f} s."]
    return "\n".join(lines) + "\n"


def study_plan(name: str, arguments: argparse.Namespace) -> EvaluationPlan:
    """The named plan, asked at one context with a recording of its own."""
    data = load_plan(name).model_dump(mode="json")
    task = dict(data["accuracy"]["tasks"][min(1, len(data["accuracy"]["tasks"]) - 1)])
    data["accuracy"]["tasks"] = [task | {"items": arguments.items, "context": arguments.context}]
    data["accuracy"]["gate_items"] = 1
    data["screen"] = {
        "retrieval_items": arguments.recorded, "passages": 1, "most_tokens": arguments.context,
        "steps": arguments.steps, "at": min(3, arguments.steps),
    }  # fmt: skip
    return EvaluationPlan.model_validate(data | {"stages": ["static", "screen", "accuracy"]})


def main() -> None:
    """Measure what is missing, then print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--plan", default="default")
    parser.add_argument("--budgets", type=int, nargs="*", default=[64, 128, 256])
    parser.add_argument("--page", type=int, default=16)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--recorded", type=int, default=2, help="retrieval prompts recorded")
    parser.add_argument("--steps", type=int, default=8, help="decode steps recorded")
    parser.add_argument("--files", type=Path, nargs="*", default=[])
    parser.add_argument("--no-passages", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"predict-{arguments.model}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {row["key"] for row in rows}
    flows = programs(arguments.budgets, arguments.page, arguments.files)
    plan = study_plan(arguments.plan, arguments)
    if missing := [flow for flow in flows if flow.key not in known]:
        worker = EvaluationWorker(arguments.model, plan, device="cpu", threads=arguments.threads)
        dense = worker.reference(plan.seed)
        print(f"dense {dense['scores']}", flush=True)
        for flow in missing:
            try:
                row = measure(worker, flow, plan.seed, passages=not arguments.no_passages)
            except VortexError as error:
                print(f"{flow.name} {flow.knobs.budget}: {error.code} {error.message}", flush=True)
                continue
            rows.append(row)
            with path.open("a") as out:
                out.write(json.dumps(row) + "\n")
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    about = {"model": arguments.model, "plan": arguments.plan, "budgets": arguments.budgets}
    text = report(rows, about)
    (arguments.out / f"predict-{arguments.model}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

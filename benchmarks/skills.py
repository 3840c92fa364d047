"""What flows lose of each skill: python -m benchmarks.skills --model retrieval-gqa --out runs/skills

Asks dense attention and library flows, at shares of the context, look-ups, two hops, counts, long walks and dialogues
in the alphabet of the model, by name or directory (`evaluators/tasks/skills.py`, `long_answers.py`), and prints the
share right with its Wilson interval and the seconds that answering took. Answers are written down flow by flow: a
second run goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from evaluators import stats
from evaluators.plan import EvaluationPlan, load_plan
from evaluators.stages.base import Deadline
from evaluators.worker import EvaluationWorker
from vortex_core import library
from vortex_core.errors import VortexError
from vortex_core.ir.flow import Flow

FLOWS = ("quest", "block_topk", "streaming", "nsa", "rocketkv", "lserve")
SHARES = (4, 8, 16)
TASKS: dict[str, dict[str, Any]] = {
    "pair_recall": {"distractors": 31},
    "key_hop": {"distractors": 31},
    "key_count": {"distractors": 31},
    "key_walk": {"distractors": 15, "steps": 48},
    "key_dialogue": {"distractors": 7, "told": 8, "questions": 4, "tokens": 256},
}


def plan_of(arguments: argparse.Namespace) -> EvaluationPlan:
    """Every task at every context."""
    data = load_plan("skills").model_dump(mode="json")
    data["accuracy"]["batch"] = arguments.batch
    data["accuracy"]["tasks"] = [
        TASKS[task] | {"task": task, "context": context, "items": arguments.items}
        for context in arguments.contexts
        for task in arguments.tasks
    ]
    return EvaluationPlan.model_validate(data | {"stages": ["static", "accuracy"]})


def flows(names: list[str], shares: list[int], page: int) -> list[tuple[str, str, Flow | None]]:
    """Name, budget in words, and flow; dense first."""
    found: list[tuple[str, str, Flow | None]] = [("dense", "all", None)]
    for name in names:
        traced = library.load(name)
        for share in shares:
            knobs = {"page_size": page, "budget": f"length / {share}", "keep_first": 1, "keep_last": 2}
            found.append((name, f"1/{share}", traced.with_knobs(**knobs, dense_layers=()).flow))
    return found


def measure(worker: EvaluationWorker, flow: Flow | None, seed: int) -> dict[str, Any]:
    """Right answers by task, and the seconds each task took."""
    bench = worker.bench
    items = bench.prompts(seed).items
    row: dict[str, Any] = {"right": {}, "asked": {}, "seconds": {}}
    for key, questions in items.needles.items():
        places = [(key, i) for i in range(len(questions))]
        began = time.perf_counter()
        answers = bench.answer(flow, seed, places, Deadline("skills", None))
        row["seconds"][key] = round(time.perf_counter() - began, 2)
        row["right"][key] = sum(answers.scores[place] for place in places)
        row["asked"][key] = len(places)
    return row


def report(rows: list[dict[str, Any]]) -> str:
    """A table of shares right by task and context."""
    keys = list(rows[0]["right"])
    lines = ["| flow | of the tokens | " + " | ".join(keys) + " |", "|" + "---|" * (len(keys) + 2)]
    for row in rows:
        cells = []
        for key in keys:
            share = stats.wilson(row["right"][key], row["asked"][key])
            cells.append(f"{share.value:.2f} [{share.low:.2f}, {share.high:.2f}]")
        lines.append(f"| {row['flow']} | {row['share']} | {' | '.join(cells)} |")
    lines += ["", "Seconds for the items of each column, dense and the median and longest of the flows:", ""]
    for key in keys:
        sparse = sorted(row["seconds"][key] for row in rows[1:]) or [0.0]
        dense = rows[0]["seconds"][key]
        lines.append(f"- {key}: {dense}; {sparse[len(sparse) // 2]}; {sparse[-1]}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what is missing, then print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="retrieval-gqa")
    parser.add_argument("--flows", nargs="*", default=list(FLOWS))
    parser.add_argument("--shares", type=int, nargs="*", default=list(SHARES))
    parser.add_argument("--tasks", nargs="*", choices=sorted(TASKS), default=list(TASKS))
    parser.add_argument("--contexts", type=int, nargs="*", default=[1024])
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--page", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8, help="prompts decoded together")
    parser.add_argument("--device", default="cpu", help="fp32 on a CPU, bf16 on a GPU")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    plan = plan_of(arguments)
    path = arguments.out / f"skills-{Path(arguments.model).name}-{plan.digest}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {(row["flow"], row["share"]) for row in rows}
    wanted = flows(arguments.flows, arguments.shares, arguments.page)
    if missing := [one for one in wanted if one[:2] not in known]:
        worker = EvaluationWorker(arguments.model, plan, device=arguments.device, threads=arguments.threads)
        began = time.perf_counter()
        worker.bench.prompts(plan.seed)
        print(f"prefilled in {time.perf_counter() - began:.1f} s", flush=True)
        for name, share, flow in missing:
            try:
                row = {"flow": name, "share": share} | measure(worker, flow, plan.seed)
            except VortexError as error:
                print(f"{name} {share}: {error.code} {error.message}", flush=True)
                continue
            rows.append(row)
            with path.open("a") as out:
                out.write(json.dumps(row) + "\n")
            print(row, flush=True)
    done = {(row["flow"], row["share"]): row for row in rows}
    rows = [done[one[:2]] for one in wanted if one[:2] in done]
    print(report(rows))


if __name__ == "__main__":
    main()

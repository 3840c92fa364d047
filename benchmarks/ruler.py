"""Scores by task and length: python -m benchmarks.ruler --model smollm2-135m --contexts 1024 2048 4096 --out runs/ruler

Asks RULER's thirteen tasks (the plan `ruler`), or the tasks of another plan, at every context, densely and with the
flows named, and prints the share right with Wilson's 95% interval, of a flow also what it gains over dense, paired. Of
drawn answers the share is mean@k, and pass@k stands beside it. One task at one context is held at a time. Rows are
written one by one: a second run goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.candidate_seconds import flows
from evaluators import stats
from evaluators.bench import Bench
from evaluators.plan import EvaluationPlan, load_plan
from evaluators.sequential import paired_scores
from evaluators.stages.base import Deadline
from evaluators.worker import EvaluationWorker
from vortex_core.errors import VortexError
from vortex_core.ir.flow import Flow

_EVERYTHING = 1 << 60  # blocks: more than any pool has
_LONG = 64  # tokens of an answer from which on its length is told


def plans(arguments: argparse.Namespace) -> Iterator[EvaluationPlan]:
    """A plan for each task at each context, the longest contexts last."""
    data = load_plan(arguments.plan).model_dump(mode="json")
    asked = {task["name"] or task["task"]: task for task in data["accuracy"]["tasks"]}
    if unknown := set(arguments.tasks or asked) - set(asked):
        raise SystemExit(f"--tasks: plan {arguments.plan} asks {', '.join(asked)}, not {', '.join(unknown)}")
    for context in sorted(arguments.contexts):
        for name in arguments.tasks or asked:
            task = asked[name] | {"context": context, "items": arguments.items}
            if arguments.official and task["task"] in ("qa_single", "qa_hop"):
                task["source"] = "official"
            accuracy = data["accuracy"] | {"tasks": [task], "gate_items": 1, "batch": arguments.batch}
            # No passage is asked; the plan needs one.
            passages = data["perplexity"] | {"items": 1, "context": 256}
            new = {
                "reads": None,
                "stages": ["static", "accuracy"],
                "accuracy": accuracy,
                "perplexity": passages,
            }
            kept = {key: data[key] for key in ("name", "seed", "engine", "fresh")}
            yield EvaluationPlan.model_validate(kept | new)


def measure(bench: Bench, wanted: list[Flow | None], seed: int) -> Iterator[dict[str, Any]]:
    """Right answers, and seconds, of dense attention (None) and of every flow."""
    ((key, questions),) = bench.prompts(seed).items.needles.items()
    places = [(key, i) for i in range(len(questions))]
    for flow in wanted:
        began = time.perf_counter()
        name = "dense" if flow is None else f"{flow.name} {flow.knobs.budget}"
        try:
            answers = bench.answer(flow, seed, places, Deadline("ruler", None))
        except VortexError as error:
            print(f"{key}, {name}: {error.code} {error.message}", flush=True)
            continue
        yield {
            "flow": name,
            "task": key.partition("@")[0],
            "context": questions[0].context,
            "scores": [answers.scores[place] for place in places],
            "passed": [answers.passed[place] for place in places],
            "tokens": round(sum(answers.tokens[place] for place in places) / len(places), 1),
            "samples": questions[0].samples,
            "said": answers.texts[places[0]],
            "wanted": questions[0].answers,
            "seconds": round(time.perf_counter() - began, 2),
        }


def report(rows: list[dict[str, Any]]) -> str:
    """For every flow a table of shares right, tasks by contexts."""
    lines: list[str] = []
    contexts = sorted({row["context"] for row in rows})
    found = {(row["flow"], row["task"], row["context"]): row for row in rows}
    for flow in dict.fromkeys(row["flow"] for row in rows):
        lines += [f"| {flow} | " + " | ".join(map(str, contexts)) + " |", "|" + "---|" * (1 + len(contexts))]
        for task in dict.fromkeys(task for one, task, _ in found if one == flow):
            cells = []
            for context in contexts:
                dense = None if flow == "dense" else found.get(("dense", task, context))
                cells.append(_cell(found.get((flow, task, context)), dense))
            lines.append(f"| {task} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(row: dict[str, Any] | None, dense: dict[str, Any] | None = None) -> str:
    """Share right of a row, what that is over dense, tokens an answer where they are many, and pass@k of drawn ones."""
    if row is None:
        return "-"
    scores = row["scores"]
    share = stats.wilson(sum(scores), len(scores))
    text = f"{share.value:.2f} [{share.low:.2f}, {share.high:.2f}]"
    if dense is not None:
        gain = paired_scores(scores, dense["scores"])
        text += f"; {gain.value:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"
    if row["samples"] > 1:
        any_right = stats.wilson(sum(row["passed"]), len(row["passed"]))
        text += f"; pass@{row['samples']} {any_right.value:.2f} [{any_right.low:.2f}, {any_right.high:.2f}]"
    if row["tokens"] > _LONG:
        text += f"; {row['tokens']:.0f} tokens"
    return text


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    found.add_argument("--model", default="smollm2-135m", help="name, folder or GGUF file")
    found.add_argument("--plan", default="ruler", help="whose tasks are asked")
    found.add_argument("--tasks", nargs="*", help="of the plan's; all by default")
    found.add_argument("--contexts", type=int, nargs="*", default=[1024, 2048, 4096])
    found.add_argument("--items", type=int, default=20)
    found.add_argument("--flows", default="", help="name@page:budget, comma-separated")
    found.add_argument("--official", action="store_true", help="RULER's own questions (the extra `ruler`)")
    found.add_argument("--batch", type=int, default=16)
    found.add_argument("--device", default="auto")
    found.add_argument("--threads", type=int)
    found.add_argument("--out", type=Path, required=True)
    return found


def main() -> None:
    """Measure what is missing, then print."""
    arguments = parser().parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"ruler-{Path(arguments.model).name.removesuffix('.gguf')}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    asked = list(plans(arguments))
    known = {row["plan"] for row in rows}
    # The last plan is of the longest context: an engine with room for it has room for all.
    missing = [plan for plan in asked if plan.digest not in known]
    if missing:
        worker = EvaluationWorker(
            arguments.model, asked[-1], device=arguments.device, threads=arguments.threads
        )
        wanted: list[Flow | None] = [None, *(flows(arguments.flows) if arguments.flows else ())]
        bench = worker.bench
        for plan in missing:
            bench.free(_EVERYTHING, keep=-1)
            try:
                bench = Bench(worker.bench.resident, plan, "asked once, kept nowhere")
                new = list(measure(bench, wanted, plan.seed))
            except VortexError as error:
                print(f"{plan.accuracy.tasks[0].key}: {error.code} {error.message}", flush=True)
                continue
            for row in new:
                rows.append(row | {"plan": plan.digest})
                with path.open("a") as out:
                    out.write(json.dumps(rows[-1]) + "\n")
                print(
                    {k: v for k, v in rows[-1].items() if k not in ("plan", "scores", "passed")}, flush=True
                )
                print(f"    {_cell(row)}", flush=True)
    digests = {plan.digest for plan in asked}
    text = report([row for row in rows if row["plan"] in digests])
    (arguments.out / f"ruler-{Path(arguments.model).name.removesuffix('.gguf')}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

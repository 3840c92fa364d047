"""Which fidelity predicts the next: python -m benchmarks.predict --model retrieval-mla --plan retrieval --out runs/x

Takes the library at several budgets through the screen (recorded attention), the answers of one of the plan's tasks,
the perplexity of its passages and, as what a campaign's winner would meet later, other items of twice the length; with
`--served` also through decode steps beside dense and the cost model. Prints how well every number ranks programs as
the later ones do (Spearman, with an interval that resamples programs), which programs it ranks wrongly, and what each
fidelity took. Rows are written one by one, so a second run goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.predict_report import SCREENED, report
from evaluators.bench import Bench
from evaluators.plan import EvaluationPlan, load_plan
from evaluators.stages.base import Deadline
from evaluators.worker import EvaluationWorker
from vortex_core import library
from vortex_core.engine.models.weights import describe_model
from vortex_core.errors import VortexError
from vortex_core.ir.flow import Flow
from vortex_core.specs import ModelSpec

_SPEED = ("modelled", "decode")


def programs(budgets: list[int], page: int, files: list[Path]) -> list[Flow]:
    """Library flows and those of files, each at every budget in tokens, with common page size and kept pages: all
    programs of the first budget, then all of the next."""
    flows = []
    for name in [*library.names(), *map(str, files)]:
        try:
            flow = library.resolve(name).flow
        except VortexError:  # needs learned values
            continue
        if not flow.program.selects_everything:
            flows.append(flow)
    found: dict[str, Flow] = {}
    for budget in budgets:
        for flow in flows:
            one = flow.with_knobs(
                page_size=page, budget=str(budget), keep_first=1, keep_last=2, dense_layers=()
            )
            found.setdefault(one.key, one)
    return list(found.values())


class Clock:
    """Seconds of a block: of this process's computing on a CPU, by the clock on a GPU, whose work is waited for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now(self) -> float:
        """Seconds from some fixed moment."""
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()


def measure(
    worker: EvaluationWorker, flow: Flow, seed: int, *, passages: bool, served: bool
) -> dict[str, Any]:
    """One program through the screen, the answers, the passages and what comes after them."""
    bench: Bench = worker.bench
    clock = Clock(bench.engine.device)
    row: dict[str, Any] = {"flow": flow.name, "budget": flow.knobs.budget, "key": flow.key}
    for name in ("screen_seconds", "screen_again_seconds"):
        began = clock.now()
        score = bench.screener(seed).score(flow)
        row[name] = clock.now() - began
    assert score.own is not None
    row |= {name: getattr(score.own, name) for name in SCREENED}
    asked = dict(zip(("", "later_"), bench.prompts(seed).items.needles.items(), strict=False))
    for prefix, (key, questions) in asked.items():
        places = [(key, i) for i in range(len(questions))]
        began = clock.now()
        answers = bench.answer(flow, seed, places, Deadline("predict", None))
        row[f"{prefix}scores"] = [answers.scores[place] for place in places]
        row[f"{prefix or 'answer_'}seconds"] = clock.now() - began
        row["later" if prefix else "accuracy"] = sum(row[f"{prefix}scores"]) / len(places)
    if passages:
        began = clock.now()
        dense = bench.reference(seed).logprobs
        ours = bench.continuation(flow, seed).logprobs
        gaps = [[b - a for a, b in zip(x, y, strict=True)] for x, y in zip(ours, dense, strict=True)]
        row["passage_gaps"] = [float(np.mean(gap)) for gap in gaps]
        row["perplexity_ratio"] = float(np.exp(np.mean([g for gap in gaps for g in gap])))
        row["perplexity_seconds"] = clock.now() - began
    if served:
        row |= _speed(worker, flow, seed, clock)
    return row


def _speed(worker: EvaluationWorker, flow: Flow, seed: int, clock: Clock) -> dict[str, Any]:
    """Decode steps of dense over the program's at the contexts asked: modelled for an H200, and measured."""
    began = clock.now()
    results = [worker.run(stage, flow, seed) for stage in _SPEED]
    for result in results:
        if not result.passed:
            print(f"{flow.name} {flow.knobs.budget}: {result.stage} {result.failure}", flush=True)
            return {}
    modelled, decoded = results
    return {
        "modelled": modelled.metrics["modelled_speedup_h200"].value,
        "speed": decoded.metrics["decode_speedup"].value,
        "points": decoded.info["points"],
        "measured_on": decoded.info["measured_on"],
        "served_seconds": clock.now() - began,
    }


def study_plan(arguments: argparse.Namespace) -> EvaluationPlan:
    """The named plan, asked one of its tasks at one context and at a later one, with a recording of its own."""
    data = load_plan(arguments.plan).model_dump(mode="json")
    asked = data["accuracy"]["tasks"]
    tasks = {task["task"]: task for task in reversed(asked)}
    name = arguments.task or asked[min(1, len(asked) - 1)]["task"]
    if name not in tasks:
        raise SystemExit(f"--task: plan {arguments.plan} asks {', '.join(tasks)}")
    asked = [tasks[name] | {"items": arguments.items, "context": arguments.context}]
    if arguments.later_items:
        later = {"items": arguments.later_items, "context": 2 * arguments.context}
        asked.append(tasks[name] | later)
    data["accuracy"] |= {
        "tasks": asked,
        "gate_items": 1,
        "batch": arguments.batch or data["accuracy"]["batch"],
    }
    fewest = data.get("recall", {}).get("perplexity_items", 1)
    data["perplexity"]["items"] = max(fewest, arguments.passages)
    data["perplexity"]["context"] = arguments.passage_context or data["perplexity"]["context"]
    if arguments.timed_steps:
        data["decode"] = data.get("decode", {}) | {"steps": arguments.timed_steps, "warmup": 2}
    if "decode" in data:  # a study wants the slow ones, too
        data["decode"]["least"] = 0.0
    data["screen"] = {
        "retrieval_items": arguments.recorded, "passages": 1, "most_tokens": arguments.context,
        "steps": arguments.steps, "at": min(3, arguments.steps),
    }  # fmt: skip
    stages = ["static", "screen", "accuracy", *(_SPEED if arguments.served else ())]
    return EvaluationPlan.model_validate(data | {"reads": None, "stages": stages})


def compile_everything(plan: EvaluationPlan, model: ModelSpec, flows: list[Flow]) -> None:
    """Compile all kernels of all programs on all cores, so that no program waits for its own; see `compile_ahead`."""
    from benchmarks.predict_compile import compile_flows

    began = time.perf_counter()
    left = compile_flows(plan, model, flows)
    print(
        f"{len(flows)} programs compiled in {time.perf_counter() - began:.1f} s, without {left}", flush=True
    )


def command_line() -> argparse.ArgumentParser:
    """The arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="name, folder or GGUF file")
    parser.add_argument("--plan", default="default")
    parser.add_argument("--task", help="of the plan's; its second by default")
    parser.add_argument("--budgets", type=int, nargs="*", default=[64, 128, 256])
    parser.add_argument("--page", type=int, default=16)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--later-items", type=int, default=0, help="asked at twice the context")
    parser.add_argument("--batch", type=int, help="prompts answered together; the plan's by default")
    parser.add_argument("--recorded", type=int, default=2, help="retrieval prompts recorded")
    parser.add_argument("--steps", type=int, default=8, help="decode steps recorded")
    parser.add_argument("--files", type=Path, nargs="*", default=[])
    parser.add_argument("--passages", type=int, default=4, help="0: none is asked")
    parser.add_argument(
        "--passage-context", type=int, help="tokens before what is scored; the plan's by default"
    )
    parser.add_argument("--served", action="store_true", help="also time decode steps")
    parser.add_argument(
        "--compile-only",
        action="store_true",
        help="compile what the study launches on a Hopper GPU, without one",
    )
    parser.add_argument("--timed-steps", type=int, help="decode steps timed a round; the plan's by default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no program after so long")
    parser.add_argument("--out", type=Path, required=True)
    return parser


def main() -> None:
    """Measure what is missing, then print."""
    arguments = command_line().parse_args()
    began = time.perf_counter()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    plan = study_plan(arguments)
    model = Path(arguments.model).stem
    path = arguments.out / f"predict-{model}-{plan.digest}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {row["key"] for row in rows}
    flows = programs(arguments.budgets, arguments.page, arguments.files)
    if arguments.compile_only:
        compile_everything(plan, describe_model(arguments.model), flows)
        return
    if missing := [flow for flow in flows if flow.key not in known]:
        worker = EvaluationWorker(arguments.model, plan, device=arguments.device, threads=arguments.threads)
        if worker.bench.engine.device.type == "cuda":
            compile_everything(worker.plan, worker.context.answering, missing)
        dense = worker.reference(plan.seed)
        worker.bench.screener(plan.seed).score(missing[0])  # hindsight of the recording, once
        print(f"ready after {time.perf_counter() - began:.1f} s; dense {dense['scores']}", flush=True)
        for flow in missing:
            if time.perf_counter() - began > arguments.seconds:
                print("out of time: the same command goes on here", flush=True)
                break
            try:
                row = measure(
                    worker, flow, plan.seed, passages=arguments.passages > 0, served=arguments.served
                )
            except VortexError as error:
                print(f"{flow.name} {flow.knobs.budget}: {error.code} {error.message}", flush=True)
                continue
            rows.append(row)
            with path.open("a") as out:
                out.write(json.dumps(row) + "\n")
            shown = {k: v for k, v in row.items() if not isinstance(v, list | dict)}
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in shown.items()}, flush=True)
    tasks = ", ".join(f"{task.items} {task.key}" for task in plan.accuracy.tasks)
    text = report(rows, {"model": model, "asked": tasks, "budgets": arguments.budgets})
    (arguments.out / f"predict-{model}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

"""By which number of the screen should programs be ranked? Those that either puts first answer the same questions.

    python -m benchmarks.screen_choice --recording FILE --second FILE --out runs/screen_choice

`python -m benchmarks.predict` asks it of the library's flows. Here it is asked of what a search would send on: programs
of the grammar at one operating point. Pools are searched by mass beyond kept pages, by the error of the attention
output and by nothing (`benchmarks.search_quality`); of each pool the best by either number, and some drawn evenly from
the random one, answer items that were not recorded, at the knobs and bounds of the campaign `default`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.search_quality import search, state_share
from vortex_core.ir.flow import Flow

KNOBS: dict[str, Any] = {
    "page_size": 16, "budget": "128", "keep_first": 1, "keep_last": 2, "dense_layers": (), "reuse_steps": 1,
    "reuse_layers": 1,
}  # fmt: skip
NUMBERS: dict[str, Callable[[dict[str, Any]], float]] = {
    "beyond, 3 layers": lambda r: float(r["beyond_3"]),
    "output, 3 layers": lambda r: -float(r["error_3"]),
    "logit, 3 layers": lambda r: -float(r["logit_3"]),
    "beyond, 8 layers": lambda r: float(r["beyond_8"]),
    "output, 8 layers": lambda r: -float(r["error_8"]),
    "logit, 8 layers": lambda r: -float(r["logit_8"]),
    "beyond, 8 layers, two models": lambda r: float(r["beyond_8"] + r["beyond_second"]),
    "output, 8 layers, two models": lambda r: -float(r["error_8"] + r["error_second"]),
}
POOLS = (("beyond", "evolve"), ("output", "evolve"), ("beyond", "random"))


def pooled(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Programs of every pool with all their numbers, at the operating point."""
    from evaluators.screen import AttentionRecording, Screener

    recording = AttentionRecording.load(Path(args.recording))
    second = AttentionRecording.load(Path(args.second))
    few, many = (
        Screener(recording, budgets=("128",), layers=3),
        Screener(recording, budgets=("128",), layers=8),
    )
    other = Screener(second, budgets=("128",), layers=8)
    rows: dict[str, dict[str, Any]] = {}
    for seed in range(args.seeds):
        for by, strategy in POOLS:
            job = {
                "strategy": strategy, "seed": seed, "recording": args.recording, "other": [], "model": "smollm2-135m",
                "programs": args.programs, "layers": 3, "ends": time.time() + args.seconds, "device": "cpu", "by": by,
                "keep": args.programs, "measured": str(args.out / "measured" / f"{by}-{strategy}-{seed}.jsonl"),
            }  # fmt: skip
            run = search(job)
            assert run is not None, "its time is over"
            name = f"{'drawn' if strategy == 'random' else by} {seed}"
            print(f"pool {name}: {len(run.best)} programs, best {run.best[-1]:.4f}", flush=True)
            for data in run.kept:
                flow = Flow.from_json(data).with_knobs(**KNOBS)
                if flow.key in rows:
                    continue
                a, b, c = (s.score(flow, own=False).points[0] for s in (few, many, other))
                rows[flow.key] = {
                    "pool": name, "flow": flow.to_json(), "name": flow.name, "key": flow.key,
                    "state": state_share(flow, recording.geometry),
                    "beyond_3": a.beyond, "error_3": a.output_error, "logit_3": a.logit_error,
                    "beyond_8": b.beyond, "error_8": b.output_error, "logit_8": b.logit_error,
                    "beyond_second": c.beyond, "error_second": c.output_error,
                }  # fmt: skip
    return list(rows.values())


def chosen(rows: list[dict[str, Any]], top: int, even: int) -> list[dict[str, Any]]:
    """Of every pool the best by mass and by the error of the output, in three layers; and some of the drawn ones."""
    found: dict[str, dict[str, Any]] = {}
    for pool in dict.fromkeys(r["pool"] for r in rows):
        mine = [r for r in rows if r["pool"] == pool]
        for name in ("beyond, 3 layers", "output, 3 layers"):
            for row in sorted(mine, key=NUMBERS[name], reverse=True)[:top]:
                found.setdefault(row["key"], row)
    drawn = sorted((r for r in rows if r["pool"].startswith("drawn")), key=NUMBERS["beyond, 3 layers"])
    for n in range(min(even, len(drawn))):
        row = drawn[(2 * n + 1) * len(drawn) // (2 * even)]
        found.setdefault(row["key"], row)
    # Any first part of the list is as mixed as the whole.
    return sorted(found.values(), key=lambda r: r["key"])


def answered(rows: list[dict[str, Any]], args: argparse.Namespace, path: Path) -> None:
    """Answers and text of each, appended to a file as they come; those that it holds are not asked again."""
    from evaluators.plan import EvaluationPlan, load_plan
    from evaluators.stages.base import Deadline
    from evaluators.worker import EvaluationWorker, run_cpu_stage

    raw = load_plan("screened").model_dump(mode="json") | {"name": "screen-choice"}
    for task in raw["accuracy"]["tasks"]:
        task["items"] = args.items
    raw["perplexity"]["items"] = args.passages
    plan = EvaluationPlan.model_validate(raw)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    done = {json.loads(line)["key"] for line in lines}
    worker = EvaluationWorker(args.model, plan, device=args.device, threads=1)
    worker.prepare(args.items_seed)
    bench, dense = worker.bench, worker.bench.reference(args.items_seed)
    for row in rows:
        if row["key"] in done:
            continue
        flow = Flow.from_json(row["flow"])
        began = time.perf_counter()
        speed = run_cpu_stage("modelled", flow, args.model, plan, 0, None).metrics["modelled_speedup_h200"]
        places = [
            (key, i)
            for key, items in bench.prompts(args.items_seed).items.needles.items()
            for i in range(len(items))
        ]
        answers = bench.answer(flow, args.items_seed, places, Deadline("answers", None))
        text = bench.continuation(flow, args.items_seed).logprobs
        row |= {
            "speed": speed.value,
            "answers": [answers.scores[place] for place in places],
            "dense": [dense.scores[key][i] for key, i in places],
            "gaps": [float(np.mean(np.subtract(d, o))) for o, d in zip(text, dense.logprobs, strict=True)],
            "seconds": time.perf_counter() - began,
        }  # fmt: skip
        with path.open(
            "ab", buffering=0
        ) as file:  # one write a line: processes with parts of the work share the file
            file.write(f"{json.dumps(row)}\n".encode())
        print(
            f"{row['pool']} {row['name'][:24]}: beyond {row['beyond_3']:.3f}, error {row['error_3']:.4f}, answers "
            f"{np.mean(row['answers']):.3f} (dense {np.mean(row['dense']):.3f}), "
            f"text {np.exp(np.mean(row['gaps'])):.3f}, {row['seconds']:.0f} s",
            flush=True,
        )


def _right(row: dict[str, Any]) -> float:
    return float(np.mean(row["answers"]) - np.mean(row["dense"]))


def _text(row: dict[str, Any]) -> float:
    return float(np.exp(np.mean(row["gaps"])))


def _rank(
    rows: Sequence[dict[str, Any]], number: Callable[[dict[str, Any]], float], what: Any, sign: int
) -> str:
    """Spearman's correlation, positive where the number predicts well, and its 95% interval over programs."""
    from scipy.stats import spearmanr

    x, y = np.array([number(r) for r in rows]), sign * np.array([what(r) for r in rows])
    if len(rows) < 6 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return "-"
    rng, found = np.random.default_rng(0), []
    for _ in range(2000):
        n = rng.integers(len(rows), size=len(rows))
        if np.ptp(x[n]) and np.ptp(y[n]):
            found.append(spearmanr(x[n], y[n]).statistic)
    low, high = np.quantile(found, (0.025, 0.975))
    return f"{spearmanr(x, y).statistic:+.2f} [{low:+.2f}, {high:+.2f}]"


def report(rows: list[dict[str, Any]], top: int) -> str:
    """Tables: rank correlations, and what the best of each pool by each number answer."""
    good = [r for r in rows if r["beyond_3"] >= 0.9]
    lines = [
        f"| ranked by | answers, all {len(rows)} | text | answers, {len(good)} with 0.9 of the mass or more | text |",
        "|---|---|---|---|---|",
    ]
    for name, number in NUMBERS.items():
        cells = [
            _rank(some, number, what, sign)
            for some in (rows, good)
            for what, sign in ((_right, 1), (_text, -1))
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"| pool | its best {top} by | answers less dense's | text | modelled speed |",
        "|---|---|---|---|---|",
    ]
    for pool in sorted({r["pool"].split()[0] for r in rows}):
        seeds = sorted({r["pool"] for r in rows if r["pool"].startswith(pool)})
        for name in ("beyond, 3 layers", "output, 3 layers"):
            best = [
                r
                for seed in seeds
                for r in sorted((r for r in rows if r["pool"] == seed), key=NUMBERS[name], reverse=True)[:top]
            ]
            lines.append(
                f"| {pool} | {name} | {np.mean([_right(r) for r in best]):+.3f} | "
                f"{np.exp(np.mean([np.log(_text(r)) for r in best])):.3f} | {np.mean([r['speed'] for r in best]):.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--recording", required=True, help="of SmolLM2-135M, as `benchmarks.search_quality` makes it"
    )
    parser.add_argument("--second", required=True, help="of retrieval-gqa, likewise")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--programs", type=int, default=200, help="of each pool")
    parser.add_argument("--seconds", type=float, default=300.0, help="for each pool at most")
    parser.add_argument("--top", type=int, default=5, help="of each pool by each number, who answer")
    parser.add_argument("--even", type=int, default=16, help="drawn ones that answer besides")
    parser.add_argument("--items", type=int, default=24, help="of each of the two tasks")
    parser.add_argument("--passages", type=int, default=16)
    parser.add_argument("--items-seed", type=int, default=1, help="the recording is of seed 0")
    parser.add_argument("--device", default="cpu", help="where programs answer")
    parser.add_argument("--model", default="smollm2-135m", help="or its weights: who answers")
    parser.add_argument(
        "--part", type=int, nargs=2, default=(0, 1), metavar=("N", "OF"), help="of those who answer"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/screen_choice"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pools, answers = args.out / "pools.json", args.out / "answers.jsonl"
    if not pools.exists():
        pools.write_text(json.dumps(pooled(args)), encoding="utf-8")
    asked = chosen(json.loads(pools.read_text(encoding="utf-8")), args.top, args.even)
    answered(asked[args.part[0] :: args.part[1]], args, answers)
    text = report([json.loads(line) for line in answers.open(encoding="utf-8")], args.top)
    (args.out / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

"""Recall at budgets of 64 to 2,048 tokens beside what LOCKS publishes: python -m benchmarks.recall_budgets

The attention of a real model is recorded once (`benchmarks.recall`); each flow then selects at every budget with the
pages that LOCKS keeps always, the first and the newest. Writes benchmarks/results/recall_budgets.json and
recall_budgets.md.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.recall import PAGE, kept, record
from evaluators.recall import Recording, measure_recall
from vortex_core import library
from vortex_core.compiler import backends

BUDGETS = (64, 128, 256, 512, 1024, 2048)
FLOWS = (
    "locks",
    "quest",
    "rocketkv",
    "shadowkv",
    "streaming",
)
PROMPTS = (4096, 7168)  # tokens of the prompts of each kind
# RULER at 16k, Llama-3.1-8B, the mean of 13 tasks; full attention has 94.3. By the authors (README of locks-kv 0.1.4).
PUBLISHED = {
    "oracle": {64: 80.0, 128: 87.5, 512: 91.5, 2048: 93.7},
    "locks": {64: 78.1, 128: 87.4, 512: 91.4, 2048: 93.7},
    "quest": {64: 39.5, 128: 57.8, 512: 79.3, 2048: 90.3},
    "rocketkv": {64: 69.4, 128: 85.2, 512: 89.6, 2048: 93.1},
    "shadowkv": {512: 84.5, 2048: 92.5},
}
FULL = 94.3


@dataclass(frozen=True)
class Row:
    """One flow.

    Attributes:
        flow: library name.
        recall: dense attention mass on the selected pages, by budget.
        oracle: that of the best pages of the same number, chosen with hindsight per kv head, by budget.
        state_share: bytes of page states per byte of bf16 KV.
    """

    flow: str
    recall: dict[int, float]
    oracle: dict[int, float]
    state_share: float


def measure(name: str, budgets: tuple[int, ...], recording: Recording) -> Row:
    """One flow at every budget."""
    g = recording.geometry
    recall, oracle, states = {}, {}, 0
    for budget in budgets:
        traced = library.resolve(name).with_knobs(
            page_size=PAGE, budget=str(budget), keep_first=1, keep_last=1, dense_layers=()
        )
        compiled = backends.get("torch").compile(traced.program, traced.knobs, g)
        score = measure_recall(compiled, recording)
        recall[budget], oracle[budget] = float(score.recall.mean()), float(score.oracle.mean())
        states = compiled.new_states(1, torch.device("cpu")).bytes_per_page()
        print(f"{name:14} {budget:5}  recall {recall[budget]:.3f}  oracle {oracle[budget]:.3f}", flush=True)
    return Row(name, recall, oracle, states / (PAGE * g.kv_heads * (g.head_dim + g.value_dim) * 2))


_REPORT = """# Recall by budget, beside LOCKS's published accuracy

Measured; made by `python -m benchmarks.recall_budgets`. Model {model} ({dtype}), needle questions and speeches of
{lengths} tokens, {steps} decode steps each, all layers and query heads, page {page}. The first and the newest page are
always kept and count inside the budget, as in LOCKS's own tables.

## Recall: share of dense attention mass on the selected pages

*oracle*: the best pages of the number that {first} reads, chosen with hindsight per kv head. *state/KV*: bytes of page
states per byte of bf16 KV.

{recall}

## The same as a share of the oracle's

Each of the best pages of the number that it reads itself.

{relative}

## Published

Accuracy on RULER at 16k, Llama-3.1-8B, mean of 13 tasks, by LOCKS's authors (locks-kv 0.1.4), as a share of full
attention ({full}).

{published}

What can be compared is the order and the distance to the oracle, not the numbers: recall is of attention mass, on one
small model and four prompts, theirs is accuracy. ShadowKV's is of the whole method, with its low-rank keys; here is its
selection at page {page}.
"""


def table(header: list[str], rows: list[list[str]]) -> str:
    """A markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(rows: list[Row], about: dict[str, Any], budgets: tuple[int, ...]) -> str:
    """The report."""
    best = sorted(rows, key=lambda r: -sum(r.recall.values()))
    header = ["flow", *(f"{b:,}" for b in budgets), "state/KV"]
    # Unions and thresholds read another number of pages than the budget says, so their oracle is another.
    recall = [["oracle", *(f"{rows[0].oracle[b]:.3f}" for b in budgets), ""]]
    recall += [[r.flow, *(f"{r.recall[b]:.3f}" for b in budgets), f"{r.state_share:.3f}"] for r in best]
    relative = [[r.flow, *(f"{r.recall[b] / r.oracle[b]:.3f}" for b in budgets)] for r in best]
    shown = sorted({b for found in PUBLISHED.values() for b in found})
    published = [
        [name, *(f"{found[b] / FULL:.3f}" if b in found else "" for b in shown)]
        for name, found in PUBLISHED.items()
    ]
    return _REPORT.format(
        page=PAGE,
        full=FULL,
        first=rows[0].flow,
        recall=table(header, recall),
        relative=table(header[:-1], relative),
        published=table(["method", *(f"{b:,}" for b in shown)], published),
        lengths=" and ".join(f"{n:,}" for n in about["needles"]),
        **{k: about[k] for k in ("model", "dtype", "steps")},
    )


def main() -> None:
    """Record, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--flows", nargs="*", default=list(FLOWS))
    parser.add_argument("--budgets", nargs="*", type=int, default=list(BUDGETS))
    parser.add_argument("--prompts", nargs="*", type=int, default=list(PROMPTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--recording", type=Path, help="file that keeps the recording between runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lengths, budgets = tuple(args.prompts), tuple(args.budgets)
    recording, about = kept(
        args.recording, lambda: record(args.model, args.threads, args.steps, lengths, lengths)
    )
    rows = [measure(name, budgets, recording) for name in args.flows]
    args.out.mkdir(parents=True, exist_ok=True)
    found = json.dumps({"about": about, "rows": [asdict(r) for r in rows]}, indent=1)
    (args.out / "recall_budgets.json").write_text(found + "\n")
    (args.out / "recall_budgets.md").write_text(markdown(rows, about, budgets))


if __name__ == "__main__":
    main()

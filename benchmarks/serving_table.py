"""Runs of `benchmarks.serving` as one page.

    python -m benchmarks.serving_table RUN.json... --name serving_h100 --out benchmarks/results

Keeps the runs as they are in NAME.json and writes NAME.md beside it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def of_kind(run: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """The results of one kind that did not fail."""
    return [r for r in run["results"] if r["kind"] == kind and "failed" not in r]


def _flow(result: dict[str, Any]) -> tuple[str, int]:
    """A flow and its page size; dense has none."""
    return result["flow"], 0 if result["flow"] == "dense" else result.get("page_size", 0)


def _name(result: dict[str, Any]) -> str:
    name, page = _flow(result)
    return f"{name}, page {page}" if page else name


def section(run: dict[str, Any]) -> list[str]:
    """One run."""
    (start,) = of_kind(run, "start")
    model = of_kind(run, "model")[0]
    shares: dict[tuple[int, int, str, int], float] = {}
    here = (0, 0)
    for result in run["results"]:
        if result["kind"] == "prompts":
            here = (result["batch"], result["context"])
        if result["kind"] == "share" and result.get("attention_share") is not None:
            shares[(*here, *_flow(result))] = result["attention_share"]
    lines = [f"`python -m benchmarks.serving {start['command']}`", ""]
    floor = model.get("weight_floor_ms")
    narrow = f" in {model['kv_dtype'][6:]}" if "float8" in model.get("kv_dtype", "") else ""
    lines.append(
        f"{model['name']}, {model.get('pool_tokens', 0):,} tokens of KV{narrow}; torch {run['torch']}, {run['device']}."
        + (f" Reading the weights once takes {floor:.2f} ms." if floor else "")
    )
    if model.get("ranks", 1) > 1:
        lines.append(f"{model['ranks']} ranks, a GPU each; weights and tokens are one rank's.")
    for found in of_kind(run, "transformers"):
        part = f", {found['layers']} layers" if found.get("layers") else ""
        lines.append(
            f"Against transformers on the same weights{part}: log-probability of a token differs by "
            f"{found['mean']:.3f} on average, {found['worst']:.3f} at worst; "
            f"{found['agreed']:.0%} of greedy tokens equal."
        )
    for found in of_kind(run, "everything selected"):
        lines.append(
            f"{_name(found)} with everything selected: {found['agreed']:.0%} of greedy tokens are dense's, "
            f"log-probabilities differ by {found['worst']:g} at most."
        )
    lines += [
        "",
        "| batch | context | flow | ms a step | P95 | tokens/s | over dense | density | attention's share | swap s |",
        "|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in of_kind(run, "decode"):
        share = shares.get((r["batch"], r["context"], *_flow(r)))
        lines.append(
            f"| {r['batch']} | {r['context']} | {_name(r)} | {r['step_ms']:.2f} | {r['step_ms_p95']:.2f} | "
            f"{r['tokens_per_second']:,.0f} | {r['speedup']:.2f}x | {r['density']:.3f} | "
            f"{'' if share is None else f'{share:.0%}'} | {r['swap_seconds']:.2f} |"
        )
    used = {
        r["batch"]: f"{r['used']:.0f} of {r['of']} at batch {r['batch']}"
        for r in of_kind(run, "experts")
        if r["used"]
    }
    if used:
        said = f"Experts that a step read in a layer, on average: {', '.join(used.values())}."
        lines += ["", said + " Other weights read other numbers of them, and take another time."]
    for r in of_kind(run, "skipped"):
        fits = f" (a batch of {r['batch_that_fits']} would fit)" if r.get("batch_that_fits") else ""
        lines += ["", f"Not run: batch {r['batch']} x {r['context']}: {r['why']}{fits}."]
    for failed in (r for r in run["results"] if "failed" in r):
        lines += ["", f"Failed: {failed['kind']}: {failed['failed']}"]
    return [*lines, ""]


def to_markdown(runs: list[dict[str, Any]], date: str, notes: Sequence[str] = ()) -> str:
    """All runs; `notes` are paragraphs before the first."""
    head = [
        "# Serving speed of the embedded engine",
        "",
        (
            f"{date}. Dense and sparse steps in turns in one process, medians. Random weights and random KV: "
            "throughput only. A swap includes state updates and graph capture; the first also compiles kernels."
        ),
        "",
    ]
    for note in notes:
        head += [note, ""]
    return "\n".join([*head, *(line for run in runs for line in section(run))])


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--date", required=True, help="when the runs were made")
    parser.add_argument("--note", action="append", default=[], help="a paragraph of its own")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    runs = [json.loads(path.read_text()) for path in args.runs]
    (args.out / f"{args.name}.json").write_text(json.dumps(runs, indent=1) + "\n")
    (args.out / f"{args.name}.md").write_text(to_markdown(runs, args.date, args.note))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

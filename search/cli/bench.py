"""The command that measures serving speed: bench."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from search.cli import choices
from search.cli.choices import MOST
from search.cli.console import Json, emit, out
from search.errors import bad_value
from vortex_core.text import visible


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(bench)


def bench(
    model: Annotated[str, typer.Argument(help="Model by name, directory or hub id.")],
    flow: Annotated[str, typer.Argument(help="A run, an exported folder, a library flow, or a .py file.")],
    rank: Annotated[int, typer.Option(min=1, max=MOST, help="Rank among the programs that a run found.")] = 1,
    batch: Annotated[str, typer.Option(help="Batch sizes, comma-separated.")] = "1",
    context: Annotated[str, typer.Option(help="Prompt lengths in tokens, comma-separated.")] = "1024",
    new_tokens: Annotated[int, typer.Option(min=2, max=MOST, help="Tokens to decode from each prompt.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, max=MOST, help="Turns of dense and sparse decoding.")] = 3,
    page_size: Annotated[int | None, typer.Option(help="Page size; the flow's own by default.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Tokens a step may attend; the flow's own by default.")
    ] = None,
    device: choices.Device = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="True shapes, random weights: throughput only.")
    ] = False,
    random_kv: Annotated[
        bool, typer.Option("--random-kv", help="Random keys and values, no prefill: throughput only.")
    ] = False,
    serve: Annotated[
        int, typer.Option(min=0, max=MOST, help="Requests to run through the scheduler as well.")
    ] = 0,
    folder: Annotated[Path | None, typer.Option("--out", help="Folder for bench.json.")] = None,
    as_json: Json = False,
) -> None:
    """Measure tokens/s, TTFT and time per token of a flow beside dense attention, in turns, on this machine.

    Checks first that the flow with everything selected decodes what dense attention does.

    Examples:

        vortex-search bench smollm2-135m quest --context 1024,4096

        vortex-search bench qwen3-1.7b block_topk --random-weights --random-kv --batch 16 --context 32000
    """
    from search.commands.bench import BenchPlan, write_results
    from search.commands.bench import bench as measure
    from vortex_core.engine.cores import wait_passively

    wait_passively()
    plan = BenchPlan(
        model, flow, rank, None if device == "auto" else device, _numbers("--batch", batch),
        _numbers("--context", context), new_tokens, rounds,
        page_size, budget, random_weights, random_kv, serve,
    )  # fmt: skip
    results: list[dict[str, Any]] = []
    for row in measure(plan):
        results.append(row)
        if folder is not None:
            write_results(folder, plan, results)
        if not as_json:
            out.print(_line(row), markup=False, soft_wrap=True)
    if as_json:
        emit({"results": results})


def _numbers(option: str, text: str) -> tuple[int, ...]:
    values = text.split(",")
    if not all(re.fullmatch(r"\s*[0-9]{1,9}\s*", value) and 0 < int(value) <= MOST for value in values):
        raise bad_value(option, visible(text, 80), f"whole numbers from 1 to {MOST}, comma-separated")
    return tuple(int(value) for value in values)


def _line(row: dict[str, Any]) -> str:
    """One result in a line."""
    match row["kind"]:
        case "parity" if row["density"] < 1.0:
            return (
                f"{row['model']} on {row['device']} ({row['backend']}): this flow leaves pages out by their scores "
                f"whatever the budget (density {row['density']:.3f}), so it is not compared with dense attention"
            )
        case "parity":
            return (
                f"{row['model']} on {row['device']} ({row['backend']}): everything selected differs from dense by "
                f"{row['mean']:.2g} in log-probability, {row['agreed']:.0%} of greedy tokens equal"
            )
        case "decode":
            share = row["attention_share"]
            attention = "" if share is None else f", {share:.0%} in attention"
            random = " [random KV: throughput only]" if row["random_kv"] else ""
            return (
                f"decode {row['flow']}: batch {row['batch']}, context {row['context']}: {row['step_ms']:.2f} ms a "
                f"step (P95 {row['step_ms_p95']:.2f}), {row['tokens_per_second']:.1f} tokens/s, "
                f"{row['speedup']:.2f}x dense{attention}, density {row['density']:.3f}, "
                f"states {row['state_mib']:.0f} MiB{random}"
            )
    return (
        f"serve {row['flow']}: {row['requests']} requests of {row['context']} tokens: "
        f"{row['output_tokens_per_second']:.1f} tokens/s, TTFT {row['ttft_ms_p50']:.0f} ms (P95 "
        f"{row['ttft_ms_p95']:.0f}), TPOT {row['tpot_ms_p50']:.1f} ms (P95 {row['tpot_ms_p95']:.1f})"
    )

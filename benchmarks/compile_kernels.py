"""Cold compile time of generated kernels, one by one and side by side, without a GPU.

    python -m benchmarks.compile_kernels --grammar 29 60 --json after.json --beside before.json

Library flows, the programs in `benchmarks/found` and programs of the grammar, at page 64 and the shape of
`benchmarks.programs`. Each kernel is compiled for sm_90a from empty caches in this process (processor seconds, ptxas
included; the median of `--repeats`); then all that a step launches is compiled side by side, as the stage
`machine_code` and the engine do (seconds on the clock, which a busy machine stretches; processor seconds in the JSON).
What flows share is compiled before. Of the machine code: registers, stack, shared memory, instructions and barriers,
so that two commits can be compared (`--beside OLD.json`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks.programs import programs
from vortex_core import library
from vortex_core.compiler.triton.ahead import StepShape, compile_ahead
from vortex_core.compiler.triton.offline import Launchable, launchables
from vortex_core.errors import VortexError
from vortex_core.geometry import Geometry
from vortex_core.ir.flow import Flow

GEOMETRY = Geometry(1, 8, 2, 128, 128, 128)
SHAPE, PAGE, BUDGET, TARGET = StepShape(16, 32_768), 64, "2048", "sm_90a"
GOAL = 1.5  # seconds, cold


@contextmanager
def empty_cache() -> Iterator[None]:
    """Inside, Triton finds nothing that was compiled before."""
    with tempfile.TemporaryDirectory() as folder, triton.knobs.cache.scope():
        triton.knobs.cache.dir = folder
        yield


def processor_seconds() -> float:
    """Of this process and of those it waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def kernel_row(kernel: Launchable, repeats: int) -> dict[str, Any]:
    """Seconds of one kernel and what its machine code takes."""
    taken = []
    for _ in range(repeats):
        with empty_cache():
            start = processor_seconds()
            kernel.build(TARGET)
            taken.append(processor_seconds() - start)
            if len(taken) == repeats:
                report = kernel.report(TARGET)
    text = kernel.kernel.src
    return {
        "seconds": round(statistics.median(taken), 2),
        "lines": text.count("\n"),
        "loads": text.count("tl.load("),
        "registers": report.registers,
        "stack": report.stack_bytes,
        "shared": report.shared_bytes,
        "instructions": report.instructions,
        "barriers": report.opcodes.get("BAR", 0),
    }


def side_by_side(flow: Flow) -> tuple[float, float]:
    """Seconds until all that a step launches is compiled, where what flows share already is: on the clock, and of
    processors."""
    with empty_cache():
        shared = library.load("streaming").flow
        compile_ahead(
            shared.program, shared.knobs.with_(page_size=PAGE, budget=BUDGET), GEOMETRY, [SHAPE], TARGET
        )
        start, used = time.perf_counter(), processor_seconds()
        compile_ahead(
            flow.program, flow.knobs.with_(page_size=PAGE, budget=BUDGET), GEOMETRY, [SHAPE], TARGET
        )
        return round(time.perf_counter() - start, 2), round(processor_seconds() - used, 2)


def measure(kind: str, name: str, flow: Flow, repeats: int, *, together: bool) -> dict[str, Any]:
    """One program: its kernels by name, or why it has none."""
    knobs = flow.knobs.with_(page_size=PAGE, budget=BUDGET)
    row: dict[str, Any] = {"kind": kind, "flow": name}
    try:
        found = launchables(flow.program, knobs, GEOMETRY)
        row["kernels"] = {k: kernel_row(one, repeats) for k, one in found.items()}
        row["alone"] = round(sum(k["seconds"] for k in row["kernels"].values()), 2)
        if together:
            row["together"], row["together_processor"] = side_by_side(flow)
    except VortexError as error:
        row["error"] = f"{error.code}: {error.message.splitlines()[0][:100]}"
    return row


def worse(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What of the machine code of one program takes more than it did."""
    found = []
    for name, kernel in new.get("kernels", {}).items():
        before = old.get("kernels", {}).get(name)
        for key in ("registers", "stack", "shared", "instructions", "barriers"):
            if before is not None and kernel[key] > before[key]:
                found.append(f"{name} {key} {before[key]} -> {kernel[key]}")
    return found


def to_markdown(report: dict[str, Any], old: dict[str, dict[str, Any]]) -> str:
    """The tables."""
    rows = [r for r in report["rows"] if "kernels" in r]
    lines = [
        f"`{report['command']}`, {report['date']}; {report['machine']}. Seconds, cold.",
        "",
        "| kind | programs | median, in turn | above 1.5 s | most | median, side by side | above 1.5 s | most |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for kind in ("library", "found", "grammar", ""):
        some = [r for r in rows if not kind or r["kind"] == kind]
        if not some:
            continue
        cells = [str(len(some))]
        for key in ("alone", "together"):
            taken = [r[key] for r in some if key in r]
            cells += (
                [f"{statistics.median(taken):.2f}", str(sum(t > GOAL for t in taken)), f"{max(taken):.2f}"]
                if taken
                else ["", "", ""]
            )
        lines.append(f"| {kind or 'all'} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| program | states | query | score | rows | refine | side by side | before: states | score | side by side |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        before = old.get(row["flow"], {})
        names = ("update_kernel", "query_kernel", "score_kernel", "row_kernel", "refine_kernel")
        cells = [_seconds(row, n) for n in names] + [str(row.get("together", ""))]
        cells += [_seconds(before, "update_kernel"), _seconds(before, "score_kernel")]
        lines.append(f"| {row['flow']} | {' | '.join(cells)} | {before.get('together', '')} |")
    return "\n".join(lines) + "\n"


def _seconds(row: dict[str, Any], name: str) -> str:
    kernel = row.get("kernels", {}).get(name)
    return "" if kernel is None else f"{kernel['seconds']:.2f}"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--grammar", nargs=2, type=int, default=(29, 0), metavar=("SEED", "COUNT"))
    found.add_argument("--only", default="", help="names, comma-separated")
    found.add_argument("--kinds", default="library,found,grammar", help="comma-separated")
    found.add_argument("--repeats", type=int, default=3)
    found.add_argument("--alone", action="store_true", help="kernels in turn only")
    found.add_argument("--beside", type=Path, help="a report of before, to say what takes more")
    found.add_argument("--json", type=Path, help="where the report is kept, a program at a time")
    return found


def main(argv: list[str] | None = None) -> int:
    """Measure, and print the tables."""
    args = parser().parse_args(argv)
    only, kinds = args.only.split(",") if args.only else [], args.kinds.split(",")
    old = {} if args.beside is None else {r["flow"]: r for r in json.loads(args.beside.read_text())["rows"]}
    report: dict[str, Any] = {
        "command": "python -m benchmarks.compile_kernels " + " ".join(argv or sys.argv[1:]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}, "
        f"triton {triton.__version__}",
        "rows": [],
    }
    shared = library.load("streaming").flow
    side_by_side(shared)  # what a process does once
    for kind, name, flow in programs(*args.grammar):
        if kind not in kinds or (only and name not in only):
            continue
        row = measure(kind, name, flow, args.repeats, together=not args.alone)
        report["rows"].append(row)
        shown = {k: v["seconds"] for k, v in row.get("kernels", {}).items()}
        print(
            name,
            row.get("error", shown),
            row.get("together", ""),
            *worse(old.get(name, {}), row),
            file=sys.stderr,
            flush=True,
        )
        if args.json is not None:
            args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(to_markdown(report, old))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

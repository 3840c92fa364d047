"""What the language costs its user: python -m benchmarks.language

For every library flow: lines of code, the time of a `check` in this process (allow-list, execution, tracing,
verification, canonical form, hash, warnings) and how much of it is the canonical form; and what the jail adds.
Medians of warm runs: of computing time for a check, of wall time for the jail. Writes
benchmarks/results/language.json and language.md.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import math
import os
import platform
import random
import statistics
import time
import tokenize
from array import array
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vortex_core import library
from vortex_core.flow.trace import Traced
from vortex_core.ir.canonical import canonicalise
from vortex_core.ir.params import Values
from vortex_core.sandbox.jail import run
from vortex_core.sandbox.load import trace_source

LIMIT_MS = 50.0  # of a check
QUEST_LINES = 10
JAILED = ("quest", "nsa", "rocketkv")
LEARNED: dict[str, dict[str, tuple[int, ...]]] = {  # sizes of learned values: layer, kv head, and these
    "loki": {"components": (16, 64)},
    "double_sparsity": {"channels": (16, 64)},
    "pqcache": {"centroids": (2, 64, 32)},
    "seerattention": {"wq": (3, 32, 64), "wmax": (32, 64), "wmin": (32, 64), "wmean": (32, 64)},
    "hashattention": {"q1": (64, 64), "q2": (32, 64), "k1": (64, 64), "k2": (32, 64)},
    "learned_block_topk": {"wq": (3, 8, 64), "wk": (3, 8, 64)},
}
LAYERS, KV_HEADS = 30, 3


@dataclass(frozen=True)
class Row:
    """One flow.

    Attributes:
        flow: library name.
        lines: lines of code of the class, `class` line, docstring, comments and blank lines not counted.
        operations: nodes of the canonical form, both stages.
        check_ms: median milliseconds of computing for a check in this process.
        slowest_ms: the slowest of those.
        canonical_ms: median milliseconds of the canonical form alone.
    """

    flow: str
    lines: int
    operations: int
    check_ms: float
    slowest_ms: float
    canonical_ms: float


def lines_of_code(source: str) -> int:
    """Lines inside the flow's class that hold code."""
    (flow,) = [n for n in ast.parse(source).body if isinstance(n, ast.ClassDef)]
    first = flow.body[0]
    words = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    skipped = range(first.lineno, (first.end_lineno or 0) + 1) if words else range(0)
    idle = (tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT)
    coded: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in idle:
            coded.update(range(token.start[0], token.end[0] + 1))
    body = range(first.lineno, (flow.end_lineno or 0) + 1)
    return len([n for n in body if n in coded and n not in skipped])


def values(flow: str) -> dict[str, Values]:
    """Random learned values for the flows that need some: their sizes cost, what they are does not."""
    rng, found = random.Random(flow), {}
    for name, inner in LEARNED.get(flow, {}).items():
        shape = (LAYERS, KV_HEADS, *inner)
        numbers = array("f", [rng.gauss(0.0, 0.3) for _ in range(math.prod(shape))])
        found[name] = Values(shape, numbers.tobytes())
    return found


def milliseconds(
    call: Callable[[], object], repeats: int, clock: Callable[[], float] = time.process_time
) -> list[float]:
    """Times of repeated calls, after two to warm up. Of computing by default: others share the machine."""
    call(), call()
    found = []
    for _ in range(repeats):
        start = clock()
        call()
        found.append((clock() - start) * 1e3)
    return found


def measure(flow: str, repeats: int) -> Row:
    """One row."""
    source, params = library.source(flow), values(flow)

    def check() -> Traced:
        traced = run(source, f"{flow}.py", None, params)
        assert traced.key
        return traced

    traced = check()
    times = milliseconds(check, repeats)
    canonical = milliseconds(lambda: canonicalise(traced.original), repeats)
    nodes = len(traced.program.cache.nodes) + len(traced.program.index.nodes)
    return Row(
        flow,
        lines_of_code(source),
        nodes,
        round(statistics.median(times), 2),
        round(max(times), 2),
        round(statistics.median(canonical), 2),
    )


def jail(repeats: int) -> list[dict[str, Any]]:
    """What a jailed trace takes, against one in this process."""
    found = []
    for flow in JAILED:
        source = library.source(flow)
        inside = statistics.median(milliseconds(partial(run, source, "flow.py"), repeats, time.perf_counter))
        jailed = statistics.median(milliseconds(partial(trace_source, source), repeats, time.perf_counter))
        row = {"flow": flow, "in_process_ms": inside, "jailed_ms": jailed, "overhead_ms": jailed - inside}
        found.append({k: round(v, 1) if isinstance(v, float) else v for k, v in row.items()})
    return found


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = [Row(**r) for r in result["flows"]]
    slow, quest = max(rows, key=lambda r: r.check_ms), next(r for r in rows if r.flow == "quest")
    where = (
        f"`python -m benchmarks.language`, medians of {result['repeats']} warm runs. {result['machine']}, Python "
        f"{result['python']}, one thread; load {result['load']}. Milliseconds of computing; of wall time for the jail."
    )
    found = (
        f"A check in this process, tracing and canonical form included, takes {slow.check_ms:.1f} ms for the slowest "
        f"library flow ({slow.flow}); the limit is {LIMIT_MS:.0f} ms. Quest has {quest.lines} lines of code; the goal "
        f"is under {QUEST_LINES}. `canonical` is the part of a check that computes the canonical form."
    )
    lines = ["# The language", "", where, "", found, ""]
    lines += [
        "| flow | lines | operations | check ms | slowest ms | canonical ms |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.flow} | {r.lines} | {r.operations} | {r.check_ms:.1f} | {r.slowest_ms:.1f} | {r.canonical_ms:.1f} |"
        for r in rows
    ]
    lines += [
        "",
        "What the jail adds, in wall time: a fresh interpreter, its limits and the system-call filter.",
        "",
    ]
    lines += ["| flow | in process ms | jailed ms | overhead ms |", "|---|---|---|---|"]
    lines += [
        f"| {r['flow']} | {r['in_process_ms']} | {r['jailed_ms']} | {r['overhead_ms']} |"
        for r in result["jail"]
    ]
    return "\n".join(lines) + "\n"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    found.add_argument("--repeats", type=int, default=20)
    found.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    found.add_argument("--json", action="store_true", help="print the result as JSON")
    return found


def main() -> int:
    """Exit status 1 if a limit is missed."""
    args = parser().parse_args()
    flows = [*library.names(), *library.mla_names(), *library.untrained_names()]
    rows = [measure(flow, args.repeats) for flow in flows]
    result = {
        "repeats": args.repeats,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
        "flows": [asdict(row) for row in rows],
        "jail": jail(args.repeats),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "language.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (args.out / "language.md").write_text(page(result), encoding="utf-8")
    print(json.dumps(result, indent=1) if args.json else page(result))
    quest = next(r for r in rows if r.flow == "quest")
    return int(any(r.check_ms >= LIMIT_MS for r in rows) or quest.lines >= QUEST_LINES)


if __name__ == "__main__":
    raise SystemExit(main())

"""The long fuzz runs, in slices: `python -m tests.fuzz.run --programs 10000 --mutations 10000 --seed 0`.

With `--progress FILE` a run can be cut anywhere and goes on where it stood; `--seconds` ends a slice by itself. A
file written by other code is refused, so that every figure of a finished run is one version's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.fuzz import programs, sources

JAIL_EVERY = 100
PROGRAM_SECONDS = 120  # of computing, after which a program counts as a hang
SAVE_EVERY = 20.0
ROOT = Path(__file__).resolve().parents[2]
_CODE = (
    "vortex_core/ir", "vortex_core/flow", "vortex_core/errors.py", "vortex_core/compiler/oracle.py",
    "vortex_core/compiler/evaluate.py", "vortex_core/compiler/selection.py", "vortex_core/compiler/states.py",
    "vortex_core/compiler/torch_backend.py", "agents/grammar/fuzz.py", "tests/fuzz", "tests/sample_flows.py",
)  # fmt: skip


@dataclass
class Part:
    """One of the two runs so far.

    Attributes:
        done: how many seeds were tried.
        counts: how often each outcome occurred.
        failures: what was wrong, in words; each begins with its seed.
        seconds: of computing.
        slowest: seconds of the slowest seed.
        slowest_seed: which one that was.
    """

    done: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    slowest: float = 0.0
    slowest_seed: int = -1


def code() -> str:
    """16 hex digits of everything that decides the outcome of a seed."""
    found = hashlib.sha256()
    for place in _CODE:
        path = ROOT / place
        assert path.exists(), place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            found.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    return found.hexdigest()[:16]


def one_program(seed: int, counts: Counter[str]) -> list[str]:
    """One random program, under a timer; whatever it raises is a failure."""
    signal.signal(signal.SIGVTALRM, sources.too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, PROGRAM_SECONDS)
    try:
        return programs.check(seed, counts)
    except Exception as error:
        return [f"program {seed}: a crash: {type(error).__name__}: {error}"]
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def advance(
    part: Part,
    seeds: range,
    check: Callable[[int, Counter[str]], list[str]],
    save: Callable[[], None],
    end: float,
) -> None:
    """Try the seeds that are left, until the clock reads `end` (monotonic seconds)."""
    counts, saved = Counter(part.counts), time.monotonic()
    for seed in seeds[part.done :]:
        if time.monotonic() >= end:
            break
        start = time.process_time()
        part.failures += check(seed, counts)
        took = time.process_time() - start
        part.done, part.seconds, part.counts = part.done + 1, part.seconds + took, dict(counts)
        if took > part.slowest:
            part.slowest, part.slowest_seed = took, seed
        if time.monotonic() - saved > SAVE_EVERY:
            save()
            saved = time.monotonic()


def record(name: str, parts: dict[str, Part], settings: dict[str, Any]) -> str:
    """The figures as a page."""
    program, source = parts["programs"], parts["sources"]
    wrong = [*program.failures, *source.failures]
    failed = Counter(w.split(": ", 1)[1].split(" (")[0] for w in program.failures)
    rows = [f"| {what} | {n - failed[what]:,} of {n:,} |" for what, n in sorted(program.counts.items())]
    codes = sorted((n, what) for what, n in source.counts.items() if what.startswith("VF"))
    outcomes = [f"| {what} | {n:,} |" for n, what in reversed(codes)]
    versions = ", ".join(f"{k} {v}" for k, v in settings["versions"].items())
    about_programs = (
        f"{program.done:,} random well-typed programs from seed {settings['seed']}: {len(program.failures)} failures, "
        f"{program.seconds:,.0f} s of computing, the slowest {program.slowest:.1f} s (seed {program.slowest_seed})."
    )
    about_sources = (
        f"{source.done:,} damaged sources from seed {settings['seed']}: {len(source.failures)} failures (a crash, a "
        f"hang over {sources.SECONDS} s, an error without a code, or emitted source that means something else), "
        f"{source.seconds:,.0f} s of computing, the slowest {source.slowest:.1f} s (seed {source.slowest_seed}). "
        f"Accepted: {source.counts.get('accepted', 0):,}; rejected without a line of the source: "
        f"{source.counts.get('without a line', 0):,}; traced in the jail as well, with the same outcome: "
        f"{source.counts.get('jailed', 0):,}."
    )
    head = ["# Fuzzing the language", "", f"`{name}`. {versions}; code {settings['code']}.", ""]
    lines = [*head, about_programs, "", "| what | held |", "|---|---|", *rows, "", about_sources, ""]
    lines += ["| rejected with | sources |", "|---|---|", *outcomes, *(f"\n- {w}" for w in wrong)]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Prints a summary. Exit status: 0 if nothing was wrong, 1 if something was, 3 if seeds are left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=10_000)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=40, help="failures shown in full")
    parser.add_argument("--progress", type=Path, help="file to go on from, and to keep up to date")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="wall time of this slice")
    parser.add_argument("--out", type=Path, help="where a finished run is recorded: OUT.json and OUT.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    settings: dict[str, Any] = {"seed": args.seed, "code": code(), "versions": versions}
    parts = {"programs": Part(), "sources": Part()}
    if args.progress is not None and args.progress.exists():
        before = json.loads(args.progress.read_text(encoding="utf-8"))
        if before["settings"] != settings:
            print(f"{args.progress} belongs to {before['settings']}, this is {settings}", file=sys.stderr)
            return 2
        parts = {name: Part(**found) for name, found in before["parts"].items()}

    def save() -> None:
        if args.progress is not None:
            found = {"settings": settings, "parts": {name: asdict(part) for name, part in parts.items()}}
            args.progress.write_text(json.dumps(found), encoding="utf-8")

    end = time.monotonic() + args.seconds
    seeds = range(args.seed, args.seed + args.programs), range(args.seed, args.seed + args.mutations)
    bases = sources.bases()
    advance(parts["programs"], seeds[0], one_program, save, end)
    advance(
        parts["sources"],
        seeds[1],
        lambda seed, counts: sources.check(seed, bases, counts, jailed=seed % JAIL_EVERY == 0),
        save,
        end,
    )
    save()
    wrong = [w for part in parts.values() for w in part.failures]
    command = (
        f"python -m tests.fuzz.run --programs {args.programs} --mutations {args.mutations} --seed {args.seed}"
    )
    page = record(command, parts, settings)
    left = len(seeds[0]) + len(seeds[1]) - sum(part.done for part in parts.values())
    print(page, f"{len(wrong)} failures, {left} seeds left", *wrong[: args.show], sep="\n")
    if args.out is not None and not left:
        found = {"command": command, **settings, **{name: asdict(part) for name, part in parts.items()}}
        args.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        args.out.with_suffix(".md").write_text(page, encoding="utf-8")
    return 3 if left else 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())

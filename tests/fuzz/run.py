"""The long fuzz runs: `python -m tests.fuzz.run --programs 10000 --mutations 10000 --seed 0`."""

from __future__ import annotations

import argparse
import time
from collections import Counter

import torch

from tests.fuzz import programs, sources

JAIL_EVERY = 100


def main() -> int:
    """Prints a summary; the exit status says whether anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=10_000)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=40, help="failures shown in full")
    args = parser.parse_args()
    torch.set_num_threads(1)
    wrong: list[str] = []

    start = time.process_time()
    counts: Counter[str] = Counter()
    for seed in range(args.seed, args.seed + args.programs):
        try:
            wrong += programs.check(seed, counts)
        except Exception as error:
            wrong.append(f"program {seed}: a crash: {type(error).__name__}: {error}")
    print(
        f"{args.programs} programs, {time.process_time() - start:.0f} s of computing, {len(wrong)} failures"
    )
    failed = Counter(w.split(": ", 1)[1].split(" (")[0] for w in wrong)
    for what, n in sorted(counts.items()):
        print(f"  {what}: {n - failed[what]} of {n}")

    start = time.process_time()
    counts, bases = Counter(), sources.bases()
    for seed in range(args.seed, args.seed + args.mutations):
        wrong += sources.check(seed, bases, counts, jailed=seed % JAIL_EVERY == 0)
    print(f"{args.mutations} damaged sources, {time.process_time() - start:.0f} s of computing")
    print("  " + ", ".join(f"{what} {n}" for what, n in sorted(counts.items())))
    print(f"{len(wrong)} failures", *wrong[: args.show], sep="\n  ")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())

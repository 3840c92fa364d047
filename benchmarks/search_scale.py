"""What an ask and a tell cost as a search grows, with a stub in place of proposer and evaluator.

    python -m benchmarks.search_scale --candidates 100000 --strategies evolve,portfolio

CPU time of this thread, so that other work on the machine does not count; median and 95th percentile over each tenth of
the run. Flat means that the last tenth costs what the first does.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

from search.campaign.archive import Verdict
from search.campaign.strategies.base import Tell
from search.campaign.strategies.registry import STRATEGIES


def drive(kind: str, candidates: int, parts: int = 10) -> list[tuple[float, float, float, float]]:
    """Ask and tell `candidates` times; for each part (median ask, 95% ask, median tell, 95% tell) in ms."""
    strategy, rng = STRATEGIES.get(kind)(0), random.Random(0)
    rows: list[tuple[float, float, float, float]] = []
    asks: list[float] = []
    tells: list[float] = []
    for n in range(candidates):
        began = time.thread_time()
        ask = strategy.ask(n)
        asked = time.thread_time()
        x = rng.random()
        common = {"parents": ask.parents, "point": ask.point, "by": ask.by}
        strategy.tell(Tell(n, "asked", **common))  # type: ignore[arg-type]  # of the fields named
        accuracy = 1 - 0.3 * x * x + rng.gauss(0, 0.01)
        strategy.tell(
            Tell(
                n, "scored", f"k{n}", f"p{n}", accuracy, 1 + 2 * x, Verdict.UNCLEAR, low=accuracy - 0.02,
                high=accuracy + 0.02, cell=f"c{int(8 * x)}", size=40, **common,  # type: ignore[arg-type]
            )
        )  # fmt: skip
        asks.append(1e3 * (asked - began))
        tells.append(1e3 * (time.thread_time() - asked))
        if len(asks) >= candidates // parts:
            rows.append((*_of(asks), *_of(tells)))
            asks, tells = [], []
    return rows


def _of(values: list[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return statistics.median(ordered), ordered[int(0.95 * (len(ordered) - 1))]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--candidates", type=int, default=100_000)
    parser.add_argument("--strategies", default="evolve,portfolio")
    args = parser.parse_args()
    for kind in args.strategies.split(","):
        print(
            f"{kind}: ms of CPU for each tenth of {args.candidates:,} candidates: ask median, 95% | tell median, 95%"
        )
        for n, row in enumerate(drive(kind, args.candidates), start=1):
            print(
                f"  {n * args.candidates // 10:>9,}: {row[0]:.2f} {row[1]:.2f} | {row[2]:.3f} {row[3]:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()

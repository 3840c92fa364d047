"""Do the statistics err as often as they say? python -m benchmarks.calibration [--answers FILE]

Four studies, seconds on one core:

- A/A: a candidate that answers as dense does, with noise; how often the sequential test accepts and rejects it.
- Planted losses of 2, 5 and 10 points at the margin of the plans: how often each is found, after how many items, beside
  a test of a fixed size.
- The same losses, each told from none: the margin is the loss itself, and there are items enough to say.
- Coverage of the certificate's bounds over re-splits of one set of answers: of a file (`--answers`: one 0 or 1 a
  line, 1 for an item lost), or of made ones.

Writes benchmarks/results/calibration.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from evaluators import stats
from evaluators.certify import next_bound, rate_bound
from evaluators.sequential import sequential_test

RUNS = 200
ITEMS = 400
RESPLITS = (200, 5000)
MARGIN = 0.1
ENOUGH = 4  # times the items of a fixed-size test, at most


def differences(rng: np.random.Generator, n: int, noise: float, loss: float) -> NDArray[np.float64]:
    """Paired differences: `noise` of the items differ by chance, half each way, and `loss` more are lost."""
    u = rng.random(n)
    return np.where(u < noise / 2, 1.0, 0.0) - np.where(u > 1 - noise / 2 - loss, 1.0, 0.0)


def fixed_size(noise: float, loss: float, power: float = 0.9) -> int:
    """Items of a one-sided fixed-size test (5%) that finds a loss with some power, by the normal approximation."""
    z = float(scipy_stats.norm.ppf(0.95) + scipy_stats.norm.ppf(power))
    variance = noise + loss - loss**2
    return int(np.ceil(z * z * variance / loss**2))


def sequential_rows(noise: float) -> list[str]:
    """A/A and planted losses at one rate of chance differences."""
    lines = []
    for loss in (0.0, 0.02, 0.05, 0.1, 0.2):
        rng = np.random.default_rng(int(1000 * loss) + int(1e5 * noise))
        found = [sequential_test(differences(rng, ITEMS, noise, loss), margin=MARGIN) for _ in range(RUNS)]
        share = {o: sum(r.outcome == o for r in found) / RUNS for o in ("accept", "reject", "undecided")}
        items = sorted(r.items for r in found)
        fixed = "-" if loss == 0 else str(fixed_size(noise, loss))
        lines.append(
            f"| {noise:.0%} | {loss:.0%} | {share['accept']:.3f} | {share['reject']:.3f} | {share['undecided']:.3f} "
            f"| {items[RUNS // 2]} | {items[int(0.9 * RUNS)]} | {fixed} |"
        )
    return lines


def told_apart_rows(noise: float) -> list[str]:
    """A/A and each planted loss, where the loss itself is the margin."""
    lines = []
    for loss in (0.02, 0.05, 0.1):
        rng = np.random.default_rng(7 + int(1000 * loss) + int(1e5 * noise))
        fixed = fixed_size(noise, loss)
        cells = []
        for planted in (0.0, loss):
            found = [
                sequential_test(differences(rng, ENOUGH * fixed, noise, planted), margin=loss)
                for _ in range(RUNS)
            ]
            shares = [sum(r.outcome == o for r in found) / RUNS for o in ("accept", "reject")]
            cells += [f"{share:.3f}" for share in shares]
            cells.append(str(sorted(r.items for r in found)[RUNS // 2]))
        lines.append(f"| {noise:.0%} | {loss:.0%} | {' | '.join(cells)} | {fixed} |")
    return lines


def coverage_rows(lost: NDArray[np.bool_], name: str) -> list[str]:
    """Coverage of both bounds over re-splits of one set of answers, half seen and half not.

    What is expected of items drawn from the set is its mean, so for that bound half as many are drawn from it with
    replacement. A half taken out of the set is nearer to its mean than a sample of its size is: a bound of 0.9 then
    covers 0.97, which says nothing of the bound.
    """
    rng = np.random.default_rng(0)
    n = len(lost) // 2
    m = len(lost) - n
    mean = float(lost.mean())
    found: list[tuple[bool, ...]] = []
    for _ in range(max(RESPLITS)):
        order = rng.permutation(len(lost))
        seen, rest = int(lost[order[:n]].sum()), float(lost[order[n:]].mean())
        drawn = int(lost[rng.integers(len(lost), size=n)].sum())
        tie = float(rng.random())
        found.append(
            (
                mean <= rate_bound(drawn, n),
                mean <= rate_bound(drawn, n, tie=tie),
                rest <= next_bound(seen, n, m) + 1e-12,
                rest <= next_bound(seen, n, m, tie=tie) + 1e-12,
            )
        )
    lines = []
    for splits in RESPLITS:
        error = 1.96 * np.sqrt(0.09 / splits)
        shares = " | ".join(f"{share:.3f}" for share in np.mean(found[:splits], 0))
        lines.append(f"| {name} | {len(lost)} | {mean:.3f} | {splits} (+-{error:.3f}) | {shares} |")
    return lines


def report(answers: Path | None) -> str:
    """All three studies as Markdown."""
    lines = [
        "# Calibration of the statistics",
        "",
        "Made by `python -m benchmarks.calibration`; simulated answers where no file is named.",
        "",
        f"## Sequential test, margin {MARGIN}, error 0.05, at most {ITEMS} items, {RUNS} comparisons a row",
        "",
        "`reject` is the power to find the loss; `fixed` the items of a one-sided fixed-size test of power 0.9.",
        "",
        "| differ by chance | loss | accept | reject | undecided | items, median | 90% | fixed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for noise in (0.0, 0.06):
        lines += sequential_rows(noise)
    lines += [
        "",
        f"## Each loss told from none, error 0.05, {RUNS} comparisons a row and side",
        "",
        f"The margin is the loss; {ENOUGH} times the items of the fixed-size test at most. `A/A` loses nothing.",
        "",
        "| differ by chance | loss | A/A: accept | reject | items | planted: accept | reject | items, median | fixed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for noise in (0.0, 0.06):
        lines += told_apart_rows(noise)
    lines += [
        "",
        "## Coverage of the certificate's bounds at 0.9",
        "",
        "Expected rate: draws, with replacement, of half as many items as the set has. Next items: re-splits.",
        "",
        "| answers | items | lost | re-splits | expected rate | ties drawn | next items | ties drawn |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rng = np.random.default_rng(3)
    for rate in (0.03, 0.1, 0.25):
        lines += coverage_rows(rng.random(400) < rate, "simulated")
    if answers is not None:
        lines += coverage_rows(np.loadtxt(answers) > 0.5, answers.name)
    n = stats.paired_difference([1.0] * 35, [1.0] * 35)
    lines += [
        "",
        f"35 identical answers: [{n.low:+.3f}, {n.high:+.3f}]; 34 do not exclude a loss of 0.1.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Simulate, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--answers", type=Path, help="0 or 1 a line: whether an item was lost")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    text = report(arguments.answers)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "calibration.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

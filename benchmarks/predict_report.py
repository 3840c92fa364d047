"""What the study of fidelities found, in tables: rank correlations, pairs ranked wrongly, and what a fidelity costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import Any

import numpy as np
from scipy.stats import binom, rankdata

SCREENED = ("beyond", "recall", "output_error", "logit_error", "density")
ANSWERED = ("accuracy", "perplexity_ratio")
# What each fidelity is asked to predict; the modelled speed comes without a model and stands with the first.
WANTED = {
    "accuracy": SCREENED,
    "perplexity_ratio": SCREENED,
    "later": (*SCREENED, *ANSWERED),
    "speed": ("density", "modelled", "accuracy"),
}
LESS_IS_BETTER = frozenset({"output_error", "logit_error", "perplexity_ratio"})
RESAMPLES = 2000
PROVEN = 0.05
SHOWN = 6

Row = dict[str, Any]


def correlation(rows: Sequence[Row], predicts: str, wanted: str) -> tuple[float, float, float]:
    """Spearman's correlation and its 95% interval over resampled programs."""
    return _with_interval(_resampled(rows, predicts, wanted))


def advantage(rows: Sequence[Row], predicts: str, over: str, wanted: str) -> tuple[float, float, float]:
    """How much more strongly one number is correlated than another (signs apart), and the 95% interval of that over
    programs resampled for both alike."""
    return _with_interval(abs(_resampled(rows, predicts, wanted)) - abs(_resampled(rows, over, wanted)))


def _resampled(rows: Sequence[Row], predicts: str, wanted: str) -> np.ndarray:
    """Correlations: of all programs first, then of resampled ones, the same for any two numbers."""
    x = np.array([row[predicts] for row in rows], dtype=float)
    y = np.array([row[wanted] for row in rows], dtype=float)
    n, generator = len(rows), np.random.default_rng(0)
    at = np.concatenate([np.arange(n)[None], generator.integers(0, n, (RESAMPLES, n))])
    ranks = [rankdata(values[at], axis=1) for values in (x, y)]
    a, b = (r - r.mean(1, keepdims=True) for r in ranks)
    with np.errstate(invalid="ignore"):  # a resample of equal numbers has no correlation
        found: np.ndarray = (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return found


def _with_interval(found: np.ndarray) -> tuple[float, float, float]:
    low, high = np.nanquantile(found[1:], [0.025, 0.975])
    return float(found[0]), float(low), float(high)


def repeats(rows: Sequence[Row], scores: str) -> float | None:
    """Spearman's correlation of what programs answer to half of the items with what they answer to the other half,
    stepped up to all items (Spearman-Brown): as well as any number can be expected to predict these answers."""
    halves = [[sum(row[scores][i::2]) for row in rows] for i in range(2)]
    ranks = [rankdata(half) for half in halves]
    if any(len(set(half)) == 1 for half in halves):
        return None
    half = float(np.corrcoef(*ranks)[0, 1])
    return 2 * half / (1 + half)


def proven(better: Sequence[float], worse: Sequence[float]) -> bool:
    """Whether one program's answers are better than another's to the same items: McNemar's exact test, one side."""
    wins = sum(a > b for a, b in zip(better, worse, strict=True))
    losses = sum(a < b for a, b in zip(better, worse, strict=True))
    return bool(wins > losses and binom.sf(wins - 1, wins + losses, 0.5) <= PROVEN)


def ordered(rows: Sequence[Row], predicts: str) -> tuple[int, int, list[tuple[float, Row, Row]]]:
    """Pairs of programs of one budget, one of which is proven to answer better: how many there are, how many of them
    a number orders as the answers do (ties count a half, rounded down), and the others, the worst first, as
    `(gap in ranks, better, worse)`."""
    pairs, right, wrong = 0, 0.0, []
    for part in _by_budget(rows):
        values = [row[predicts] for row in part]
        ranks = rankdata([-v for v in values] if predicts in LESS_IS_BETTER else values)
        for (i, a), (j, b) in permutations(enumerate(part), 2):
            if not proven(a["scores"], b["scores"]):
                continue
            pairs += 1
            right += 1.0 if ranks[i] > ranks[j] else 0.5 if ranks[i] == ranks[j] else 0.0
            if ranks[i] < ranks[j]:
                wrong.append((float(ranks[j] - ranks[i]), a, b))
    return pairs, int(right), sorted(wrong, key=lambda one: -one[0])


def _by_budget(rows: Sequence[Row]) -> Iterator[list[Row]]:
    for budget in dict.fromkeys(row["budget"] for row in rows):
        yield [row for row in rows if row["budget"] == budget]


def report(rows: Sequence[Row], about: dict[str, Any]) -> str:
    """Every table, as Markdown."""
    lines = [f"{about['model']}, {about['asked']}: {len(rows)} programs", ""]
    lines += _correlations(rows, about["budgets"])
    lines += ["", *_pairs(rows)]
    lines += ["", *_seconds(rows)]
    return "\n".join(lines) + "\n"


def _has(rows: Sequence[Row], *names: str) -> bool:
    return bool(rows) and all(row.get(name) is not None for row in rows for name in names)


def _correlations(rows: Sequence[Row], budgets: Sequence[int]) -> list[str]:
    """Rank correlations over all programs and within each budget, and how well answers repeat themselves."""
    lines = ["| predicted by | what | all budgets | " + " | ".join(f"at {b}" for b in budgets) + " |"]
    lines += ["|" + "---|" * (3 + len(budgets))]
    parts = [list(rows), *([r for r in rows if r["budget"] == str(b)] for b in budgets)]
    for wanted, by in WANTED.items():
        for predicts in by:
            cells = []
            for part in ([row for row in part if _has([row], wanted, predicts)] for part in parts):
                varied = len({r[predicts] for r in part}) > 1 and len({r[wanted] for r in part}) > 1
                cells.append(
                    "{:+.2f} [{:+.2f}, {:+.2f}]".format(*correlation(part, predicts, wanted))
                    if varied
                    else "-"
                )
            if set(cells) != {"-"}:
                lines.append(f"| {predicts} | {wanted} | {' | '.join(cells)} |")
    for wanted, scores in (("accuracy", "scores"), ("later", "later_scores")):
        if _has(rows, scores):
            found = [repeats(part, scores) if part else None for part in parts]
            cells = ["-" if value is None else f"{value:+.2f}" for value in found]
            lines.append(f"| itself (halves) | {wanted} | {' | '.join(cells)} |")
    if _has(rows, "beyond", "accuracy") and all(
        len({r[n] for r in rows}) > 1 for n in ("beyond", "accuracy")
    ):
        lines += ["", "Correlation with accuracy beside that of beyond, signs apart:", ""]
        for name in ("recall", "output_error", "logit_error"):
            if _has(rows, name) and len({r[name] for r in rows}) > 1:
                value, low, high = advantage(rows, name, "beyond", "accuracy")
                lines.append(f"- {name}: {value:+.2f} [{low:+.2f}, {high:+.2f}]")
    return lines


def _pairs(rows: Sequence[Row]) -> list[str]:
    """How often each number orders two programs as their proven answers do, and the worst it does."""
    found = {name: ordered(rows, name) for name in (*SCREENED, "perplexity_ratio") if _has(rows, name)}
    if not found:
        return []
    pairs = next(iter(found.values()))[0]
    lines = [
        f"{pairs} pairs of one budget are proven to answer differently (McNemar, {PROVEN:g}); ordered alike:",
        "",
    ]
    lines += [f"- {name}: {right} ({right / max(1, pairs):.0%})" for name, (_, right, _) in found.items()]
    for name in ("beyond", "perplexity_ratio"):
        if name not in found:
            continue
        lines += ["", f"Most wrongly ordered by {name}:", ""]
        for gap, a, b in found[name][2][:SHOWN]:
            lines.append(
                f"- at {a['budget']}: {a['flow']} ({name} {a[name]:.3f}) answers {a['accuracy']:.2f}, {b['flow']} "
                f"({b[name]:.3f}) {b['accuracy']:.2f}; {gap:.0f} ranks"
            )
    return lines


def _seconds(rows: Sequence[Row]) -> list[str]:
    """Median, 90% and longest seconds of each fidelity."""
    lines = ["| seconds a program | median | 90% within | longest |", "|---|---|---|---|"]
    for name in ("screen", "screen_again", "answer", "later", "perplexity", "served"):
        took = sorted(row[f"{name}_seconds"] for row in rows if row.get(f"{name}_seconds") is not None)
        if took:
            middle, most = took[len(took) // 2], took[int(0.9 * (len(took) - 1))]
            lines.append(f"| {name.replace('_', ' ')} | {middle:.3f} | {most:.3f} | {took[-1]:.3f} |")
    return lines

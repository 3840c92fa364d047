"""Statistics of paired evaluations: candidate and dense answer the same items.

Pure functions of their arguments (the resampling ones take a seed). Binary outcomes get score intervals,
which stay honest at 0 and n successes where a bootstrap collapses to a point; scores that are shares have
`sequential.paired_scores`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats
from scipy.optimize import brentq

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A point estimate with a two-sided confidence interval.

    Attributes:
        value: the estimate.
        low: lower end.
        high: upper end.
        n: independent observations behind it.
        level: confidence, e.g. 0.95.
    """

    value: float
    low: float
    high: float
    n: int
    level: float = 0.95


@dataclass(frozen=True)
class McNemar:
    """Discordant pairs and the exact two-sided p-value that both directions are equally likely.

    Attributes:
        gained: items the candidate has right and the reference wrong.
        lost: items the candidate has wrong and the reference right.
        p_value: exact binomial.
    """

    gained: int
    lost: int
    p_value: float


def wilson(successes: float, n: int, level: float = 0.95) -> Interval:
    """Wilson score interval of a proportion (Wilson 1927).

    Raises:
        ValueError: if `n` is not positive or `successes` lies outside `[0, n]`.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"wilson: {successes} successes of {n}")
    z = _quantile(level)
    p = successes / n
    scale = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    # Exact at the ends, where rounding would leave the estimate outside its own interval.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(p, low, high, n, level)


def mcnemar_exact(candidate: Sequence[float], reference: Sequence[float]) -> McNemar:
    """McNemar's exact test on paired binary outcomes (McNemar 1947).

    Raises:
        ValueError: if the lengths differ or an outcome is not 0 or 1.
    """
    ours, theirs = _paired(candidate, reference)
    _require_binary(ours, theirs)
    gained = int(np.sum((ours == 1) & (theirs == 0)))
    lost = int(np.sum((ours == 0) & (theirs == 1)))
    discordant = gained + lost
    p_value = 1.0 if discordant == 0 else float(scipy_stats.binomtest(gained, discordant, 0.5).pvalue)
    return McNemar(gained, lost, p_value)


def wilcoxon(candidate: Sequence[float], reference: Sequence[float]) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test on paired continuous outcomes; 1 if all are equal.

    Raises:
        ValueError: if the lengths differ or there is no pair.
    """
    ours, theirs = _paired(candidate, reference)
    if np.all(ours == theirs):
        return 1.0
    return float(scipy_stats.wilcoxon(ours, theirs).pvalue)


def paired_difference(
    candidate: Sequence[float], reference: Sequence[float], level: float = 0.95
) -> Interval:
    """Score interval of `mean(candidate) - mean(reference)` for paired binary outcomes (Tango 1998).

    With no discordant pair the interval is still about `±z²/n` wide, as it must be: a handful of equal
    answers proves little.

    Raises:
        ValueError: if the lengths differ, there is no pair, or an outcome is not 0 or 1.
    """
    ours, theirs = _paired(candidate, reference)
    _require_binary(ours, theirs)
    n = len(ours)
    gained = int(np.sum((ours == 1) & (theirs == 0)))
    lost = int(np.sum((ours == 0) & (theirs == 1)))
    value = (gained - lost) / n
    z = _quantile(level)

    def excess(delta: float, sign: float) -> float:
        return _tango_score(gained, lost, n, delta) - sign * z

    edge = 1 - 1e-12
    low = -1.0 if excess(-edge, 1) <= 0 else float(brentq(excess, -edge, min(value, edge), args=(1,)))
    high = 1.0 if excess(edge, -1) >= 0 else float(brentq(excess, max(value, -edge), edge, args=(-1,)))
    return Interval(value, min(low, value), max(high, value), n, level)


def clustered_mean(values: Sequence[float], clusters: Sequence[object], level: float = 0.95) -> Interval:
    """Mean of values that come in clusters (tokens of a passage, samples of a question, steps of a round), with the
    interval that their clusters allow: cluster-robust variance of the mean and Student's quantile for as many
    clusters. Values of one cluster may depend on each other in any way; clusters are independent.

    One cluster has no interval: it is infinite on both sides.

    Raises:
        ValueError: if there are no values, or not one cluster a value.
    """
    sample = _array(values)
    if len(clusters) != len(sample):
        raise ValueError(f"{len(sample)} values in {len(clusters)} clusters")
    names = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    mean, groups = float(sample.mean()), len(names)
    if groups == 1:
        return Interval(mean, -math.inf, math.inf, 1, level)
    sums = np.zeros(groups)
    np.add.at(sums, [names[name] for name in clusters], sample - mean)
    variance = float((sums**2).sum()) / len(sample) ** 2 * groups / (groups - 1)
    half = float(scipy_stats.t.ppf(0.5 + level / 2, groups - 1)) * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half, groups, level)


def clustered_difference(
    candidate: Sequence[float], reference: Sequence[float], clusters: Sequence[object], level: float = 0.95
) -> Interval:
    """`clustered_mean` of the paired differences.

    Raises:
        ValueError: as there, or if the lengths differ.
    """
    ours, theirs = _paired(candidate, reference)
    return clustered_mean(list(ours - theirs), clusters, level)


Standing = Literal["proven", "kept by value", "broken"]


def standing(difference: Interval, margin: float) -> Standing:
    """Where a paired difference stands to a margin, in the words of every report.

    `proven`: the whole interval is above minus the margin. `kept by value`: the value is, the interval is not, so a
    loss of the margin is not excluded. `broken`: the value is below.
    """
    if is_noninferior(difference, margin):
        return "proven"
    return "kept by value" if difference.value >= -margin else "broken"


def mean_over_rounds(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean of one number a round, with Student's interval (exact for normal rounds, and honest about few of them).

    Used for logarithms of ratios of medians. One round has no interval: it is infinite on both sides.

    Raises:
        ValueError: if there are no values.
    """
    sample = _array(values)
    mean, n = float(sample.mean()), len(sample)
    if n == 1:
        return Interval(mean, -math.inf, math.inf, n, level)
    half = float(scipy_stats.t.ppf(0.5 + level / 2, n - 1)) * float(sample.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, level)


def bootstrap_median_ratio(
    numerator: Sequence[float],
    denominator: Sequence[float],
    *,
    seed: int,
    level: float = 0.95,
    resamples: int = 2000,
) -> Interval:
    """Percentile bootstrap of `median(numerator) / median(denominator)`, the samples drawn independently.

    Used for timings, where the median ignores the odd interrupted step.

    Raises:
        ValueError: if a sample is empty or not positive.
    """
    top, bottom = _array(numerator), _array(denominator)
    if np.any(top <= 0) or np.any(bottom <= 0):
        raise ValueError("bootstrap_median_ratio: values must be positive")
    tops = np.median(top[_draws(len(top), resamples, seed)], axis=1)
    bottoms = np.median(bottom[_draws(len(bottom), resamples, seed + 1)], axis=1)
    value = float(np.median(top) / np.median(bottom))
    return _percentile(value, tops / bottoms, min(len(top), len(bottom)), level)


def is_noninferior(difference: Interval, margin: float) -> bool:
    """Whether the candidate is worse than the reference by less than `margin`, at the interval's confidence.

    Raises:
        ValueError: if `margin` is not positive.
    """
    if margin <= 0:
        raise ValueError(f"is_noninferior: margin {margin} is not positive")
    return difference.low > -margin


def _tango_score(gained: int, lost: int, n: int, delta: float) -> float:
    """Tango's score statistic for a true difference `delta`, the nuisance rate at its constrained maximum."""
    a = 2.0 * n
    b = -gained - lost + (2 * n - gained + lost) * delta
    c = -lost * delta * (1 - delta)
    rate = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = n * (2 * rate + delta * (1 - delta))
    numerator = gained - lost - n * delta
    if variance <= 0:
        return math.copysign(math.inf, numerator) if numerator else 0.0
    return numerator / math.sqrt(variance)


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"confidence level {level} is not between 0 and 1")
    return float(scipy_stats.norm.ppf(0.5 + level / 2))


def _array(values: Sequence[float] | Any) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError("expected a non-empty list of numbers")
    return array


def _paired(candidate: Sequence[float], reference: Sequence[float]) -> tuple[Array, Array]:
    ours, theirs = _array(candidate), _array(reference)
    if len(ours) != len(theirs):
        raise ValueError(f"paired samples differ in length: {len(ours)} and {len(theirs)}")
    return ours, theirs


def _require_binary(*arrays: Array) -> None:
    for array in arrays:
        if not np.all((array == 0) | (array == 1)):
            raise ValueError("outcomes must be 0 or 1")


def _draws(n: int, resamples: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, n, size=(resamples, n))


def _percentile(value: float, resampled: Array, n: int, level: float) -> Interval:
    tail = (1 - level) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(value, min(float(low), value), max(float(high), value), n, level)

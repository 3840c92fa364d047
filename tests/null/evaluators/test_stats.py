from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators import stats

bits = st.integers(0, 1).map(float)
pairs = st.lists(st.tuples(bits, bits), min_size=1, max_size=60)
reals = st.floats(-100, 100)
positives = st.floats(0.01, 100)
quick = settings(max_examples=60, deadline=None)


@quick
@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_its_estimate_and_stays_in_range(case: tuple[int, int]) -> None:
    successes, n = case
    interval = stats.wilson(successes, n)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    assert stats.wilson(successes, n, 0.99).low <= interval.low


def test_wilson_agrees_with_scipy() -> None:
    from scipy.stats import binomtest

    theirs = binomtest(37, 50).proportion_ci(0.95, method="wilson")
    ours = stats.wilson(37, 50)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))


def test_wilson_covers_at_the_stated_rate() -> None:
    draws = np.random.default_rng(0).binomial(40, 0.85, size=4000)
    table = {k: stats.wilson(k, 40) for k in range(41)}
    covered = np.mean([table[int(k)].low <= 0.85 <= table[int(k)].high for k in draws])
    assert 0.92 < covered < 0.98


@quick
@given(pairs)
def test_mcnemar_is_symmetric(case: list[tuple[float, float]]) -> None:
    ours, theirs = [a for a, _ in case], [b for _, b in case]
    one, other = stats.mcnemar_exact(ours, theirs), stats.mcnemar_exact(theirs, ours)
    assert (one.gained, one.lost) == (other.lost, other.gained)
    assert one.p_value == pytest.approx(other.p_value)
    assert 0 <= one.p_value <= 1


def test_mcnemar_known_value() -> None:
    # 1 gained against 9 lost: 2 * P(X <= 1), X ~ B(10, 1/2) = 22 / 1024.
    ours = [1.0] + [0.0] * 9 + [1.0] * 5
    theirs = [0.0] + [1.0] * 9 + [1.0] * 5
    assert stats.mcnemar_exact(ours, theirs).p_value == pytest.approx(22 / 1024)


@quick
@given(pairs)
def test_paired_difference_holds_its_estimate_and_mirrors(case: list[tuple[float, float]]) -> None:
    ours, theirs = [a for a, _ in case], [b for _, b in case]
    interval = stats.paired_difference(ours, theirs)
    assert -1 <= interval.low <= interval.value <= interval.high <= 1
    assert interval.value == pytest.approx(np.mean(ours) - np.mean(theirs))
    mirror = stats.paired_difference(theirs, ours)
    assert (mirror.low, mirror.high) == pytest.approx((-interval.high, -interval.low), abs=1e-6)
    assert interval.low < interval.high


def test_paired_difference_ends_where_the_score_equals_the_normal_quantile() -> None:
    ours = [1.0] * 9 + [0.0] * 4 + [1.0] * 20
    theirs = [0.0] * 9 + [1.0] * 4 + [1.0] * 20
    interval = stats.paired_difference(ours, theirs)
    assert stats._tango_score(9, 4, 33, interval.low) == pytest.approx(1.959964, abs=1e-5)
    assert stats._tango_score(9, 4, 33, interval.high) == pytest.approx(-1.959964, abs=1e-5)


def test_paired_difference_covers_at_the_stated_rate() -> None:
    rng = np.random.default_rng(3)
    gained, lost, n = 0.05, 0.15, 50
    hits = 0
    for _ in range(400):
        kinds = rng.choice(3, size=n, p=[gained, lost, 1 - gained - lost])
        interval = stats.paired_difference((kinds != 1).astype(float), (kinds != 0).astype(float))
        hits += interval.low <= gained - lost <= interval.high
    assert 0.91 < hits / 400 <= 1


def test_equal_answers_prove_little() -> None:
    few = stats.paired_difference([1.0] * 8, [1.0] * 8)
    many = stats.paired_difference([1.0] * 200, [1.0] * 200)
    assert few.low < -0.2
    assert many.low > -0.03
    assert not stats.is_noninferior(few, 0.1)
    assert stats.is_noninferior(many, 0.1)


@quick
@given(st.lists(positives, min_size=1, max_size=20), st.lists(positives, min_size=1, max_size=20), positives)
def test_median_ratio_scales(top: list[float], bottom: list[float], factor: float) -> None:
    one = stats.bootstrap_median_ratio(top, bottom, seed=0, resamples=200)
    scaled = stats.bootstrap_median_ratio([factor * t for t in top], bottom, seed=0, resamples=200)
    assert one.low <= one.value <= one.high
    assert (scaled.low, scaled.value, scaled.high) == pytest.approx(
        (factor * one.low, factor * one.value, factor * one.high)
    )


@quick
@given(st.lists(st.tuples(reals, reals), min_size=1, max_size=30))
def test_wilcoxon_is_a_probability(case: list[tuple[float, float]]) -> None:
    ours, theirs = [a for a, _ in case], [b for _, b in case]
    assert 0 <= stats.wilcoxon(ours, theirs) <= 1
    assert stats.wilcoxon(ours, ours) == 1


def test_wilcoxon_sees_a_shift() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(size=40)
    assert stats.wilcoxon(list(base + 0.5 + 0.1 * rng.normal(size=40)), list(base)) < 1e-6


@pytest.mark.parametrize(
    "call",
    [
        lambda: stats.wilson(3, 0),
        lambda: stats.wilson(3, 2),
        lambda: stats.mcnemar_exact([0.5], [1.0]),
        lambda: stats.paired_difference([1.0], [1.0, 0.0]),
        lambda: stats.bootstrap_median_ratio([0.0], [1.0], seed=0),
        lambda: stats.is_noninferior(stats.Interval(0, 0, 0, 1), 0),
        lambda: stats.wilson(1, 2, level=1.5),
    ],
)
def test_bad_input_is_refused(call: object) -> None:
    with pytest.raises(ValueError):
        call()  # type: ignore[operator]


def test_rounds_have_students_interval() -> None:
    found = stats.mean_over_rounds([1.0, 2.0, 3.0])
    half = 4.302652729911275 / math.sqrt(3)  # t of two degrees of freedom at 97.5%
    assert (found.value, found.n) == (2.0, 3)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half))
    alone = stats.mean_over_rounds([1.0])
    assert (alone.low, alone.high) == (-math.inf, math.inf)


def test_the_interval_over_rounds_covers() -> None:
    """Rounds that differ (clocks, neighbours) are the noise: 95 of 100 intervals hold the truth, with 4 rounds each."""
    draw = random.Random(0)
    held = sum(
        found.low <= 0.7 <= found.high
        for found in (stats.mean_over_rounds([draw.gauss(0.7, 0.05) for _ in range(4)]) for _ in range(2000))
    )
    assert 0.935 < held / 2000 < 0.965

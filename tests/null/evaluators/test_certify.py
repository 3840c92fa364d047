from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from evaluators.certify import Certificate, next_bound, rate_bound


def test_bounds_of_few_items_are_wide_and_exact() -> None:
    assert rate_bound(0, 22) == pytest.approx(1 - 0.1 ** (1 / 22))  # P(no loss of 22) is 0.1 there
    assert rate_bound(0, 22) < rate_bound(1, 22) < rate_bound(22, 22) == 1
    assert rate_bound(2, 100, 0.9) < rate_bound(2, 100, 0.99)
    assert next_bound(0, 50, 50) < next_bound(3, 50, 50) <= 1


@pytest.mark.parametrize("rate", [0.02, 0.08, 0.3])
def test_the_rate_is_covered_at_least_as_often_as_promised(rate: float) -> None:
    rng = np.random.default_rng(0)
    covered = [rate_bound(int(rng.binomial(60, rate)), 60) >= rate for _ in range(1000)]
    assert np.mean(covered) >= 0.89


@pytest.mark.parametrize(("items", "rate"), [(40, 0.01), (60, 0.08), (200, 0.3)])
def test_with_ties_drawn_the_rate_is_covered_exactly_as_often_as_promised(items: int, rate: float) -> None:
    """Over every number that can be lost, each with its chance, and ties a hundredth apart: no simulation's error."""
    ties = (np.arange(100) + 0.5) / 100
    chances = binom.pmf(np.arange(items + 1), items, rate)
    covered = sum(
        chance * np.mean([rate_bound(lost, items, tie=float(tie)) >= rate for tie in ties])
        for lost, chance in enumerate(chances)
        if chance > 1e-6
    )
    assert covered == pytest.approx(0.9, abs=0.005)


def test_a_drawn_tie_lowers_the_bound_by_less_than_an_item() -> None:
    for lost in (0, 1, 7, 29, 30):
        bounds = [rate_bound(lost, 30, tie=tie) for tie in (0.0, 0.05, 0.4, 0.999)]
        assert bounds == sorted(bounds)
        assert bounds[-1] <= rate_bound(lost, 30)
        if lost:
            assert bounds[0] == pytest.approx(rate_bound(lost - 1, 30))
    assert rate_bound(0, 30, tie=0.05) == 0 < rate_bound(0, 30, tie=0.4)


def test_the_next_items_are_covered_exactly_as_often_as_promised() -> None:
    """Re-splits of one set of items, drawn ties: neither more nor less than 0.9."""
    rng = np.random.default_rng(4)
    lost = rng.random(160) < 0.12
    covered = []
    for _ in range(600):
        order = rng.permutation(160)
        seen, rest = lost[order[:80]], lost[order[80:]]
        tie = float(rng.random())
        covered.append(rest.mean() <= next_bound(int(seen.sum()), 80, 80, tie=tie) + 1e-12)
    assert 0.87 <= np.mean(covered) <= 0.93


def test_a_certificate_of_questions_that_dense_misses_says_so() -> None:
    found = Certificate("f", "k", "i", "m", 16, 0, 0, 0, 0, 0.9, rate_bound(0, 16), (1, 1))
    assert "nothing can be lost" in found.words
    assert "nothing can be lost" not in replace(found, dense_right=9).words


@pytest.mark.parametrize("arguments", [(1, 0), (3, 2), (-1, 5), (0, 5, 1.0)])
def test_impossible_counts(arguments: tuple[float, ...]) -> None:
    with pytest.raises(ValueError):
        rate_bound(*arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        next_bound(0, 5, 0)

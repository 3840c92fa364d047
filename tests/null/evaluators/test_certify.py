from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

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

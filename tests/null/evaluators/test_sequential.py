from __future__ import annotations

import math

import numpy as np
import pytest

from evaluators import stats
from evaluators.plan import load_plan
from evaluators.sequential import items_to_prove, sequential_test, wagered_difference
from evaluators.tasks.items import ItemSet


def drawn(rng: np.random.Generator, n: int, *, noise: float, loss: float) -> list[float]:
    """Paired differences of which `noise` are discordant by chance and `loss` more are lost."""
    u = rng.random(n)
    return list(np.where(u < noise / 2, 1.0, 0.0) - np.where(u > 1 - noise / 2 - loss, 1.0, 0.0))


def outcomes(loss: float, *, noise: float = 0.06, runs: int = 300, n: int = 400) -> dict[str, float]:
    rng = np.random.default_rng(7)
    found = [
        sequential_test(drawn(rng, n, noise=noise, loss=loss), margin=0.1, error=0.05).outcome
        for _ in range(runs)
    ]
    return {name: found.count(name) / runs for name in ("accept", "reject", "undecided")}


def test_equals_are_accepted_and_seldom_rejected() -> None:
    found = outcomes(0.0)
    assert found["reject"] <= 0.05 and found["accept"] > 0.9


def test_a_loss_of_the_margin_is_seldom_accepted() -> None:
    found = outcomes(0.1)
    assert found["accept"] <= 0.05 and found["reject"] > 0.9


def test_both_ends_stop_sooner_than_all_items() -> None:
    assert sequential_test([0.0] * 400, margin=0.1).items < 50
    assert sequential_test([-1.0] * 400, margin=0.1).items < 10
    undecided = sequential_test([0.0] * 10, margin=0.1)
    assert (undecided.outcome, undecided.items) == ("undecided", 10)


def test_what_is_tolerated_is_not_rejected() -> None:
    rng = np.random.default_rng(3)
    found = [
        sequential_test(drawn(rng, 300, noise=0.06, loss=0.08), margin=0.1, tolerated=0.1).outcome
        for _ in range(200)
    ]
    assert found.count("reject") / 200 <= 0.05


def test_means_of_samples_may_be_given() -> None:
    assert sequential_test([0.25, -0.25, 0.0, 0.5] * 40, margin=0.1).outcome == "accept"


@pytest.mark.parametrize(
    "settings", [{"margin": 0.0}, {"margin": 0.1, "error": 1.0}, {"margin": 0.1, "tolerated": 0.2}]
)
def test_settings_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        sequential_test([0.0], **settings)
    with pytest.raises(ValueError):
        sequential_test([1.5], margin=0.1)


def test_items_that_a_margin_needs() -> None:
    n = items_to_prove(0.1)
    equal = [1.0] * n
    assert stats.paired_difference(equal, equal).low > -0.1
    assert stats.paired_difference(equal[:-1], equal[:-1]).low <= -0.1
    assert items_to_prove(0.1, lost=1) > n and items_to_prove(0.05) > n


@pytest.mark.parametrize("name", ["default", "gpu", "mla-gpu", "retrieval"])
def test_shipped_plans_can_prove_their_margins(name: str) -> None:
    plan = load_plan(name)
    assert plan.accuracy.provable()
    assert plan.accuracy.provable(plan.fresh.share)


def test_clusters_count_and_not_their_members() -> None:
    """Values that repeat within a cluster carry no more than one of them."""
    rng = np.random.default_rng(0)
    covered = {"clustered": 0, "as if independent": 0}
    for _ in range(300):
        of_cluster = rng.normal(0.0, 1.0, 12)
        values = (of_cluster[:, None] + 0.1 * rng.normal(size=(12, 20))).flatten()
        names = [i // 20 for i in range(len(values))]
        clustered = stats.clustered_mean(values, names)
        naive = stats.clustered_mean(values, range(len(values)))
        covered["clustered"] += clustered.low <= 0 <= clustered.high
        covered["as if independent"] += naive.low <= 0 <= naive.high
        assert clustered.n == 12
    assert covered["clustered"] / 300 > 0.9
    assert covered["as if independent"] / 300 < 0.5


def test_one_cluster_proves_nothing() -> None:
    found = stats.clustered_mean([1.0, 2.0], ["a", "a"])
    assert math.isinf(found.low) and math.isinf(found.high)
    with pytest.raises(ValueError):
        stats.clustered_mean([1.0], [])


def test_standing_in_words() -> None:
    words = [
        stats.standing(stats.Interval(value, low, high, 100), 0.1)
        for value, low, high in ((0.0, -0.05, 0.05), (-0.093, -0.199, -0.02), (-0.15, -0.3, 0.0))
    ]
    assert words == ["proven", "kept by value", "broken"]


def test_the_order_of_items_is_drawn_and_keeps_each_tasks_own() -> None:
    items = {"a": tuple(range(20)), "b": tuple(range(20))}
    first, again, other = (ItemSet(s, items, ()).in_order(2) for s in (1, 1, 2))  # type: ignore[arg-type]
    assert first == again != other
    assert first[:4] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    for key in items:
        assert [i for k, i in first if k == key] == list(range(20))


def test_the_wagers_interval_covers_and_does_not_collapse() -> None:
    rng = np.random.default_rng(11)
    missed = 0
    for _ in range(200):
        dense = rng.integers(0, 5, 40) / 4
        ours = np.where(rng.random(40) < 0.3, rng.integers(0, 5, 40) / 4, dense)  # the mean differs by 0
        found = wagered_difference(list(ours), list(dense))
        missed += not found.low <= 0 <= found.high
        assert found.low <= found.value <= found.high
    assert missed <= 10
    equal = wagered_difference([0.5] * 20, [0.5] * 20)
    assert -0.3 < equal.low < -0.05 and 0.05 < equal.high < 0.3
    many = wagered_difference([0.5] * 400, [0.5] * 400)
    assert -0.02 < many.low < 0 < many.high < 0.02
    worse = wagered_difference([0.25] * 40, [0.75] * 40)
    assert worse.high < -0.2
    with pytest.raises(ValueError, match="from 0 to 1"):
        wagered_difference([1.5], [0.5])
    with pytest.raises(ValueError, match="as many"):
        wagered_difference([1.0], [])

"""Gates, Pareto layers, ranking, comparison: properties on random archives."""

from __future__ import annotations

from itertools import pairwise

import moocore
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.results import Metric, StageResult
from search.campaign.archive import Archive, Verdict, check, pareto_layers, reference_point, score
from search.campaign.comparison import accuracy_difference, against_control, compare, speed_ratio
from search.campaign.front import Front, hypervolumes
from search.config import Gate, Objective
from search.log import events as ev
from search.log.state import CampaignState, Candidate
from search.log.store import Record

OBJECTIVE = Objective(gates=(Gate(metric="accuracy_delta", at_least=-0.1),), margin=0.1)
coordinate = st.integers(-20, 20).map(lambda n: n / 10)
points = st.lists(st.tuples(coordinate, coordinate), max_size=25)


def dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] >= b[0] and a[1] >= b[1] and a != b


@given(points)
def test_a_layer_is_dominated_by_the_one_before_and_by_none_of_its_own(found: list[tuple[float, float]]):
    layers = pareto_layers(found)
    for p, layer in zip(found, layers, strict=True):
        above = [q for q, other in zip(found, layers, strict=True) if other == layer - 1]
        peers = [q for q, other in zip(found, layers, strict=True) if other == layer]
        assert layer == 0 or any(dominates(q, p) for q in above)
        assert not any(dominates(q, p) for q in peers)


@given(points)
def test_a_front_that_grows_has_the_area_and_the_points_of_the_whole(found: list[tuple[float, float]]):
    reference = (-1.5, -1.0)
    front = Front(reference)
    for count, point in enumerate(found, 1):
        before = front.volume
        assert front.add(point) == pytest.approx(front.volume - before)
        inside = [p for p in found[:count] if p[0] > reference[0] and p[1] > reference[1]]
        want = moocore.hypervolume(-np.array(inside), ref=-np.array(reference)) if inside else 0.0
        assert front.volume == pytest.approx(want)
        assert front.points == sorted({p for p in inside if not any(dominates(q, p) for q in inside)})


def test_what_counts_for_nothing_adds_nothing_and_a_gate_of_zero_is_a_gate():
    assert hypervolumes([(1.0, 1.0), None, (2.0, 2.0)], (0.0, 0.0)) == [1.0, 1.0, 4.0]
    gated = Objective(gates=(Gate(metric="accuracy_delta", at_least=0.0),))
    assert reference_point(gated) == pytest.approx((0.0, 1.0), abs=1e-8)


@given(coordinate, st.floats(0, 1), st.floats(0, 1), coordinate)
def test_a_gate_is_proven_only_by_the_whole_interval(value: float, down: float, up: float, bound: float):
    metric = Metric(value, value - down, value + up)
    low, words = check(Gate(metric="m", at_least=bound), metric)
    high, _ = check(Gate(metric="m", at_most=bound), metric)
    assert (low is Verdict.FAILED) == (value < bound)
    assert (low is Verdict.PROVEN) == (value >= bound and value - down >= bound)
    assert (high is Verdict.PROVEN) == (value <= bound and value + up <= bound)
    assert "m" in words


def test_an_unmeasured_gate_is_broken():
    assert check(Gate(metric="m", at_least=0), None)[0] is Verdict.FAILED


def candidate(
    number: int,
    accuracy: float,
    speed: float,
    *,
    width: float = 0.05,
    reference: bool = False,
    items: list[float] | None = None,
    arm: str = "main",
    name: str = "",
) -> Candidate:
    result = StageResult(
        "accuracy",
        True,
        {
            "accuracy_delta": Metric(accuracy, accuracy - width, accuracy + width),
            "modelled_speedup_h200": Metric(speed, how="modelled"),
        },
        {"needle": items} if items else {},
    )
    return Candidate(
        number=number,
        key=f"k{number}",
        ir_hash=f"i{number}",
        name=name or f"n{number}",
        doc="",
        source="s",
        program="p",
        knobs={},
        reference=reference,
        proposal=None if reference else number,
        arm="library" if reference else arm,
        parents=(),
        idea="",
        proposer="x",
        admitted_at=0.0,
        results={"search": {"accuracy": result}},
        finished={"search": True},
        finished_at=float(number),
    )


def archive(candidates: list[Candidate], objective: Objective = OBJECTIVE) -> Archive:
    state = CampaignState()
    state.candidates = {c.key: c for c in candidates}
    return Archive(state, objective)


@given(st.lists(st.tuples(coordinate, coordinate, st.floats(0, 0.3)), min_size=1, max_size=20))
def test_ranking_is_total_and_gates_come_first(rows: list[tuple[float, float, float]]):
    found = archive([candidate(i + 1, a, s, width=w) for i, (a, s, w) in enumerate(rows)])
    entries = found.entries
    assert [e.rank for e in entries] == list(range(1, len(rows) + 1))
    assert [e.score.verdict for e in entries] == sorted(e.score.verdict for e in entries)
    for a, b in pairwise(entries):
        if a.score.verdict is b.score.verdict and a.score.verdict is not Verdict.FAILED:
            assert a.score.speed.value >= b.score.speed.value
    front = found.front()
    assert front
    for entry in front:
        assert not any(dominates(other.score.point, entry.score.point) for other in front)


@given(
    st.lists(st.tuples(coordinate, coordinate), min_size=1, max_size=12), st.randoms(use_true_random=False)
)
@settings(max_examples=50)
def test_the_order_of_finishing_does_not_change_the_ranking(rows, random):
    candidates = [candidate(i + 1, a, s) for i, (a, s) in enumerate(rows)]
    first = [e.candidate.key for e in archive(candidates).entries]
    random.shuffle(candidates)
    assert [e.candidate.key for e in archive(candidates).entries] == first


def test_fresh_measurements_lead_and_replace_those_of_the_search():
    lucky, steady = candidate(1, 0.0, 2.0), candidate(2, 0.0, 1.5)
    worse = StageResult("accuracy", True, {"accuracy_delta": Metric(-0.5, -0.6, -0.4)})
    lucky.results["fresh"], lucky.finished["fresh"] = {"accuracy": worse}, True
    again = StageResult("accuracy", True, {"accuracy_delta": Metric(0.0, -0.05, 0.05)})
    steady.results["fresh"], steady.finished["fresh"] = {"accuracy": again}, True
    unmeasured = candidate(3, 0.0, 1.9)
    entries = archive([lucky, steady, unmeasured]).entries
    assert [e.candidate.number for e in entries] == [2, 3, 1]
    assert entries[0].score.purpose == "fresh"
    assert entries[2].score.verdict is Verdict.FAILED
    assert score(lucky, OBJECTIVE, "search").point == (0.0, 2.0)  # type: ignore[union-attr]


def test_ranks_count_what_was_found():
    it = archive([candidate(1, 0.0, 9.0, reference=True), candidate(2, 0.0, 1.4), candidate(3, 0.0, 1.2)])
    assert [(e.candidate.number, e.rank) for e in it.entries] == [(1, None), (2, 1), (3, 2)]
    assert it.ranked(2) is it.entries[2]
    assert it.ranked(3) is None
    assert it.winner is None


def test_a_winner_that_broke_the_gates_on_sealed_items_is_shown_so():
    broken = candidate(1, 0.0, 2.0)
    result = StageResult("holdout", True, {"accuracy_delta": Metric(-0.3, -0.4, -0.2)})
    broken.results["holdout"] = {"holdout": result}
    broken.finished["holdout"] = True
    it = archive([broken, candidate(2, 0.0, 1.4)])
    assert [row["sealed"] for row in it.rows()] == ["failed", None]


def test_a_stopped_candidate_is_not_ranked():
    stopped = candidate(1, 0.0, 9.0)
    stopped.finished["search"] = False
    assert archive([stopped, candidate(2, 0.0, 1.0)]).entries[0].candidate.number == 2


def test_best_reference_leaves_dense_out():
    dense = candidate(1, 0.0, 9.0, reference=True, name="dense")
    quest = candidate(2, 0.0, 1.4, reference=True, name="quest")
    found = candidate(3, 0.0, 1.2)
    it = archive([dense, quest, found])
    assert it.best(reference=True).candidate is quest  # type: ignore[union-attr]
    assert it.best(reference=True, dense=True).candidate is dense  # type: ignore[union-attr]
    assert it.best(reference=False).candidate is found  # type: ignore[union-attr]
    assert it.best(reference=False, arms={"control"}) is None


GOOD, BAD = [1.0] * 200, [1.0] * 100 + [0.0] * 100


def test_faster_at_equal_accuracy_is_better_once_there_are_enough_items():
    many = compare(candidate(1, 0, 2.0, items=GOOD), candidate(2, 0, 1.5, items=GOOD), OBJECTIVE, "search")
    assert many is not None
    assert many.finding == "better"
    assert many.accuracy.low is not None
    assert -0.1 < many.accuracy.low < 0 < (many.accuracy.high or 0)
    few = compare(
        candidate(1, 0, 2.0, items=GOOD[:8]), candidate(2, 0, 1.5, items=GOOD[:8]), OBJECTIVE, "search"
    )
    assert few is not None
    assert few.finding == "inconclusive"
    assert "may beat" in few.words


@pytest.mark.parametrize(
    ("ours", "theirs", "finding"),
    [
        ((2.0, BAD), (1.5, GOOD), "not better"),
        ((1.0, GOOD), (1.5, GOOD), "not better"),
        ((1.5, GOOD), (1.5, GOOD), "not better"),
        ((1.5, GOOD), (1.5, BAD), "better"),
        ((1.4, GOOD), (1.5, BAD), "not better"),
    ],
)
def test_findings(ours: tuple[float, list[float]], theirs: tuple[float, list[float]], finding: str):
    found = compare(
        candidate(1, 0, ours[0], items=ours[1]),
        candidate(2, 0, theirs[0], items=theirs[1]),
        OBJECTIVE,
        "search",
    )
    assert found is not None
    assert found.finding == finding


def test_log_likelihoods_of_tokens_are_no_answers():
    pair = [candidate(1, 0, 2.0, items=GOOD[:8]), candidate(2, 0, 1.5, items=GOOD[:8])]
    for c, level in zip(pair, (-2.0, -3.0), strict=True):
        c.results["search"]["perplexity"] = StageResult(
            "perplexity", True, items={"perplexity": [level] * 50}
        )
    found = compare(*pair, OBJECTIVE, "search")
    assert found is not None
    assert (found.items, found.accuracy.value) == (8, 0.0)


def test_nothing_in_common_is_not_compared():
    assert compare(candidate(1, 0, 2.0), candidate(2, 0, 1.5, items=GOOD), OBJECTIVE, "search") is None


@pytest.mark.parametrize("gain", [0.0, 0.25])
def test_few_answers_with_equal_shares_settle_nothing(gain: float):
    few = accuracy_difference([0.5 + gain] * 6, [0.5] * 6)
    assert few.low is not None and few.low < -0.2, "no variance among six items says nothing of the seventh"
    many = accuracy_difference([0.5 + gain] * 600, [0.5] * 600)
    assert many.low is not None and many.low > gain - 0.03


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_accuracy_difference_is_antisymmetric(pairs: list[tuple[bool, bool]]):
    left, right = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    there, back = accuracy_difference(left, right), accuracy_difference(right, left)
    assert there.value == pytest.approx(-back.value)
    assert there.low == pytest.approx(-(back.high or 0.0), abs=1e-6)
    assert (there.low or 0) <= there.value <= (there.high or 0)


def test_speed_ratio_combines_intervals_on_the_wide_side():
    ratio = speed_ratio(Metric(2.0, 1.8, 2.2), Metric(1.0, 0.9, 1.1))
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2.0, 1.8 / 1.1, 2.2 / 0.9))
    assert speed_ratio(Metric(2.0), Metric(1.0, 0.9, 1.1)).low is None


def test_control_is_compared_after_equally_many_evaluations():
    state = CampaignState()
    candidates = [candidate(i, 0.0, 1.0 + i / 10) for i in range(1, 9)]
    candidates += [candidate(i, 0.0, 1.5, arm="random") for i in (20, 21)]
    state.candidates = {c.key: c for c in candidates}
    found = against_control(state, OBJECTIVE, {"main"}, {"random"})
    assert found["evaluations"] == 2
    assert found["main"] < found["control"]
    assert "behind" in found["words"]
    assert against_control(state, OBJECTIVE, {"main"}, set())["evaluations"] == 0


def test_time_and_money_add_up_over_sessions():
    times = iter([0.0, 1.0, 11.0, 100.0, 105.0])
    log: list[ev.Event] = [
        ev.CampaignStarted("r", {}, {}, {}, {}),
        ev.SessionStarted(1, {}),
        ev.Asked(1, "a", "seed", (), 0, "p"),
        ev.SessionStarted(2, {}),
        ev.Proposed(1, "s", "", "p", 2.0, dollars=None, calls=1),
    ]
    state = CampaignState.fold(Record(i + 1, next(times), e) for i, e in enumerate(log))
    assert state.active_seconds == pytest.approx(16.0)
    assert state.spending["p"].unpriced == 1
    assert state.dollars == 0
    assert state.sessions == 2

"""`vortex-search compare`: two runs side by side, their best paired on the items that both were asked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from evaluators.results import Metric
from search.campaign.archive import Archive, Entry
from search.campaign.comparison import accuracy_difference, common_items, speed_ratio
from search.config import CampaignConfig
from search.log.events import Purpose
from search.log.run import Run
from search.log.state import CampaignState
from search.machine import device_words
from search.tables import metric

Opened = tuple[Run, CampaignState, CampaignConfig]
_PURPOSES: tuple[Purpose, ...] = ("holdout", "fresh", "search")


@dataclass(frozen=True)
class Side:
    """One run, as far as it is compared."""

    run: str
    model: str
    devices: str
    best: str | None
    candidates: int
    seconds: float
    dollars: float
    hypervolume: float
    speed: Metric | None
    accuracy: Metric | None


@dataclass(frozen=True)
class Pair:
    """The best of one against the best of the other on the same items.

    Attributes:
        accuracy: mean difference, first minus second, with its 95% interval.
        p_value: McNemar's exact test for 0/1 answers, Wilcoxon's signed ranks otherwise.
        speed: ratio of the speed metrics, first over second.
    """

    purpose: str
    items: int
    accuracy: Metric
    p_value: float
    test: str
    speed: Metric | None


@dataclass(frozen=True)
class RunComparison:
    """Two runs; `pair` is None where nothing may be paired, and `words` say why."""

    first: Side
    second: Side
    evaluations: int
    pair: Pair | None
    words: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def rows(self) -> list[tuple[str, str, str]]:
        """A table for people: what, first, second."""
        a, b = self.first, self.second
        return [
            ("", a.run, b.run),
            ("model", a.model, b.model),
            ("measured on", a.devices, b.devices),
            ("best", a.best or "none", b.best or "none"),
            ("accuracy", metric(a.accuracy, 2), metric(b.accuracy, 2)),
            ("speed", metric(a.speed, 2), metric(b.speed, 2)),
            ("candidates", str(a.candidates), str(b.candidates)),
            (f"volume after {self.evaluations}", f"{a.hypervolume:.4f}", f"{b.hypervolume:.4f}"),
            ("seconds of work", f"{a.seconds:.0f}", f"{b.seconds:.0f}"),
            ("dollars", f"{a.dollars:.4f}", f"{b.dollars:.4f}"),
        ]


def compare_runs(first: Opened, second: Opened) -> RunComparison:
    """Compare two runs."""
    archives = [Archive(state, config.objective) for _, state, config in (first, second)]
    best = [archive.winner or archive.ranked(1) for archive in archives]
    volumes = [archive.hypervolume_by_evaluation() for archive in archives]
    evaluations = min(map(len, volumes))
    sides = [
        _side(opened, entry, volume[evaluations - 1] if evaluations else 0.0)
        for opened, entry, volume in zip((first, second), best, volumes, strict=True)
    ]
    words: list[str] = []
    pair = None
    if (why := _unlike(first, second)) is not None:
        words.append(f"Not paired: {why}. Their numbers answer different questions.")
    elif best[0] is None or best[1] is None:
        words.append("Not paired: a run without a ranked program has nothing to pair.")
    else:
        pair = _pair(best[0], best[1], same_speed=first[2].objective.speed == second[2].objective.speed)
        words.append(
            _say(pair, best[0], best[1]) if pair else "Not paired: the two answered no item in common."
        )
    words.append(
        "Volume: hypervolume above dense of what keeps the gates after equally many evaluations; one number a run, "
        "without an interval."
    )
    return RunComparison(sides[0], sides[1], evaluations, pair, tuple(words))


def _side(opened: Opened, entry: Entry | None, volume: float) -> Side:
    run, state, config = opened
    return Side(
        run.name,
        config.model,
        device_words(state.devices) or "not recorded",
        f"{entry.candidate.label} {entry.candidate.name}" if entry else None,
        len(state.found),
        state.active_seconds,
        state.dollars,
        volume,
        entry.score.speed if entry else None,
        entry.score.accuracy if entry else None,
    )


def _unlike(first: Opened, second: Opened) -> str | None:
    """Why the items of two runs are not the same, or None."""
    (_, a, config_a), (_, b, config_b) = first, second
    assert a.started is not None
    assert b.started is not None
    models = [(c.accuracy_model or c.model) for c in (config_a, config_b)]
    if models[0] != models[1]:
        return f"answers are of {models[0]} and of {models[1]}"
    if a.started.plan.get("accuracy") != b.started.plan.get("accuracy"):
        return "their evaluation plans ask other items"
    return None


def _pair(ours: Entry, theirs: Entry, *, same_speed: bool) -> Pair | None:
    from evaluators import stats

    one, other = ours.candidate, theirs.candidate
    for purpose in _PURPOSES:
        if one.seeds.get(purpose) is None or one.seeds.get(purpose) != other.seeds.get(purpose):
            continue  # another seed draws other items
        left, right = common_items(one, other, purpose)
        if not left:
            continue
        binary = set(left) | set(right) <= {0.0, 1.0}
        p_value = stats.mcnemar_exact(left, right).p_value if binary else stats.wilcoxon(left, right)
        speed = speed_ratio(ours.score.speed, theirs.score.speed) if same_speed else None
        name = "McNemar" if binary else "Wilcoxon"
        return Pair(purpose, len(left), accuracy_difference(left, right), p_value, name, speed)
    return None


def _say(pair: Pair, ours: Entry, theirs: Entry) -> str:
    assert pair.accuracy.low is not None
    assert pair.accuracy.high is not None
    told = (
        "more accurate"
        if pair.accuracy.low > 0
        else "less accurate"
        if pair.accuracy.high < 0
        else "not told apart"
    )
    speed = f"; speed ratio {metric(pair.speed)}" if pair.speed else ""
    return (
        f"{ours.candidate.label} against {theirs.candidate.label} on {pair.items} {pair.purpose} items of both: "
        f"accuracy difference {metric(pair.accuracy)}, {pair.test} p = {pair.p_value:.3f}: {told}{speed}."
    )

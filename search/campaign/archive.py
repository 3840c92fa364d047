"""The archive: what the results of a campaign amount to. Gates first, then a Pareto front; never one score.

Both axes are raised: accuracy (paired difference to dense) and speed (ratio to dense). Rankings use a
candidate's fresh-seed measurement where it has one, because the search itself selected on the first.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from evaluators.results import Metric
from search.campaign.front import hypervolumes
from search.config import Gate, Objective
from search.log.events import Purpose
from search.log.state import CampaignState, Candidate


class Verdict(IntEnum):
    """How the gates came out; lower is better."""

    PROVEN = 0
    """Every gate is kept by the whole interval."""
    UNCLEAR = 1
    """Every gate is kept by the value, some not by the interval."""
    FAILED = 2
    """Some gate is broken, or was not measured."""


@dataclass(frozen=True)
class Score:
    """A candidate under an objective.

    Attributes:
        accuracy: metric of quality; higher is better.
        speed: metric of speed; higher is better.
        verdict: of the gates.
        broken: the gates that are not proven, in words.
        purpose: which measurement the accuracy comes from.
    """

    accuracy: Metric
    speed: Metric
    verdict: Verdict
    broken: tuple[str, ...]
    purpose: Purpose

    @property
    def point(self) -> tuple[float, float]:
        """(accuracy, speed)."""
        return self.accuracy.value, self.speed.value


@dataclass(frozen=True)
class Entry:
    """A ranked candidate.

    Attributes:
        rank: from 1 among what was found; None for a reference, which stands between them and is nobody's find.
        front: Pareto layer from 0 within its verdict.
    """

    candidate: Candidate
    score: Score
    rank: int | None
    front: int


def check(gate: Gate, metric: Metric | None) -> tuple[Verdict, str]:
    """Whether a metric keeps a gate, and the finding in words."""
    if metric is None:
        return Verdict.FAILED, f"{gate.metric} was not measured"
    if gate.at_least is not None:
        bound, worst = gate.at_least, metric.value if metric.low is None else metric.low
        kept, proven, sign = metric.value >= bound, worst >= bound, ">="
    else:
        assert gate.at_most is not None
        bound, worst = gate.at_most, metric.value if metric.high is None else metric.high
        kept, proven, sign = metric.value <= bound, worst <= bound, "<="
    verdict = Verdict.PROVEN if proven else Verdict.UNCLEAR if kept else Verdict.FAILED
    return verdict, f"{gate.metric} {metric.value:.4g} (to {worst:.4g}), wanted {sign} {bound:g}"


def score(candidate: Candidate, objective: Objective, purpose: Purpose | None = None) -> Score | None:
    """A candidate's score, or None while it lacks a metric of the objective.

    Args:
        purpose: which measurement to use; by default fresh seeds where they were run, else the search's.
    """
    metrics = {} if purpose in ("screen", "full_screen") else dict(candidate.metrics("search"))
    used: Purpose = "search"
    if purpose is None:
        purpose = "fresh" if candidate.status("fresh") != "waiting" else "search"
    if purpose == "full_screen":
        metrics.update(candidate.metrics("screen"))
    if purpose != "search":
        again = candidate.metrics(purpose)
        if not again:
            return None
        metrics.update(again)
        used = purpose
    accuracy, speed = metrics.get(objective.accuracy), metrics.get(objective.speed)
    if accuracy is None or speed is None:
        return None
    checks = [check(gate, metrics.get(gate.metric)) for gate in objective.gates]
    verdict = max((v for v, _ in checks), default=Verdict.PROVEN)
    broken = tuple(words for v, words in checks if v is not Verdict.PROVEN)
    return Score(accuracy, speed, verdict, broken, used)


def sealed_verdict(candidate: Candidate, objective: Objective) -> Verdict | None:
    """How the gates came out on the sealed items; None where the candidate did not meet them."""
    if candidate.status("holdout") == "waiting":
        return None
    found = score(candidate, objective, "holdout")
    return Verdict.FAILED if found is None else found.verdict


def pareto_layers(points: Sequence[tuple[float, float]]) -> list[int]:
    """Layer of each point when both coordinates are raised: 0 is the front, 1 the front without it, ..."""
    if not points:
        return []
    import moocore
    import numpy as np

    return [int(layer) for layer in moocore.pareto_rank(-np.asarray(points, dtype=float))]


def worth(candidate: Candidate, objective: Objective) -> tuple[float, float] | None:
    """The point that a candidate adds to a front of what keeps the gates, on the search's items; None if none."""
    found = score(candidate, objective, "search") if candidate.status() == "passed" else None
    return None if found is None or found.verdict is Verdict.FAILED else found.point


def reference_point(objective: Objective) -> tuple[float, float]:
    """Below it nothing is worth anything: (worst accuracy gate or -1, speed 1), what dense does."""
    bounds = [g.at_least for g in objective.gates if g.metric == objective.accuracy]
    bound = next((b for b in bounds if b is not None), -1.0)
    return bound - 1e-9, 1.0


class Archive:
    """Ranked view of a state. Cheap to build; build a new one when the state has changed."""

    def __init__(self, state: CampaignState, objective: Objective) -> None:
        self.state = state
        self.objective = objective
        scored = [(c, s) for c in state.candidates.values() if (s := self._score(c)) is not None]
        layers: dict[str, int] = {}
        for verdict in Verdict:
            group = [(c, s) for c, s in scored if s.verdict is verdict]
            ranks = pareto_layers([s.point for _, s in group])
            layers.update({c.key: layer for (c, _), layer in zip(group, ranks, strict=True)})
        # Among those that keep the gates the fastest leads; among the others the least wrong does.
        scored.sort(key=lambda pair: order(*pair))
        numbers = itertools.count(1)
        self.entries = [Entry(c, s, None if c.reference else next(numbers), layers[c.key]) for c, s in scored]

    def _score(self, candidate: Candidate) -> Score | None:
        # A candidate that a stage stopped has no full set of measurements to be ranked by.
        if candidate.status() != "passed":
            return None
        return score(candidate, self.objective)

    def ranked(self, rank: int) -> Entry | None:
        """The found program of a rank, or None if there are fewer."""
        return next((e for e in self.entries if e.rank == rank), None)

    @property
    def winner(self) -> Entry | None:
        """What the finals chose, if they are over and chose something."""
        key = self.state.finished.winner if self.state.finished else None
        return next((e for e in self.entries if e.candidate.key == key), None)

    def front(self) -> list[Entry]:
        """The Pareto front of the best verdict present."""
        best = min((e.score.verdict for e in self.entries), default=Verdict.FAILED)
        return [e for e in self.entries if e.front == 0 and e.score.verdict is best]

    def best(self, *, reference: bool, arms: set[str] | None = None, dense: bool = False) -> Entry | None:
        """The leading entry among references or among found candidates (of some arms), gates kept by value.

        Args:
            dense: whether a reference that selects everything counts.
        """
        for entry in self.entries:
            c = entry.candidate
            if c.reference is not reference or entry.score.verdict is Verdict.FAILED:
                continue
            if arms is not None and c.arm not in arms:
                continue
            if reference and not dense and c.is_dense:
                continue
            return entry
        return None

    @property
    def stopped_references(self) -> list[Candidate]:
        """Library flows that a stage or a failure stopped: they belong beside the ranking, or it would flatter."""
        return [c for c in self.state.candidates.values() if c.reference and c.ended]

    def rows(self) -> list[dict[str, Any]]:
        """The leaderboard as plain values, best first; stopped references last, without rank."""
        return [row(entry, self.objective) for entry in self.entries] + [
            stopped_row(c) for c in self.stopped_references
        ]

    def hypervolume_by_evaluation(self, arms: set[str] | None = None) -> list[float]:
        """Hypervolume of what keeps the gates, after each finished found candidate, in order of finishing."""
        done = [c for c in self.state.found if c.finished_at is not None and (arms is None or c.arm in arms)]
        done.sort(key=lambda c: (c.finished_at or 0.0, c.number))
        return hypervolumes((worth(c, self.objective) for c in done), reference_point(self.objective))


def order(candidate: Candidate, found: Score) -> tuple[bool, bool, int, float, float, int]:
    """Kept gates first, then what was measured on fresh items: only that is free of selection."""
    accuracy, speed = found.point
    broken = found.verdict is Verdict.FAILED
    first, second = (-accuracy, -speed) if broken else (-speed, -accuracy)
    return broken, found.purpose != "fresh", int(found.verdict), first, second, candidate.number


def row(entry: Entry, objective: Objective) -> dict[str, Any]:
    """One line of the leaderboard as plain values."""
    c, s = entry.candidate, entry.score
    sealed = sealed_verdict(c, objective)
    return {
        "rank": entry.rank,
        "id": c.label,
        "name": c.name,
        "key": c.key,
        "ir_hash": c.ir_hash,
        "reference": c.reference,
        "arm": c.arm,
        "verdict": s.verdict.name.lower(),
        "sealed": None if sealed is None else sealed.name.lower(),
        "front": entry.front,
        "accuracy": s.accuracy.to_json(),
        "speed": s.speed.to_json(),
        "measured_on": s.purpose,
        "devices": sorted(c.devices),
        "gates": list(s.broken),
        "metrics": {name: m.to_json() for name, m in {**c.metrics("search"), **c.metrics(s.purpose)}.items()},
        "knobs": c.knobs,
        "parents": list(c.parents),
    }


def stopped_row(candidate: Candidate) -> dict[str, Any]:
    """The line of a reference that a stage stopped, or a failure that was not its own."""
    result, given_up = candidate.failure, candidate.abandoned.get("search")
    errors = [result.failure.error] if result is not None and result.failure is not None else []
    errors += [] if given_up is None else [given_up.error]
    return {
        "rank": None,
        "id": candidate.label,
        "name": candidate.name,
        "key": candidate.key,
        "ir_hash": candidate.ir_hash,
        "reference": True,
        "arm": candidate.arm,
        "verdict": candidate.ended,
        "gates": [str(error.get("message")) for error in errors],
        "metrics": {name: m.to_json() for name, m in candidate.metrics().items()},
        "knobs": candidate.knobs,
        "parents": [],
    }

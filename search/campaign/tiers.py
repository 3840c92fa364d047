"""Tiers and ties: which ranked programs cannot be told apart.

A rank is a number with no error bar. Two programs tie where the intervals of both their axes overlap; a tier is a run
of the ranking whose members tie with its first. Modelled speeds have no interval: they tie within one per cent.
"""

from __future__ import annotations

from collections.abc import Iterable

from evaluators.results import Metric
from search.campaign.archive import Entry

_ROUNDING = 0.01  # of a number without an interval


def tie(one: Entry, other: Entry) -> bool:
    """Whether neither accuracy nor speed tells two entries of the same verdict apart."""
    a, b = one.score, other.score
    if a.verdict is not b.verdict or a.purpose != b.purpose:
        return False
    return _overlap(a.accuracy, b.accuracy) and _overlap(a.speed, b.speed)


def tiers(entries: Iterable[Entry]) -> dict[str, int]:
    """The tier of every candidate of a ranking, or of its first ones, by key, from 1."""
    found: dict[str, int] = {}
    first: Entry | None = None
    number = 0
    for entry in entries:
        if first is None or not tie(first, entry):
            first, number = entry, number + 1
        found[entry.candidate.key] = number
    return found


def _overlap(a: Metric, b: Metric) -> bool:
    (low, high), (least, most) = _bounds(a), _bounds(b)
    return low <= most and least <= high


def _bounds(metric: Metric) -> tuple[float, float]:
    if metric.low is None or metric.high is None:
        slack = abs(metric.value) * _ROUNDING / 2
        return metric.value - slack, metric.value + slack
    return metric.low, metric.high

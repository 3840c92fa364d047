"""A Pareto front of two raised coordinates that grows point by point, with the area it dominates."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable


class Front:
    """The non-dominated points so far and their hypervolume above a reference point.

    A new point costs one search in the sorted front and the removal of what it dominates: O(log n) and, over
    the life of a front, O(1) removals a point.

    Args:
        reference: points that do not exceed it in both coordinates are worth nothing.
    """

    def __init__(self, reference: tuple[float, float]) -> None:
        self.reference = reference
        self.volume = 0.0
        self._x: list[float] = []  # rising
        self._y: list[float] = []  # falling: a point with more of x has less of y

    def __len__(self) -> int:
        return len(self._x)

    @property
    def points(self) -> list[tuple[float, float]]:
        """The front, first coordinate rising."""
        return list(zip(self._x, self._y, strict=True))

    def add(self, point: tuple[float, float]) -> float:
        """Take a point in; returns the area it added, 0 for one that is dominated."""
        (x, y), (x0, y0) = point, self.reference
        if x <= x0 or y <= y0:
            return 0.0
        place = bisect_left(self._x, x)  # everything from here on has at least this much of x
        if place < len(self._x) and self._y[place] >= y:
            return 0.0
        end = place + (place < len(self._x) and self._x[place] == x)
        begin = place
        while begin > 0 and self._y[begin - 1] <= y:
            begin -= 1
        # The dominated region grows by what lies between the old staircase and the new point's corner.
        gain, left = 0.0, self._x[begin - 1] if begin else x0
        for at in range(begin, end):
            gain += (min(self._x[at], x) - left) * (y - self._y[at])
            left = self._x[at]
        if left < x:
            below = self._y[end] if end < len(self._y) else y0
            gain += (x - left) * (y - below)
        self._x[begin:end] = [x]
        self._y[begin:end] = [y]
        self.volume += gain
        return gain


def hypervolumes(points: Iterable[tuple[float, float] | None], reference: tuple[float, float]) -> list[float]:
    """The hypervolume after each point; None stands for one that counts for nothing."""
    front = Front(reference)
    volumes = []
    for point in points:
        if point is not None:
            front.add(point)
        volumes.append(front.volume)
    return volumes

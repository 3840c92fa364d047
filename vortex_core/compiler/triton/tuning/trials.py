"""Choosing a configuration by measurement: right first, then clearly faster, twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

MARGIN = 0.02  # what a candidate must win by; medians of one launch repeat within about 1% on an H100
REPEATS = 2
FINALISTS = 3

C = TypeVar("C")


@dataclass(frozen=True)
class Trial(Generic[C]):
    """One configuration that was tried, and what became of it.

    Attributes:
        us: median microseconds; None where it was not measured.
        outcome: `default`, `kept`, `slower`, `not clearly faster`, `slower than the kept one`, `no time left`,
            `rejected: why`, or of a whole step `not faster as a whole`.
    """

    part: str
    config: C
    us: float | None
    outcome: str


@dataclass(frozen=True)
class Choice(Generic[C]):
    """`config` is the default unless a candidate beat it; `gain`: default over kept time, the least measured."""

    config: C
    gain: float
    trials: tuple[Trial[C], ...]


def choose(
    part: str,
    default: C,
    candidates: Sequence[C],
    *,
    check: Callable[[C], str],
    measure: Callable[[C], float],
    time_left: Callable[[], bool],
    report: Callable[[Trial[C]], None],
) -> Choice[C]:
    """Try candidates in order while there is time; keep the default unless one is faster by the margin every time.

    A first measurement picks the finalists; each is then measured beside the default again, twice, because the
    fastest of many noisy times is faster than it really is.

    Args:
        check: empty if a candidate computes what the default does, else why not.
        measure: microseconds.
        report: called with every trial as it ends.
    """
    trials: list[Trial[C]] = []

    def note(config: C, us: float | None, outcome: str) -> None:
        trials.append(Trial(part, config, us, outcome))
        report(trials[-1])

    base = measure(default)
    note(default, base, "default")
    faster: list[tuple[float, C]] = []
    for candidate in candidates:
        if not time_left():
            note(candidate, None, "no time left")
            continue
        wrong = check(candidate)
        if wrong:
            note(candidate, None, f"rejected: {wrong}")
            continue
        us = measure(candidate)
        if us * (1 + MARGIN) < base:
            faster.append((us, candidate))
        else:
            note(candidate, us, "slower" if us > base else "not clearly faster")
    faster.sort(key=lambda pair: pair[0])
    kept, gain = default, 1.0
    for place, (us, candidate) in enumerate(faster):
        if kept is not default or place >= FINALISTS:
            note(candidate, us, "slower than the kept one" if kept is not default else "not clearly faster")
            continue
        least = min(measure(default) / measure(candidate) for _ in range(REPEATS))
        if least > 1 + MARGIN:
            kept, gain = candidate, least
        note(candidate, us, "kept" if kept is candidate else "not clearly faster")
    return Choice(kept, gain, tuple(trials))

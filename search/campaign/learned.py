"""What a screened campaign has learned of its own screen: which screened accuracy keeps the gates, and how fast a
program is whose speed is only modelled.

The screen ranks by recorded attention and by bytes. What is measured says where both err: answers saturate far below
the best mass, and kernels of some sorts of program take longer than their bytes. Both are learned from what this run
measured, references among it, and who goes on is who is expected to improve most on the best that keeps the gates
(expected improvement, Jones, Schonlau and Welch, 1998).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evaluators.stages.registry import STAGES
from search.campaign.archive import Verdict, score
from search.config import Objective, Screen
from search.log.state import Candidate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LEAST = 4
"""Measured speeds below which nothing is corrected and nobody goes on by what was learned."""
_MOST = 384
"""Measured programs learned from: the latest."""
_RUN, _FAMILY, _CELL, _PROGRAM, _NEAR = 0.1, 0.3, 0.15, 0.12, 0.2
"""Prior standard deviations of a log ratio: of all together, of a family, of a cell, of a program, of what is near."""
_SCALES = (0.5, 1.0, 2.0)
"""By which these are multiplied: what explains best what was measured."""
_NOISE = 0.03
_LAPSE = 0.04
"""Share of programs whose answers have nothing to do with the screen."""


@dataclass(frozen=True)
class Sort:
    """What of a screened program may say how fast it is and whether it keeps its answers.

    Attributes:
        key: of the candidate.
        program: its IR hash: others differ in knobs alone.
        family: see `search.campaign.cells`.
        cell: likewise.
        accuracy: as screened.
        speed: as modelled, a ratio to dense.
        place: log2 of state bytes, density, page size and operations, scaled so that 1 is far.
    """

    key: str
    program: str
    family: str
    cell: str
    accuracy: float
    speed: float
    place: tuple[float, ...]


def _log2(value: float, floor: float) -> float:
    return math.log2(max(value, floor))


class Learned:
    """Learns from what is measured. What it says depends on the order of `heard` and `went` alone.

    Args:
        screen: whose numbers are corrected.
        objective: of the campaign; its speed is what is measured.
    """

    def __init__(self, screen: Screen, objective: Objective) -> None:
        self._objective = objective
        self._searched = screen.objective(objective)
        self.corrects = self._searched.speed != objective.speed
        """Whether speed is measured at all: where the objective's own is the screen's, nothing is to be learned."""
        self._measured: dict[str, tuple[Sort, float]] = {}  # key -> log(measured / modelled)
        self._speeds: dict[str, float] = {}
        self._kept: list[tuple[float, bool]] = []  # screened accuracy, whether the gates were kept
        self._broken: Counter[str] = Counter()  # by program: gates broken
        self._asked: Counter[str] = Counter()  # by family: of these it is known whether they ran
        self._ran: Counter[str] = Counter()
        self._under_way: dict[str, Sort] = {}
        self._best: float | None = None
        self._fit: _Ratio | None = None
        self._told = 0

    # -- what is learned ---------------------------------------------------------------------------------

    def sort(self, candidate: Candidate) -> Sort | None:
        """A candidate as it is learned from; None where it was not screened."""
        metrics = candidate.metrics("screen")
        accuracy, speed = metrics.get(self._searched.accuracy), metrics.get(self._searched.speed)
        if accuracy is None or speed is None or candidate.status("screen") != "passed" or speed.value <= 0:
            return None
        share, density = metrics.get("state_share"), metrics.get("density")
        page = candidate.knobs.get("page_size")
        place = (
            _log2(0.0 if share is None else share.value, 1e-3) / 3,
            _log2(1.0 if density is None else density.value, 1e-3) / 3,
            _log2(page if isinstance(page, int) else 16, 1) / 2,
            _log2(candidate.size, 1) / 2,
        )
        family = candidate.cell.partition("/")[0]
        return Sort(
            candidate.key, candidate.ir_hash, family, candidate.cell, accuracy.value, speed.value, place
        )

    def went(self, candidate: Candidate) -> None:
        """It is on its way to be measured: another of its sort promises to teach less."""
        found = self.sort(candidate) if self.corrects else None
        if found is not None and candidate.key not in self._measured:
            self._under_way[candidate.key] = found
            self._fit = None

    def heard(self, candidate: Candidate) -> bool:
        """A candidate is done with the search's stages; returns whether what is said of speeds has changed enough for
        all to be told anew: each time as much again was measured."""
        self._under_way.pop(candidate.key, None)
        found = self.sort(candidate) if self.corrects else None
        if found is None or candidate.is_dense:
            return False
        self._fit = None
        passed = candidate.status("search") == "passed"
        stopped = next((r.stage for r in candidate.stages("search") if not r.passed), None)
        judged = score(candidate, self._objective, "search") if passed else None
        kept = judged is not None and judged.verdict is not Verdict.FAILED
        if passed or (stopped is not None and STAGES.get(stopped).needs == "engine"):
            self._kept.append((found.accuracy, kept))
            self._broken[found.program] += not kept
        speed = candidate.metrics("search").get(self._objective.speed)
        self._asked[found.family] += 1
        if speed is None or speed.value <= 0:
            return False
        self._ran[found.family] += 1
        self._measured[found.key] = found, math.log(speed.value / found.speed)
        self._speeds[found.key] = speed.value
        if len(self._measured) > _MOST:
            del self._measured[next(iter(self._measured))]
        if kept:
            self._best = max(self._best or 0.0, speed.value)
        if len(self._speeds) >= max(LEAST, 2 * self._told):
            self._told = len(self._speeds)
            return True
        return False

    # -- what it says ------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether enough was measured."""
        return len(self._measured) >= LEAST

    def speeds(self, candidates: Sequence[Candidate]) -> dict[str, float]:
        """Speeds by key: as measured, else as modelled times what such programs were measured to be. Who is not among
        them is known no better than the screen says."""
        if not self.ready:
            return {}
        known = {c.key: self._speeds[c.key] for c in candidates if c.key in self._speeds}
        sorts = [s for c in candidates if c.key not in known and (s := self.sort(c)) is not None]
        if sorts:
            ratios, _ = self._ratio().of(sorts)
            known |= {s.key: s.speed * math.exp(float(r)) for s, r in zip(sorts, ratios, strict=True)}
        return known

    def promise(self, waiting: Sequence[Sort]) -> list[float]:
        """By program, what measuring it is expected to bring: the chance that it runs and keeps the gates times the
        expected gain in log speed over the best that does; while none does, that chance first and then the speed."""
        import numpy as np

        if not waiting:
            return []
        ratio, deviation = self._ratio().of(waiting)
        speed = np.log([s.speed for s in waiting]) + ratio
        runs = np.array([(self._ran[s.family] + 2.0) / (self._asked[s.family] + 2.5) for s in waiting])
        keeps = np.array([0.5 ** self._broken[s.program] for s in waiting])
        chance = runs * keeps * self._keeps(np.array([s.accuracy for s in waiting]))
        if self._best is None:
            return [float(x) for x in np.round(chance, 1) + 0.01 * np.tanh(speed)]
        z = (speed - math.log(self._best)) / deviation
        density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        below = 0.5 * (1 + np.array([math.erf(x / math.sqrt(2)) for x in z]))
        return [float(x) for x in chance * deviation * (z * below + density)]

    def _keeps(self, accuracy: Floats) -> Floats:
        """The chance that a screened accuracy keeps the gates: logistic in it and rising, averaged over where it rises
        and how steeply by how well each explains what was measured. Before that it is even at the screen's gate."""
        import numpy as np

        gates = self._searched.gates
        bound = next((g.at_least for g in gates if g.metric == self._searched.accuracy), None)
        low = bound if bound is not None else min([float(accuracy.min()), *(x for x, _ in self._kept)])
        width = max(1e-3, 1.0 - low)
        middle = np.linspace(low - width, 1.0, 41)[:, None, None]
        steep = width * np.array([0.03, 0.1, 0.3])[None, :, None]

        def curve(x: Floats) -> Floats:
            rising = 1 / (1 + np.exp(-np.clip((x - middle) / steep, -30, 30)))
            kept: Floats = _LAPSE / 2 + (1 - _LAPSE) * rising
            return kept

        weight = np.ones((41, 3))
        if self._kept:
            seen = curve(np.array([x for x, _ in self._kept]))
            kept = np.array([k for _, k in self._kept])
            logs = np.log(np.where(kept, seen, 1 - seen)).sum(-1)
            weight = np.exp(logs - logs.max())
        found: Floats = (weight[..., None] * curve(accuracy)).sum((0, 1)) / weight.sum()
        return found

    def _ratio(self) -> _Ratio:
        if self._fit is None:
            self._fit = _Ratio(list(self._measured.values()), list(self._under_way.values()))
        return self._fit


class _Ratio:
    """Measured over modelled speed, in logarithms: the run's mean, and what a family, a cell, a program and programs of
    like size differ from it, each shrunk to nothing as far as little was measured (a Gaussian process).

    Args:
        measured: programs with their log ratios.
        under_way: programs whose ratios will be known.
    """

    def __init__(self, measured: list[tuple[Sort, float]], under_way: list[Sort]) -> None:
        import numpy as np

        self._seen = [s for s, _ in measured]
        self._all = [*self._seen, *under_way]
        ratios = np.array([ratio for _, ratio in measured])
        self._mean = float(ratios.sum() / (len(ratios) + 0.5)) if len(ratios) else 0.0
        self._scale = 1.0
        self._solved: Floats = np.zeros(0)
        if measured:
            away, kernel, best = ratios - self._mean, self._kernel(self._seen, self._seen), -math.inf
            for scale in _SCALES:
                whole = scale**2 * kernel + _NOISE**2 * np.eye(len(away))
                solved = np.asarray(np.linalg.solve(whole, away), dtype=np.float64)
                fit = -0.5 * float(away @ solved) - 0.5 * float(np.linalg.slogdet(whole)[1])
                if fit > best:
                    best, self._scale, self._solved = fit, scale, solved
        whole = self._scale**2 * self._kernel(self._all, self._all) + _NOISE**2 * np.eye(len(self._all))
        self._inverse = np.linalg.inv(whole)

    def of(self, programs: Sequence[Sort]) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the log ratio of each."""
        import numpy as np

        cross = self._scale**2 * self._kernel(programs, self._all)
        mean = self._mean + cross[:, : len(self._seen)] @ self._solved
        prior = self._scale**2 * sum(x * x for x in (_RUN, _FAMILY, _CELL, _PROGRAM, _NEAR))
        left = prior - np.einsum("ij,jk,ik->i", cross, self._inverse, cross, optimize=True)
        return mean, np.sqrt(np.maximum(left, 0.0) + _NOISE**2)

    @staticmethod
    def _kernel(first: Sequence[Sort], second: Sequence[Sort]) -> Floats:
        import numpy as np

        def same(name: str) -> NDArray[np.bool_]:
            a, b = (np.array([getattr(s, name) for s in them], dtype=object) for them in (first, second))
            equal: NDArray[np.bool_] = a[:, None] == b[None]
            return equal

        a, b = (np.array([s.place for s in them], dtype=float).reshape(-1, 4) for them in (first, second))
        apart = ((a[:, None] - b[None]) ** 2).sum(-1)
        found: Floats = (
            _RUN**2
            + _FAMILY**2 * same("family")
            + _CELL**2 * same("cell")
            + _PROGRAM**2 * same("program")
            + _NEAR**2 * np.exp(-0.5 * apart)
        )
        return found

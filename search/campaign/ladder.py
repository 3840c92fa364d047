"""Who goes on to the dearer measurement: successive halving without rounds.

Rounds would wait for their slowest program. Here a program goes on as soon as enough others have been measured, so that
no worker waits (Li et al., 1810.05934, do so by one score). Where speed is modelled and no more, the best by Pareto
rank goes on; where it is measured, who promises most by what this run has measured (`search.campaign.learned`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from evaluators.stages.registry import STAGES
from search.campaign.archive import Score, Verdict, pareto_layers, score
from search.campaign.learned import Learned, Sort
from search.config import Objective, Screen
from search.log.events import Purpose
from search.log.state import Candidate

_KEPT = 512
"""Programs that wait at a rung: the worst of more have no prospects, and ranking must not grow with the run."""

_EXPLORE = 4
"""One in so many goes on by Pareto rank though others promise more: what was learned may be wrong of a whole sort."""


@dataclass(frozen=True)
class _Waiting:
    key: str
    program: str
    cell: str
    score: Score
    sort: Sort | None = None


class Rung:
    """Programs measured at one fidelity, of which one in `keep` goes on.

    Args:
        keep: see above.
        learned: what this run has measured, where that says more than the screen.
        again: whether programs go on by rank under further knobs once each has gone on.
    """

    def __init__(self, keep: int, learned: Learned | None = None, *, again: bool = False) -> None:
        self.keep = keep
        self._learned = learned
        self._again = again
        self.measured = 0
        self.gone = 0
        self._waiting: dict[str, _Waiting] = {}
        self._programs: set[str] = set()
        self._cells: Counter[str] = Counter()
        self._stopped: Counter[str] = Counter()
        self._cell_of: dict[str, str] = {}

    def add(self, key: str, program: str, cell: str, score: Score | None, sort: Sort | None = None) -> None:
        """A program was measured; without a score it stays here."""
        self.measured += 1
        self._cell_of[key] = cell
        if score is None or score.verdict is Verdict.FAILED:
            return
        self._waiting[key] = _Waiting(key, program, cell, score, sort)
        if len(self._waiting) > 2 * _KEPT:
            promising = self._promising()
            kept = [*promising[: _KEPT // 2], *self._ranked()[: _KEPT // 2 if promising else _KEPT]]
            self._waiting = {w.key: w for w in kept}

    def went(self, key: str) -> None:
        """It has gone on."""
        self.gone += 1
        found = self._waiting.pop(key, None)
        if found is not None:
            self._programs.add(found.program)
            self._cells[found.cell] += 1

    def stopped(self, cell: str) -> None:
        """One of a cell that had gone on did not run there, or too slowly: of its like the same is to be expected."""
        self._stopped[cell] += 1

    def next(self, *, anyone: bool = False) -> str | None:
        """Who goes on now, None where nobody does yet.

        Args:
            anyone: do not wait until one in `keep` would go on: workers are idle.
        """
        if not anyone and self.gone >= self.measured // self.keep:
            return None
        ranked = (self._promising() if self.gone % _EXPLORE != _EXPLORE - 1 else []) or self._ranked()
        return ranked[0].key if ranked else None

    def _promising(self) -> list[_Waiting]:
        """By what each is expected to bring, a program that went on under other knobs too; nobody while too little was
        measured to say so."""
        if self._learned is None or not self._learned.ready:
            return []
        known = [(w, w.sort) for w in self._waiting.values() if w.sort is not None]
        promises = self._learned.promise([sort for _, sort in known])
        ranked = sorted(zip(promises, known, strict=True), key=lambda pair: (-pair[0], pair[1][0].key))
        return [w for _, (w, _) in ranked]

    def _ranked(self) -> list[_Waiting]:
        """By layer, one of a program, and after many of a cell those of others: near copies teach little, and a cell
        whose programs do not run where they go, or too slowly, less still."""
        waiting = [w for w in self._waiting.values() if w.program not in self._programs]
        if not waiting and self._again:
            waiting = list(self._waiting.values())
        layers = pareto_layers([w.score.point for w in waiting])
        placed = [
            (
                layer + self._cells[w.cell] // 4 + 2 * self._stopped[w.cell],
                w.score.verdict,
                -w.score.accuracy.value,
                w.key,
                w,
            )
            for layer, w in zip(layers, waiting, strict=True)
        ]
        return [place[-1] for place in sorted(placed, key=lambda place: place[:-1])]


_LEADS_TO: dict[Purpose, Purpose] = {"screen": "full_screen", "full_screen": "search"}


class Ladder:
    """The rungs of a screened campaign: screen, full screen, answers.

    Args:
        screen: the rates.
        objective: of the campaign.

    Attributes:
        learned: what the campaign has measured, None where it measures no speed.
        library: references that may answer, where not all do.
    """

    def __init__(self, screen: Screen, objective: Objective) -> None:
        self._objective = screen.objective(objective)
        learned = Learned(screen, objective)
        self.learned = learned if learned.corrects else None
        self._rungs: dict[Purpose, Rung] = {
            "full_screen": Rung(screen.full, self.learned), "search": Rung(screen.answers, self.learned)
        }  # fmt: skip
        self.library = Rung(1, self.learned, again=True)

    def heard(self, candidate: Candidate) -> bool:
        """A candidate, a reference too, is done with the search's stages; see `Learned.heard`."""
        return self.learned is not None and self.learned.heard(candidate)

    def finished(self, candidate: Candidate, purpose: Purpose) -> None:
        """A found candidate was measured."""
        leads = _LEADS_TO.get(purpose)
        if leads is None:
            stopped = next((r.stage for r in candidate.stages(purpose) if not r.passed), None)
            # What the model answers is a program's own, and the screen ranks by it; what does not run is the cell's.
            if purpose == "search" and stopped is not None and STAGES.get(stopped).needs != "engine":
                self._rungs["search"].stopped(candidate.cell)
            return
        self._rungs[leads].add(*self._measured(candidate, purpose))

    def may_answer(self, reference: Candidate) -> None:
        """A reference was screened, and others may answer instead."""
        self.library.add(*self._measured(reference, "screen"))

    def _measured(
        self, candidate: Candidate, purpose: Purpose
    ) -> tuple[str, str, str, Score | None, Sort | None]:
        passed = candidate.status(purpose) == "passed"
        found = score(candidate, self._objective, purpose) if passed else None
        sort = None if self.learned is None else self.learned.sort(candidate)
        return candidate.key, candidate.ir_hash, candidate.cell, found, sort

    def went(self, candidate: Candidate, purpose: Purpose) -> None:
        """A candidate was sent on."""
        self._rungs[purpose].went(candidate.key)
        if self.learned is not None and purpose == "search":
            self.learned.went(candidate)

    def next(self, purpose: Purpose, *, anyone: bool = False) -> str | None:
        """Who is to be measured for a purpose next; see `Rung.next`."""
        return self._rungs[purpose].next(anyone=anyone)

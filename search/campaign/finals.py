"""The end of a campaign: elites on fresh seeds, a winner, the sealed set once, and an honest statement.

The best of N noisy measurements is inflated by selection alone, so nothing the search measured decides here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from search.campaign.archive import Archive, Entry, Score, Verdict, score
from search.campaign.comparison import Comparison, against_control, at_equal_cost, compare
from search.campaign.fitting import runs_as_it_is
from search.campaign.pipeline import LibraryLoader, Pipeline
from search.config import CampaignConfig, Objective
from search.log import events as ev
from search.log.state import USER, CampaignState, Candidate
from search.together import together


def library_names() -> list[str]:
    """Flows of the library that run without learned weights."""
    from vortex_core import library

    return list(library.names())


def rivals(answered: Sequence[Candidate], screened: Sequence[Candidate], most: int) -> list[Candidate]:
    """Half of `most` by their answers, rounded up, the others by the screen; both come best first."""
    chosen = list(answered[: -(-most // 2)])
    return [*chosen, *(c for c in screened if c not in chosen)][:most]


class Finals:
    """Runs what is left of the finals; every choice is an event, so a resumed run keeps to it."""

    def __init__(
        self,
        pipeline: Pipeline,
        config: CampaignConfig,
        state: CampaignState,
        record: Callable[..., None],
        library: LibraryLoader,
        time_is_up: Callable[[], bool] = lambda: False,
        library_names: Callable[[], Sequence[str]] = library_names,
    ) -> None:
        self.library_names = library_names
        self.pipeline = pipeline
        self.config = config
        self.state = state
        self.record = record
        self.library = library
        self.time_is_up = time_is_up
        self.left_out: list[str] = []
        self.main = {arm.name for arm in config.arms if not arm.control}
        self.ours = {*self.main, USER}  # may win
        self.control = {arm.name for arm in config.arms if arm.control}

    async def run(self, reason: str) -> None:
        """From the end of the search to the last event."""
        if self.state.finalists is None:
            self.record(ev.FinalistsChosen(tuple(c.key for c in self._finalists())))
        assert self.state.finalists is not None
        finalists = [self.state.candidates[key] for key in self.state.finalists]
        await self._measure(finalists, "fresh")
        while self.state.winner is None and (further := self._next(finalists)) is not None:
            if self._late(f"{further.label} on fresh items"):
                break
            finalists.append(further)
            self.record(ev.FinalistsChosen(tuple(c.key for c in finalists)))
            await self._measure([further], "fresh")
        if self.state.winner is None:
            winner, library = self._winner(finalists), self._library(finalists)
            if winner is not None:
                self.record(ev.WinnerChosen(winner.key, library.key if library else None))
        chosen = self.state.winner
        if chosen is None:
            self.record(ev.CampaignFinished(reason, None, self._summary(None, None)))
            return
        winner = self.state.candidates[chosen.key]
        library = self.state.candidates[chosen.library] if chosen.library else None
        peers = await self._peers(winner)
        # The sealed set first: what it says of the winner matters more than where its gain comes from.
        if self.config.finals.holdout and not self._late("the sealed items"):
            rivals = peers + ([library] if library and library not in peers else [])
            await self._measure([winner, *rivals], "holdout")
        if self.config.finals.second is not None and not self._late("the second model"):
            await self._measure([winner, *peers], "second")
        if (
            self.config.finals.matched
            and library is not None
            and not self._late("the library under its knobs")
        ):
            await self._matched(winner, library)
        await self._serve(winner, library, finalists)
        self.record(ev.CampaignFinished(reason, winner.key, self._summary(winner, library)))

    async def _serve(self, winner: Candidate, library: Candidate | None, finalists: list[Candidate]) -> None:
        """The winner and the next best of the found finalists inside SGLang, as far as the campaign asks for it; where
        fewer kept the gates, the library's rival in their place."""
        serving = self.config.serving
        if serving is None:
            return
        found = [c for c in finalists if not c.reference and c is not winner]
        others = [c for c in found if self._verdict(c, "fresh") is not Verdict.FAILED]
        if library is not None and not library.is_dense:
            others.append(library)
        for candidate in [winner, *others][: serving.finalists]:
            if candidate.status("serving") == "waiting" and not self._late(f"{candidate.label} in SGLang"):
                await self.pipeline.evaluate(candidate, "serving")

    def _late(self, what: str) -> bool:
        """Whether the time budget is used up; `what` is then left out, and the summary says so."""
        if self.time_is_up():
            self.left_out.append(what)
            return True
        return False

    def _finalists(self) -> list[Candidate]:
        """The best found, the best library flow and the best of the controls, as the search measured them."""
        archive = Archive(self.state, self.config.objective)
        elites = self._elites()
        if not elites and self.config.finals.anyway:
            answered = [e.candidate for e in archive.entries if not e.candidate.reference]
            elites = [c for c in answered if c.arm in self.ours]
        elites = elites[: self.config.finals.elites]
        if not elites:
            return []
        rivals = [archive.best(reference=True), archive.best(reference=False, arms=self.control)]
        rivals.append(self._fastest(archive))
        found = elites + list({e.candidate.key: e.candidate for e in rivals if e is not None}.values())
        return found + ([] if rivals[0] is not None else self._screened_library(elites[0]))

    def _fastest(self, archive: Archive) -> Entry | None:
        """The library's fastest that keeps the gates by value, where speed was measured: the one with the surest gates
        may be far from it, and whoever chooses among the library's would take this one."""
        kept = [e for e in archive.entries if e.candidate.reference and e.score.verdict is not Verdict.FAILED]
        timed = [e for e in kept if e.score.speed.how == "measured" and not e.candidate.is_dense]
        return max(timed, key=lambda e: e.score.speed.value, default=None)

    def _screened_library(self, elite: Candidate) -> list[Candidate]:
        """Where no library flow answered, the one that the screen puts first, at an equal budget where some are."""
        if self.config.screen is None:
            return []
        library = [c for c in self.state.candidates.values() if c.reference and c.key not in self.state.twins]
        alike = [c for c in library if c.knobs["budget"] == elite.knobs["budget"]]
        wanted = self.config.screen.objective(self.config.objective)
        return self._best(alike or library, wanted, "screen")[:1]

    def _elites(self) -> list[Candidate]:
        """Found candidates that keep the gates on the search's items, best first, one a program: the same program
        under three budgets is one idea."""
        programs: dict[str, Candidate] = {}
        for candidate in self._promising():
            programs.setdefault(candidate.ir_hash, candidate)
        return list(programs.values())

    def _promising(self) -> list[Candidate]:
        """Found candidates that keep the gates on the search's items, best first."""
        ranked = [e.candidate for e in Archive(self.state, self.config.objective).entries]
        found = [c for c in ranked if not c.reference and c.arm in self.ours]
        return [c for c in found if self._verdict(c, "search") is not Verdict.FAILED]

    def _next(self, finalists: list[Candidate]) -> Candidate | None:
        """The next best, while none so far keeps the gates: the first were the luckiest on the search's items.

        Of a program that was tried another point is, where it answered better: the fastest was tried first, and one
        that gives a little speed for answers is likelier to keep the gates than a slow program is to be worth it.
        """
        ours = [c for c in finalists if not c.reference and c.arm in self.ours]
        if self._leader(ours) is not None or len(ours) >= self.config.finals.most:
            return None
        tried: dict[str, float] = {}  # by program, the best accuracy of a point that was
        for c in ours:
            tried[c.ir_hash] = max(tried.get(c.ir_hash, -math.inf), self._accuracy(c))
        promising = (c for c in self._promising() if c not in ours)
        return next((c for c in promising if self._accuracy(c) > tried.get(c.ir_hash, -math.inf)), None)

    def _accuracy(self, candidate: Candidate) -> float:
        found = score(candidate, self.config.objective, "search")
        return -math.inf if found is None else found.accuracy.value

    def _verdict(self, candidate: Candidate, purpose: ev.Purpose) -> Verdict:
        found = score(candidate, self.config.objective, purpose)
        return Verdict.FAILED if found is None else found.verdict

    def _winner(self, finalists: list[Candidate]) -> Candidate | None:
        """The best of what the search found, or else of what its control did: the words say which."""
        found = [c for c in finalists if not c.reference]
        return self._leader([c for c in found if c.arm in self.ours]) or self._leader(found)

    def _library(self, finalists: list[Candidate]) -> Candidate | None:
        """The winner's rival: of the library's finalists the fastest that keeps the gates on fresh items."""
        library = [c for c in finalists if c.reference]
        kept = [(found.speed.value, c) for c in library if (found := self._kept(c)) is not None]
        return max(kept, key=lambda p: p[0])[1] if kept else next(iter(library), None)

    def _kept(self, candidate: Candidate) -> Score | None:
        """What it has on fresh items, if it keeps the gates there."""
        found = (
            score(candidate, self.config.objective, "fresh")
            if candidate.status("fresh") == "passed"
            else None
        )
        return None if found is None or found.verdict is Verdict.FAILED else found

    def _leader(self, candidates: list[Candidate]) -> Candidate | None:
        scored = [(found, c) for c in candidates if (found := self._kept(c)) is not None]
        if not scored:
            return None
        best = min(scored, key=lambda p: (p[0].verdict, -p[0].speed.value, -p[0].accuracy.value, p[1].number))
        return best[1]

    async def _measure(self, candidates: list[Candidate], purpose: ev.Purpose) -> None:
        waiting = [c for c in candidates if c.status(purpose) == "waiting"]
        if not waiting:
            return
        if purpose != "second":  # whoever holds that model answers densely by itself
            await self.pipeline.dense_reference(purpose)
        # Where something is to be stated in any case, the best found is measured though the time is used up. So are the
        # winner and its first rival once the sealed prompts were read, which takes longer than both their answers.
        sure = {"fresh": int(self.config.finals.anyway), "holdout": 2}.get(purpose, 0)
        await together(
            self.pipeline.evaluate(c, purpose)
            if c in candidates[:sure]  # not the next in their place where a run goes on that had asked them
            else self.pipeline.evaluate(c, purpose, late=partial(self._late, f"{c.label} on {purpose} items"))
            for c in waiting
        )

    async def _peers(self, winner: Candidate) -> list[Candidate]:
        """The library's best at equal cost: programs of at most the winner's state bytes that run under its knobs.

        Half of them are those that answered the search's items best, as far as references did, the others those that
        the screen puts first: of programs of many sorts answers need not bear out what it says.
        """
        if self.config.finals.peers == 0 or self.config.screen is None:
            return []
        if self.state.peers is None:
            flow = self.pipeline.flow(winner)
            most = self.pipeline.state_bytes(flow)
            keys = []
            for name in self.library_names():
                found, source = self.library(name, winner.knobs)
                if found.program.selects_everything or self.pipeline.state_bytes(found) > most:
                    continue
                if found.key == winner.key or not runs_as_it_is(found):
                    continue
                if found.key not in self.state.candidates:
                    self.pipeline.admit(found, source, None)
                keys.append(found.key)
            self.record(ev.PeersConsidered(tuple(dict.fromkeys(keys)), winner.key))
        assert self.state.peers is not None
        considered = [self.state.candidates[key] for key in self.state.peers.keys]
        waiting = [c for c in considered if c.status("screen") == "waiting"]
        await together(self.pipeline.evaluate(c, "screen", late=self.time_is_up) for c in waiting)
        wanted = self.config.screen.objective(self.config.objective)
        answered = self._best(considered, self.config.objective, "search")
        return rivals(answered, self._best(considered, wanted, "screen"), self.config.finals.peers)

    @staticmethod
    def _best(candidates: list[Candidate], objective: Objective, purpose: ev.Purpose) -> list[Candidate]:
        """Those that were measured, the most accurate first."""
        scored = [(s, c) for c in candidates if (s := score(c, objective, purpose)) is not None]
        scored.sort(key=lambda pair: (-pair[0].accuracy.value, pair[1].number))
        return [c for _, c in scored]

    async def _matched(self, winner: Candidate, library: Candidate) -> None:
        """The library's program under the winner's knobs: was it the program or the constants?"""
        if self.state.matched is None:
            flow, source = self.library(library.name.split()[0], winner.knobs)
            if flow.key not in self.state.candidates:
                self.pipeline.admit(flow, source, None)
            self.record(ev.MatchedChosen(flow.key, library.key, winner.key))
        assert self.state.matched is not None
        twin = self.state.candidates[self.state.matched.key]
        if twin.status() == "waiting":
            await self._measure([twin], "search")
        if twin.status() == "passed":
            await self._measure([twin], "fresh")

    def _summary(self, winner: Candidate | None, library: Candidate | None) -> dict[str, Any]:
        objective = self.config.objective
        summary: dict[str, Any] = {
            "distinct_programs": self.state.distinct_programs,
            "candidates": len(self.state.found),
            "control": against_control(self.state, objective, self.main, self.control),
        }
        if self.left_out:
            summary["left_out"] = self.left_out
        if winner is None:
            summary["statement"] = self._without_winner()
            return summary
        found = score(winner, objective, "fresh")
        assert found is not None
        summary["winner"] = {"id": winner.label, "name": winner.name, "key": winner.key}
        summary["verdict"] = found.verdict.name.lower()
        twin = next(
            (c for c in self.state.candidates.values() if c.reference and c.ir_hash == winner.ir_hash), None
        )
        summary["same_program_as"] = twin.name if twin else None
        rivals = {
            "library": library,
            "matched": self.state.candidates[self.state.matched.key] if self.state.matched else None,
            "control": next(
                (
                    self.state.candidates[k]
                    for k in self.state.finalists or ()
                    if self._is_control(k) and k != winner.key
                ),
                None,
            ),
        }
        for name, rival in rivals.items():
            comparison = compare(winner, rival, objective, "fresh") if rival else None
            summary[f"against_{name}"] = comparison.to_json() if comparison else None
        sealed = compare(winner, library, objective, "holdout") if library else None
        summary["sealed"] = sealed.to_json() if sealed else None
        peers = self._measured_peers(winner)
        summary["peers"] = [p.to_json() for p in peers]
        summary["serving"] = [_served(c) for c in self.state.candidates.values() if c.results.get("serving")]
        # The winner was chosen among several on the fresh items, which flatters it there: the sealed ones, where it met
        # them, say what is so.
        against = summary["sealed"] or summary["against_library"]
        summary["statement"] = self._origin(winner) + (
            against["words"]
            if against
            else (f"{winner.label} {winner.name} won; no library flow kept the gates to compare it with.")
        )
        summary["statement"] += "".join(f" {p.words}" for p in peers)
        return summary

    def _measured_peers(self, winner: Candidate) -> list[Comparison]:
        """The winner beside the library at equal cost, on sealed items and on the second model's."""
        if self.state.peers is None:
            return []
        second = self.config.finals.second
        found = []
        asked: list[tuple[ev.Purpose, str]] = [("holdout", self.config.accuracy_model or self.config.model)]
        if second is not None:
            asked.append(("second", second.model))
        for purpose, model in asked:
            for key in self.state.peers.keys:
                peer = self.state.candidates[key]
                compared = at_equal_cost(winner, peer, self.config.objective, purpose, model)
                if compared is not None:
                    found.append(compared)
        return found

    def _without_winner(self) -> str:
        """Why there is none."""
        limits, left = self.config.limits, ", ".join(self.left_out)
        short = (
            f" The time budget of {limits.seconds:g} s left no time for {left}; give more and run it again."
            if left
            else ""
        )
        if not self.state.found:
            times = self.state.stage_time.items()
            spent = ", ".join(
                f"{name} {t.seconds:.0f} s" for name, t in sorted(times, key=lambda i: -i[1].seconds)[:3]
            )
            return (
                f"No program was searched: the limits were reached by the references alone ({spent}).{short}"
            )
        fresh = any(c.status("fresh") != "waiting" for c in self.state.found)
        if not fresh and not self._elites():
            return f"No found program kept the gates on the search's items; the library flows stand.{short}"
        if not fresh:
            return f"Nothing was measured on fresh items, so nothing has been shown to win.{short}"
        return f"No found program kept the accuracy gates on fresh items; the library flows stand.{short}"

    def _origin(self, winner: Candidate) -> str:
        if winner.arm in self.main:
            return ""
        if winner.arm == USER:
            return "It was handed in by a user, not found by the search. "
        return (
            f"No program of {'+'.join(sorted(self.main))} kept the gates on fresh items; the control's did. "
        )

    def _is_control(self, key: str) -> bool:
        return self.state.candidates[key].arm in self.control


def _served(candidate: Candidate) -> dict[str, Any]:
    """What SGLang measured of a candidate, and the same in words."""
    metrics = candidate.metrics("serving")
    speedup, tpot = metrics.get("serving_speedup"), metrics.get("serving_tpot_ms")
    words = f"{candidate.label} {candidate.name}: "
    if speedup is None:
        stopped = next((r for r in candidate.stages("serving") if r.failure is not None), None)
        error = stopped.failure.error if stopped is not None and stopped.failure is not None else {}
        words += f"could not be served ({error.get('code')}: {error.get('message')})"
    else:
        interval = "" if speedup.low is None else f" [{speedup.low:.2f}, {speedup.high:.2f}]"
        words += f"{speedup.value:.2f}x{interval} SGLang's dense backend"
        words += "" if tpot is None else f", {tpot.value:.2f} ms a token"
    return {
        "id": candidate.label,
        "name": candidate.name,
        "metrics": {name: found.to_json() for name, found in metrics.items()},
        "words": words,
    }

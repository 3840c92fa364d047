"""The end of a campaign: who is measured again, who wins, and what is stated about it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from evaluators.results import Metric, StageResult
from search.campaign.finals import Finals
from search.campaign.pipeline import Pipeline
from search.log.state import CampaignState, Candidate
from search.simulation import SimulatedExecutor, simulated_library
from tests.null.search.harness import SESSION, STARTED, Harness, config, kinds
from vortex_core.ir.flow import Flow


def test_what_a_run_states_is_what_the_sealed_items_said(tmp_path: Path):
    """The winner was chosen among several on fresh items: luck there must not reach the statement."""

    class Lucky(SimulatedExecutor):
        async def measure(self, stage: str, flow: Flow, seed: int) -> StageResult:
            found = await super().measure(stage, flow, seed)
            if stage != "holdout" or flow.key in library:
                return found
            lost = {"accuracy": Metric(0.2, n=40), "accuracy_delta": Metric(-0.8, -0.9, -0.7, n=40)}
            return replace(found, metrics=lost, items={"needle": [1.0] * 8 + [0.0] * 32})

    library = {simulated_library(name, {})[0].key for name in ("quest", "block_topk")}
    harness = Harness(tmp_path)
    harness.executor = Lucky()
    state = harness.go()
    assert state.finished is not None
    summary = state.finished.summary
    assert summary["against_library"]["accuracy"]["value"] > -0.3, "on fresh items it looked well"
    assert summary["sealed"]["words"] in summary["statement"]
    assert summary["against_library"]["words"] not in summary["statement"]
    assert "surely answers worse than" in summary["statement"]
    asked = [key for key, stage, _ in harness.executor.ran.elements() if stage == "holdout"]
    assert len(asked) == len(set(asked)), "sealed items are looked at once"
    found = [c for c in state.candidates.values() if not c.reference and "holdout" in c.results]
    assert [c.key for c in found] == [state.finished.winner]


def test_finalists_are_served_when_the_campaign_asks_for_it(tmp_path: Path):
    harness = Harness(tmp_path)
    first = harness.go()
    assert first.finished is not None and first.finished.summary["serving"] == []
    winner = first.finished.winner
    # The section may come later: the search and its choices stand.
    harness.config = config(serving={"finalists": 2})
    state = harness.go()
    served = [c for c in state.candidates.values() if c.status("serving") == "passed"]
    assert state.finished is not None and state.finished.winner == winner
    assert winner in {c.key for c in served}
    assert len(served) == 2 and not any(c.reference for c in served)
    assert all("SGLang's dense backend" in row["words"] for row in state.finished.summary["serving"])
    assert kinds(harness.store).count("winner_chosen") == 1


def test_the_librarys_rival_is_served_where_nothing_else_was_found(tmp_path: Path):
    harness = Harness(tmp_path, config(serving={"finalists": 2}, finals={"elites": 1}))
    harness.config = harness.config.model_copy(
        update={"arms": tuple(arm for arm in harness.config.arms if not arm.control)}
    )
    state = harness.go()
    assert state.finished is not None and state.winner is not None
    served = {c.key for c in state.candidates.values() if c.status("serving") == "passed"}
    assert served == {state.winner.key, state.winner.library}


def test_finals_say_what_they_had_no_time_for(tmp_path: Path):
    harness = Harness(tmp_path, config(limits={"candidates": 6, "seconds": 1000}))
    campaign = harness.campaign()
    campaign._time_is_up = lambda: True  # type: ignore[method-assign]
    state = asyncio.run(campaign.run_to_end(STARTED, SESSION))
    assert state.finished is not None and state.finished.winner is None
    assert "left no time for" in state.finished.summary["statement"]
    assert state.finished.summary["left_out"]


def test_the_library_never_competes_as_found(tmp_path: Path):
    state = Harness(tmp_path).go()
    assert [c.name for c in state.candidates.values() if c.reference][:3] == ["dense", "quest", "block_topk"]
    assert all(not c.reference for c in state.found)


class Unlucky(SimulatedExecutor):
    """Whatever looked best in the search breaks the gates on fresh items, at some turns of the found ones."""

    def __init__(self, broken: range | set[int]) -> None:
        super().__init__()
        self.broken, self.turn = broken, -1

    async def measure(self, stage: str, flow: Flow, seed: int) -> StageResult:
        result = await super().measure(stage, flow, seed)
        if stage == "accuracy" and seed != 1 and flow.name.startswith("point_"):
            self.turn += 1
            if self.turn in self.broken:
                worse = {**result.metrics, "accuracy_delta": Metric(-0.9, -0.95, -0.85, n=40)}
                return replace(result, metrics=worse)
        return result


def finalists(broken: range | set[int], tmp_path: Path) -> tuple[CampaignState, list[str]]:
    """Turn 0 is the first elite, 1 the control's best, 2 and 3 further elites."""
    harness = Harness(tmp_path, config(finals={"elites": 1, "most": 3}))
    harness.executor = Unlucky(broken)
    state = harness.go()
    return state, [c.arm for k in state.finalists or () if not (c := state.candidates[k]).reference]


def test_the_next_best_are_measured_while_none_keeps_the_gates(tmp_path: Path):
    state, arms = finalists({0, 1, 2}, tmp_path)
    assert arms == ["evolve", "random", "evolve", "evolve"]
    assert state.finished is not None
    assert state.finished.winner == (state.finalists or ())[-1]


def test_the_controls_best_wins_where_nothing_else_keeps_the_gates(tmp_path: Path):
    state, arms = finalists({0, 2, 3}, tmp_path)
    assert arms == ["evolve", "random", "evolve", "evolve"]
    assert state.finished is not None
    assert state.candidates[state.finished.winner or ""].arm == "random"
    assert state.finished.summary["statement"].startswith("No program of evolve kept the gates")
    assert state.finished.summary["against_control"] is None, "it was compared with itself"


def test_nothing_wins_where_nothing_keeps_the_gates(tmp_path: Path):
    state, arms = finalists(range(9), tmp_path)
    assert state.finished is not None
    assert state.finished.winner is None
    assert "library flows stand" in state.finished.summary["statement"]
    assert len(arms) == 4


def test_only_the_winner_and_its_first_rival_meet_sealed_items_late_when_a_run_goes_on(tmp_path: Path):
    """Its winner had met them; the second rival is not asked in its place when the time is over."""
    harness = Harness(tmp_path)
    campaign = harness.campaign()
    state = asyncio.run(campaign.run_to_end(STARTED, SESSION))
    first, second, third, fourth = list(state.candidates.values())[:4]
    for candidate, finished in ((first, True), (second, False), (third, False), (fourth, False)):
        candidate.finished.pop("holdout", None)
        if finished:
            candidate.finished["holdout"] = True
    asked: dict[str, bool] = {}

    class Seen:
        async def dense_reference(self, purpose: str) -> None:
            pass

        async def evaluate(
            self, c: Candidate, purpose: str, late: Callable[[], bool] = lambda: False
        ) -> None:
            asked[c.key] = not late()

    finals = Finals(Seen(), harness.config, state, print, simulated_library, lambda: True)  # type: ignore[arg-type]
    asyncio.run(finals._measure([first, second, third, fourth], "holdout"))
    assert asked == {second.key: True, third.key: False, fourth.key: False}


def measured(candidate: Candidate, speed: float, accuracy: float) -> None:
    """As if the search had found this, and nothing fresh were known."""
    metrics = {
        "accuracy_delta": Metric(accuracy, accuracy - 0.1, accuracy + 0.1, n=40),
        "modelled_speedup_h200": Metric(speed),
        "perplexity_ratio": Metric(1.0),
    }
    candidate.results = {"search": {"decode": StageResult("decode", True, metrics=metrics)}}
    candidate.finished = {"search": True}


def test_a_safer_point_of_a_program_that_was_tried_is_next(tmp_path: Path):
    """Its fastest point went first and broke the gates; a slow program that keeps them would be worth less."""
    harness = Harness(tmp_path)
    state = harness.go()
    pipeline: Pipeline = None  # type: ignore[assignment]
    finals = Finals(pipeline, harness.config, state, print, simulated_library)
    ours = [c for c in state.candidates.values() if c.arm == "evolve"]
    for candidate in ours:
        measured(candidate, 1.0, -0.9)
    fast, safer, other = ours[:3]
    for candidate, speed, accuracy in ((fast, 2.0, -0.09), (safer, 1.9, -0.04), (other, 1.1, 0.0)):
        measured(candidate, speed, accuracy)
    safer.ir_hash = fast.ir_hash
    assert finals._elites() == [fast, other], "one a program"
    assert finals._next([fast]) is safer
    assert finals._next([fast, safer]) is other
    measured(safer, 1.9, -0.095)
    assert finals._next([fast]) is other, "a point that answered worse is no way out"


def test_the_librarys_fastest_is_a_rival_beside_its_surest(tmp_path: Path):
    """On a GPU a flow that surely keeps the gates may be far slower than one that keeps them by value."""
    harness = Harness(tmp_path)
    state = harness.go()
    pipeline: Pipeline = None  # type: ignore[assignment]
    finals = Finals(pipeline, harness.config, state, print, simulated_library)
    for candidate in state.candidates.values():
        measured(candidate, 1.0, -0.9)
    elite = next(c for c in state.candidates.values() if c.arm == "evolve")
    surest, fastest = [c for c in state.candidates.values() if c.reference and not c.is_dense][:2]
    measured(elite, 2.0, 0.3)
    measured(surest, 1.6, 0.3)
    measured(fastest, 1.9, -0.2)
    assert finals._finalists() == [elite, surest, fastest]
    for candidate in (surest, fastest):
        candidate.results["fresh"] = candidate.results["search"]
        candidate.finished["fresh"] = True
    assert finals._library([elite, surest, fastest]) is fastest
    measured(fastest, 1.9, -0.4)
    assert finals._library([elite, surest, fastest]) is surest, "it broke the gates on fresh items"
    modelled = replace(surest.results["search"]["decode"].metrics["modelled_speedup_h200"], how="modelled")
    for candidate in state.candidates.values():
        candidate.results["search"]["decode"].metrics["modelled_speedup_h200"] = modelled
    assert finals._finalists()[1:] == [surest], "modelled speeds of one budget say little"

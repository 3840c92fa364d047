"""The driver against a simulated cluster: references, limits, engines, and what strategies and proposers are told."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from pathlib import Path

import pytest

from agents.base import Proposal, ProposalRequest
from evaluators.results import Metric, StageResult
from search.campaign.archive import Archive
from search.log import events as ev
from search.log.state import CampaignState
from search.log.store import Record
from search.simulation import SimulatedExecutor, SimulatedProposer, simulated_library
from tests.null.search.harness import Harness, config, kinds


def test_a_campaign_ends_with_a_winner_and_a_statement(tmp_path: Path):
    harness = Harness(tmp_path)
    state = harness.go()
    assert state.distinct_programs == 9
    assert state.finished is not None
    assert state.finished.reason == "9 distinct programs"
    winner = state.candidates[state.finished.winner or ""]
    assert not winner.reference
    assert winner.arm == "evolve"
    assert {"search", "fresh", "holdout"} <= set(winner.results)
    summary = state.finished.summary
    assert summary["against_library"]["finding"] in ("better", "inconclusive", "not better")
    assert summary["against_library"]["purpose"] == "fresh"
    assert summary["against_library"]["accuracy"]["low"] < summary["against_library"]["accuracy"]["high"]
    assert summary["against_matched"]["theirs"] != summary["against_library"]["theirs"]
    assert summary["sealed"]["items"] == 40
    assert summary["control"]["evaluations"] >= 1
    assert harness.executor.closed


def test_references_come_first_and_are_told_to_every_arm(tmp_path: Path):
    harness = Harness(tmp_path)
    harness.go()
    order = kinds(harness.store)
    first_ask = order.index("asked")
    assert order[:first_ask].count("candidate_finished") == 3
    assert {p.name for r in harness.proposer.requests for p in r.parents} >= {"c002 quest"}


def test_references_run_on_all_engines_at_once(tmp_path: Path):
    harness = Harness(tmp_path, config(limits={"candidates": 0}))
    harness.executor = SimulatedExecutor(lanes=3, delay=0.01)
    state = harness.go()
    assert [c.name for c in state.candidates.values()] == ["dense", "quest", "block_topk"]
    assert all(c.status() == "passed" for c in state.candidates.values())
    assert harness.executor.most_at_once == 3


def test_every_reference_of_a_grid_is_measured_once(tmp_path: Path):
    grid = {"flow": ["quest", "block_topk"], "grid": {"budget": ["256", "512"]}}
    harness = Harness(tmp_path, config(references=["dense", grid, grid], limits={"candidates": 0}))
    found = list(harness.go().candidates.values())[1:]
    assert [c.knobs["budget"] for c in found] == ["256", "512"] * 2
    assert len({c.ir_hash for c in found}) == 2


def test_as_many_candidates_are_measured_at_once_as_there_are_engines(tmp_path: Path):
    harness = Harness(tmp_path, config(limits={"candidates": 20}))
    harness.executor = SimulatedExecutor(lanes=4, delay=0.002)
    state = harness.go()
    assert state.distinct_programs == 20
    assert harness.executor.most_at_once == 4


@pytest.mark.parametrize(("seconds", "words"), [(0.15, "No program was searched"), (1.5, "")])
def test_a_time_budget_covers_references_and_finals(tmp_path: Path, seconds: float, words: str):
    harness = Harness(tmp_path, config(limits={"candidates": 500, "seconds": seconds, "finals_seconds": 60}))
    harness.executor = SimulatedExecutor(delay=0.03)
    began = time.monotonic()
    state = harness.go()
    assert time.monotonic() - began < seconds + 1.0
    assert state.finished is not None
    assert state.finished.reason == f"time budget of {seconds} s"
    assert state.finished.summary["statement"].startswith(words)
    if words:
        assert not state.proposals
        left = [c.name for c in state.candidates.values() if c.status() == "waiting"]
        assert left, "references were not measured for nothing"
        # More time, and the same command measures what was left out.
        harness.config = config(limits={"candidates": 2})
        assert all(c.status() == "passed" for c in harness.go().candidates.values() if c.reference)
    else:
        assert state.finished.winner, "the search left some of the time for the finals"


def test_nothing_is_evaluated_twice_and_duplicates_reuse_results(tmp_path: Path):
    harness = Harness(tmp_path, config(limits={"candidates": 25}))
    state = harness.go()
    assert max(harness.executor.ran.values()) == 1
    assert kinds(harness.store).count("duplicate") > 0
    assert len(state.candidates) == len(set(state.candidates))


def test_dollars_are_counted_and_bound_the_campaign(tmp_path: Path):
    harness = Harness(tmp_path, config(limits={"candidates": 50, "dollars": 0.1}))
    state = harness.go()
    assert state.finished is not None
    assert state.finished.reason == "budget of $0.1"
    assert 0.1 <= state.dollars <= 0.1 + 0.01 * 3


def test_no_room_for_more_journeys_than_configured(tmp_path: Path):
    harness = Harness(tmp_path, config(limits={"candidates": 20}))
    harness.proposer = SimulatedProposer(delay=0.001)
    harness.executor.delay = 0.0005
    most = 0

    def watch(record: Record, state: CampaignState) -> None:
        nonlocal most
        under_way = [p for p in state.proposals.values() if p.outcome == "open"]
        waiting = [c for c in state.found if c.status() == "waiting"]
        most = max(most, len(under_way) + len(waiting))

    harness.go(watch)
    assert 2 <= most <= 3


def test_the_ledger_lists_dead_ends(tmp_path: Path):
    harness = Harness(tmp_path, config(limits={"candidates": 40}))
    state = harness.go()
    stopped = [c for c in state.found if c.status() == "failed"]
    assert stopped
    last = harness.proposer.requests[-1]
    known = {c.key: c for c in stopped}
    assert last.ledger
    for attempt in last.ledger:
        candidate = known[attempt.key]
        assert (attempt.stage, attempt.code, attempt.knobs) == ("accuracy", "VV104", candidate.knobs)
        assert attempt.idea == candidate.idea
        assert candidate.label in attempt.name
    assert {a.key for a in last.ledger} <= set(last.tried) == set(state.candidates)


def test_dense_is_measured_and_never_a_parent(tmp_path: Path):
    harness = Harness(tmp_path, config(limits={"candidates": 40}))
    state = harness.go()
    dense = next(c for c in state.candidates.values() if c.name == "dense")
    assert dense.status() == "passed"
    parents = [key for p in state.proposals.values() for key in p.parents]
    assert parents
    assert dense.key not in parents


def test_the_twin_of_a_winner_is_no_beginning(tmp_path: Path):
    arms = [{"name": "n", "strategy": {"kind": "best_of_n"}}]
    harness = Harness(tmp_path, config(arms=arms))
    first = harness.go()
    assert first.matched is not None
    harness.config = config(arms=arms, limits={"candidates": 14})
    second = harness.go()
    assert second.twins
    assert not second.twins & {key for p in second.proposals.values() for key in p.parents}


def test_a_tell_takes_as_long_at_ten_thousand_candidates_as_at_one_hundred(tmp_path: Path):
    harness = Harness(tmp_path)
    campaign = harness.campaign()

    def finish(number: int) -> float:
        x, y = (number * 0.618034) % 1 * 0.2 - 0.2, 1 + (number * 0.754878) % 1 * 2
        key = f"k{number}"
        campaign.record(ev.Asked(number, "evolve", "seed", (), number, "grammar"))
        campaign.record(ev.Proposed(number, "s", "", "grammar", 0.0))
        campaign.record(ev.Admitted(key, f"ir{number}", "n", "", "s", "p", {}, number))
        metrics = {"accuracy_delta": Metric(x), "modelled_speedup_h200": Metric(y)}
        campaign.record(
            ev.StageFinished(key, "search", "all", 0, StageResult("all", True, metrics).to_json())
        )
        began = time.process_time()
        campaign.record(ev.CandidateFinished(key, "search", 0, passed=True))
        campaign._limit(1)
        campaign.arms.next()
        return time.process_time() - began

    taken = [finish(number) for number in range(1, 10_001)]
    assert statistics.median(taken[-1000:]) < 0.005
    assert statistics.median(taken[-1000:]) < 3 * statistics.median(taken[100:1100])
    archive = Archive(campaign.state, harness.config.objective)
    assert archive.hypervolume_by_evaluation({"evolve"})[-1] == pytest.approx(
        campaign.arms.fronts["evolve"].volume
    )


class Wordy(SimulatedProposer):
    """Keeps what it was asked in words, and says what it answered."""

    async def propose(self, request: ProposalRequest) -> Proposal:
        answer = await super().propose(request)
        return replace(answer, prompt=f"asked {len(self.requests)}", reply=f"IDEA: {answer.idea}")


def test_a_proposer_is_told_where_the_search_stands_and_its_words_are_kept(tmp_path: Path):
    harness = Harness(tmp_path, config(limits={"candidates": 20}))
    harness.proposer = Wordy()
    state = harness.go()
    requests = harness.proposer.requests
    assert {row.relation for row in requests[-1].standings} >= {"best", "library"}
    family = [r for r in requests if r.kind == "mutate" and any(s.relation == "child" for s in r.standings)]
    assert family, "a parent's earlier children are shown"
    assert "accuracy_delta of dense attention against itself is" in requests[-1].setting
    assert "(n=40)" in requests[-1].setting
    assert all("fresh" not in row.verdict for row in requests[-1].standings)
    asked = [r.event for r in harness.store.read() if isinstance(r.event, ev.Proposed)]
    assert len(asked) == len(state.proposals)
    for event in asked:
        assert harness.files.get(event.prompt, ".txt").startswith("asked ")
        assert harness.files.get(event.reply, ".txt").startswith("IDEA: x=")


def test_the_last_result_and_the_end_of_a_candidate_are_one_append(tmp_path: Path):
    harness, appends = Harness(tmp_path), []
    append = harness.store.append

    def write(*new: ev.Event) -> list[Record]:
        appends.append(new)
        return append(*new)

    harness.store.append = write  # type: ignore[method-assign]
    harness.go()
    ends = [new for new in appends if isinstance(new[-1], ev.CandidateFinished)]
    assert len(ends) >= 9
    for stage, end in ends:
        assert isinstance(stage, ev.StageFinished)
        assert isinstance(end, ev.CandidateFinished)
        assert (stage.key, stage.purpose) == (end.key, end.purpose)
        assert stage.result["passed"] is end.passed


def test_a_candidate_of_a_program_in_memory_is_the_one_that_its_files_make(tmp_path: Path):
    harness = Harness(tmp_path)
    campaign = harness.campaign()
    flow, source = simulated_library("quest", {})
    first = campaign.pipeline.admit(flow, source, None)
    second = campaign.pipeline.admit(flow.with_knobs(budget="96"), source, None)
    assert first.program == second.program
    for candidate in (first, second):
        assert candidate.flow_of(flow.program) == candidate.flow(harness.files)
        assert candidate.flow_of(flow.program).key == candidate.key
    again = harness.campaign()  # remembers nothing
    found = [again.pipeline.flow(candidate) for candidate in (first, second)]
    assert [f.key for f in found] == [first.key, second.key]
    assert found[0].program is found[1].program, "read and verified once"

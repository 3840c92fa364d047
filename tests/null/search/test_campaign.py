"""The driver against a simulated cluster: limits, repairs, retries, and a crash at every event."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.base import Proposal, ProposalRequest, Proposer, Usage
from agents.errors import BudgetExceededError, ProposerError
from evaluators.results import Metric, StageResult
from search.campaign.archive import Archive
from search.campaign.campaign import Campaign
from search.config import CampaignConfig
from search.executors.base import Notice
from search.log import events as ev
from search.log.files import ContentStore
from search.log.run import Run
from search.log.state import CampaignState
from search.log.store import MemoryEventStore, Record
from search.simulation import Crash, SimulatedExecutor, SimulatedProposer, lost, simulated_library
from vortex_core.errors import VortexError
from vortex_core.ir import mistakes
from vortex_core.ir.flow import Flow

STARTED = ev.CampaignStarted("sim", {}, {}, {}, {})
SESSION = ev.SessionStarted(1, {})


def config(**changes: Any) -> CampaignConfig:
    base: dict[str, Any] = {
        "references": ["dense", "quest", "block_topk"],
        "objective": {"gates": [{"metric": "accuracy_delta", "at_least": -0.25}], "margin": 0.1},
        "arms": [
            {"name": "evolve", "strategy": {"kind": "evolve", "size": 32}, "share": 2},
            {"name": "random", "strategy": {"kind": "random"}, "control": True},
        ],
        "limits": {"candidates": 9},
    }
    return CampaignConfig.model_validate(base | changes)


class Harness:
    """A run kept in memory over several sessions."""

    def __init__(self, tmp_path: Path, settings: CampaignConfig | None = None) -> None:
        self.config = settings or config()
        self.folder = tmp_path
        self.store = MemoryEventStore(clock=iter(range(10**9)).__next__)
        self.files = ContentStore(tmp_path / "files")
        self.executor = SimulatedExecutor()
        self.proposer: Any = SimulatedProposer()
        self.model: dict[str, Any] = {"name": "sim"}

    def campaign(self, watch: Callable[[Record, CampaignState], None] | None = None) -> Campaign:
        run = Run("sim", self.folder, self.store, self.files)
        proposers = {arm.name: self.proposer for arm in self.config.arms}
        return Campaign(
            run,
            self.config,
            self.executor,
            proposers,
            seed=1,
            model=self.model,
            library=simulated_library,
            watch=watch or (lambda record, state: None),
        )

    def go(self, watch: Callable[[Record, CampaignState], None] | None = None) -> CampaignState:
        return asyncio.run(self.campaign(watch).run_to_end(STARTED, SESSION))


def kinds(store: MemoryEventStore) -> list[str]:
    return [r.event.kind for r in store.read()]


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


def test_a_run_is_not_resumed_on_another_kind_of_device(tmp_path: Path):
    harness = Harness(tmp_path, config(limits={"candidates": 3}))
    assert harness.go().devices == [{"kind": "cpu", "name": "simulated", "host": "simulated", "ranks": 1}]
    harness.config = config(limits={"candidates": 6})
    harness.executor = SimulatedExecutor(device="another")
    with pytest.raises(VortexError) as error:
        harness.go()
    assert error.value.code == "VS043"
    assert "simulated" in error.value.message and "another" in error.value.message
    harness.executor = SimulatedExecutor(lanes=2)
    assert harness.go().distinct_programs == 6, "more of the same kind are welcome"


def test_a_run_is_not_resumed_with_other_weights(tmp_path: Path):
    class Loading(SimulatedExecutor):
        weights = "a" * 16

        async def start(self, notice: Callable[[Notice], None]) -> list[dict[str, Any]]:
            return [device | {"weights": self.weights} for device in await super().start(notice)]

    harness = Harness(tmp_path, config(limits={"candidates": 3}))
    harness.executor = Loading()
    harness.go()
    harness.config = config(limits={"candidates": 6})
    harness.executor = Loading()
    harness.executor.weights = "b" * 16
    with pytest.raises(VortexError, match="VS050") as error:
        harness.go()
    assert "a" * 16 in error.value.message and "b" * 16 in error.value.message
    harness.executor = Loading()
    assert harness.go().distinct_programs == 6


def test_an_engine_lost_for_good_is_in_the_log_and_the_campaign_goes_on(tmp_path: Path):
    class Losing(SimulatedExecutor):
        async def start(self, notice: Callable[[Notice], None]) -> list[dict[str, Any]]:
            notice(VortexError("VS008", "no memory on node 2", ""))
            return await super().start(notice)

    harness = Harness(tmp_path)
    harness.executor = Losing()
    state = harness.go()
    assert state.finished is not None
    assert [(e.stage, e.error["message"]) for e in state.infrastructure] == [
        ("engine", "no memory on node 2")
    ]


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
        assert state.finished.winner, "two thirds of the time left some for the finals"


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


def test_nothing_is_evaluated_twice_and_duplicates_reuse_results(tmp_path: Path):
    harness = Harness(tmp_path, config(limits={"candidates": 25}))
    state = harness.go()
    assert max(harness.executor.ran.values()) == 1
    assert kinds(harness.store).count("duplicate") > 0
    assert len(state.candidates) == len(set(state.candidates))


def test_crash_at_every_event_loses_and_repeats_nothing(tmp_path: Path):
    """Kill the driver after each event in turn, over and over, until the campaign is done."""
    whole = Harness(tmp_path / "whole", config(limits={"candidates": 6}))
    whole.go()

    harness = Harness(tmp_path / "crashing", whole.config)
    sessions = 0
    while "campaign_finished" not in kinds(harness.store):
        sessions += 1
        assert sessions < 400
        seen = {"new": 0}

        def crash_at_second_new_event(
            record: Record, state: CampaignState, seen: dict[str, int] = seen
        ) -> None:
            # The first two are always `session_started` and `engines_started`: with them alone there is no progress.
            seen["new"] += 1
            if seen["new"] == (4 if record.seq <= 4 else 3):
                raise Crash

        try:
            harness.go(crash_at_second_new_event)
        except Crash:
            continue
    records = list(harness.store.read())
    state = CampaignState.fold(records)

    stages = [
        (r.event.key, r.event.purpose, r.event.stage)
        for r in records
        if isinstance(r.event, ev.StageFinished)
    ]
    assert len(stages) == len(set(stages)), "a finished stage was recorded again"
    proposed = [r.event.proposal for r in records if isinstance(r.event, ev.Proposed)]
    assert len(proposed) == len(set(proposed)), "a proposal was paid for twice"
    finished = [(r.event.key, r.event.purpose) for r in records if isinstance(r.event, ev.CandidateFinished)]
    assert len(finished) == len(set(finished))
    # A journey in flight when the driver died may have run a stage unrecorded; none that is recorded.
    assert state.distinct_programs >= 6
    assert state.finished is not None
    assert state.sessions == sessions
    replayed = Archive(CampaignState.fold(records), harness.config.objective)
    assert replayed.rows() == Archive(state, harness.config.objective).rows()


@pytest.mark.parametrize("stop_at", range(3, 60, 4))
def test_one_crash_then_the_same_command(tmp_path: Path, stop_at: int):
    harness = Harness(tmp_path, config(limits={"candidates": 5}))

    def crash(record: Record, state: CampaignState) -> None:
        if record.seq == stop_at:
            raise Crash

    with pytest.raises(Crash):
        harness.go(crash)
    before = {
        (r.event.key, r.event.purpose, r.event.stage): r.event.result
        for r in harness.store.read()
        if isinstance(r.event, ev.StageFinished)
    }
    ran_before = dict(harness.executor.ran)
    state = harness.go()
    assert state.finished is not None
    for (key, purpose, stage), result in before.items():
        assert state.candidates[key].results[purpose][stage].to_json() == result
    recorded = {
        (r.event.key, r.event.stage, r.event.seed)
        for r in harness.store.read()
        if isinstance(r.event, ev.StageFinished) and r.seq <= stop_at
    }
    for (key, stage, seed), times in harness.executor.ran.items():
        if (key, stage, seed) in recorded:
            assert times == ran_before[key, stage, seed], "a recorded stage was run again"


def test_a_finished_run_goes_on_when_given_more(tmp_path: Path):
    harness = Harness(tmp_path)
    first = harness.go()
    harness.config = config(limits={"candidates": 14})
    second = harness.go()
    assert first.distinct_programs == 9
    assert second.distinct_programs == 14
    assert kinds(harness.store).count("finalists_chosen") == 2
    assert max(harness.executor.ran.values()) == 1


def test_a_refused_program_gets_one_repair(tmp_path: Path):
    harness = Harness(tmp_path, config(limits={"candidates": 25}))
    state = harness.go()
    rejected = [p for p in state.proposals.values() if p.outcome == "rejected"]
    repairs = [p for p in state.proposals.values() if p.repairs is not None]
    assert rejected
    assert {p.repairs for p in repairs} == {p.id for p in rejected if p.depth == 0}
    request = next(r for r in harness.proposer.requests if r.kind == "repair")
    assert request.failed is not None
    assert request.failed.error["code"] == "VF012"


def test_who_cannot_mend_is_not_asked_to(tmp_path: Path):
    harness = Harness(tmp_path, config(limits={"candidates": 25}))
    harness.proposer = SimulatedProposer()
    harness.proposer.repairs = False
    state = harness.go()
    assert any(p.outcome == "rejected" for p in state.proposals.values())
    assert all(p.repairs is None for p in state.proposals.values())


def test_a_lost_worker_is_retried_and_not_a_result(tmp_path: Path):
    harness = Harness(tmp_path)

    def fail(stage: str, key: str, attempt: int) -> None:
        if stage == "accuracy" and attempt == 1:
            raise lost()

    harness.executor.fail = fail
    state = harness.go()
    assert state.distinct_programs == 9
    assert len(state.infrastructure) > 9
    assert all("VS008" not in json.dumps(c.failure.to_json()) for c in state.found if c.failure)


def test_two_deadlines_passed_are_the_candidates_fault(tmp_path: Path):
    harness = Harness(tmp_path, config(limits={"candidates": 3}))
    victims: set[str] = set()

    def fail(stage: str, key: str, attempt: int) -> None:
        if stage == "accuracy" and len(harness.store._records) > 30 and (not victims or key in victims):
            victims.add(key)
            raise lost(timed_out=True)

    harness.executor.fail = fail
    state = harness.go()
    (victim,) = victims
    failure = state.candidates[victim].failure
    assert failure is not None
    assert failure.failure is not None
    assert failure.failure.error["code"] == "VS012"
    assert harness.executor.ran[victim, "accuracy", 1] == 2
    assert state.finished is not None


def test_who_kills_every_worker_is_stopped(tmp_path: Path):
    harness = Harness(tmp_path, config(limits={"candidates": 3}))
    victims: set[str] = set()

    def fail(stage: str, key: str, attempt: int) -> None:
        if stage == "accuracy" and len(harness.store._records) > 30 and (not victims or key in victims):
            victims.add(key)
            raise lost()

    harness.executor.fail = fail
    state = harness.go()
    failure = state.candidates[victims.pop()].failure
    assert failure is not None
    assert failure.failure is not None
    assert failure.failure.error["code"] == "VS014"


def test_who_kills_every_tracer_is_rejected_and_the_campaign_goes_on(tmp_path: Path):
    harness = Harness(tmp_path, config(limits={"candidates": 3}))
    trace, victims = harness.executor.trace, set[str]()

    async def dies(source: str) -> Flow:
        if not victims or source in victims:
            victims.add(source)
            raise lost()
        return await trace(source)

    harness.executor.trace = dies
    state = harness.go()
    assert state.finished is not None
    errors = [p.error for p in state.proposals.values() if p.error is not None and p.error["code"] == "VS014"]
    assert errors
    assert "3 times in stage trace" in errors[0]["message"]


def test_a_machine_without_a_jail_ends_the_campaign(tmp_path: Path):
    harness = Harness(tmp_path, config(limits={"candidates": 3}))

    async def refuse(source: str) -> Flow:
        raise mistakes.NO_JAIL.error(why="no filter")

    harness.executor.trace = refuse
    with pytest.raises(VortexError, match="VF095"):
        harness.go()


class _Broken(Proposer):
    name = "broken"

    def __init__(self, error: VortexError) -> None:
        self.error = error
        self.calls = 0

    async def propose(self, request: ProposalRequest) -> Proposal:
        self.calls += 1
        raise self.error


def test_a_dead_endpoint_pauses_the_campaign_instead_of_burning_it(tmp_path: Path):
    harness = Harness(tmp_path)
    paid = Usage(input_tokens=5, output_tokens=0, dollars=0.25, calls=1)
    harness.proposer = _Broken(ProposerError("VA014", "overloaded", "wait", usage=paid))
    with pytest.raises(VortexError) as error:
        harness.go()
    assert error.value.code == "VS009"
    assert harness.proposer.calls < 10
    assert kinds(harness.store)[-1] == "campaign_paused"
    harness.proposer = SimulatedProposer()
    state = harness.go()
    assert state.distinct_programs == 9
    assert state.spending["broken"].dollars == pytest.approx(0.25 * state.spending["broken"].failures)


@pytest.mark.parametrize("code", ["VA010", "VA011"])
def test_a_missing_key_stops_at_once(tmp_path: Path, code: str):
    harness = Harness(tmp_path)
    harness.proposer = _Broken(ProposerError(code, "no key", "set it"))
    with pytest.raises(VortexError) as error:
        harness.go()
    assert error.value.code == code
    assert harness.proposer.calls <= 3


def test_a_spent_budget_ends_the_search_and_keeps_what_was_paid(tmp_path: Path):
    class Spending(SimulatedProposer):
        async def propose(self, request: ProposalRequest) -> Proposal:
            if len(self.requests) >= 5:
                raise BudgetExceededError("VA030", "spent", "raise the cap")
            return await super().propose(request)

    harness = Harness(tmp_path)
    harness.proposer = Spending()
    state = harness.go()
    assert state.finished is not None
    assert state.finished.reason == "the proposer's budget: spent"
    assert all(c.status() != "waiting" for c in state.found)


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


def test_cancelling_is_a_clean_pause(tmp_path: Path):
    harness = Harness(tmp_path)
    harness.proposer = SimulatedProposer(delay=0.01)

    async def interrupted() -> None:
        task = asyncio.create_task(harness.campaign().run_to_end(STARTED, SESSION))
        await asyncio.sleep(0.05)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(interrupted())
    assert kinds(harness.store)[-1] == "campaign_paused"
    assert harness.executor.closed
    harness.executor = SimulatedExecutor()
    assert harness.go().distinct_programs == 9


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

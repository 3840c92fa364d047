"""What a campaign does about programs, workers, proposers and machines that fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agents.base import Proposal, ProposalRequest, Proposer, Usage
from agents.errors import BudgetExceededError, ProposerError
from search.executors.base import Notice
from search.simulation import SimulatedExecutor, SimulatedProposer, lost
from tests.null.search.harness import Harness, config, kinds
from vortex_core.errors import VortexError
from vortex_core.ir import mistakes
from vortex_core.ir.flow import Flow


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

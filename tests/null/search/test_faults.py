"""Whose fault it is decides what a campaign does: results, another try, giving a candidate up, stopping."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from agents.base import Proposal, ProposalRequest
from agents.ensemble import EnsembleProposer
from agents.errors import BudgetExceededError, ProposerError
from agents.providers.base import Endpoint
from agents.providers.failures import from_status
from evaluators.results import Failure, StageResult
from search.campaign.archive import Archive
from search.campaign.breaker import MOST, CircuitBreaker
from search.campaign.budget import NOTHING_NEW
from search.config import CampaignConfig
from search.errors import crashed
from search.executors.base import WorkerLostError
from search.log import events as ev
from search.log.state import CampaignState
from search.log.store import SqliteEventStore
from search.simulation import SimulatedExecutor, SimulatedProposer, lost, simulated_library
from tests.null.search.harness import Harness, config, kinds
from vortex_core.errors import VortexError
from vortex_core.ir.flow import Flow

FOUND_FAIL = "accuracy"
LIBRARY = {simulated_library(name, {})[0].key for name in ("dense", "quest", "block_topk")}


class Failing(SimulatedExecutor):
    """Gives typed failures for chosen candidates in the accuracy stage.

    Args:
        error: what they fail with.
        victims: how many of the candidates found fail; the library's never do.
    """

    def __init__(self, error: VortexError, victims: int) -> None:
        super().__init__()
        self.error = error
        self.most = victims
        self.victims: list[str] = []

    async def measure(self, stage: str, flow: Flow, seed: int) -> StageResult:
        result = await super().measure(stage, flow, seed)
        if stage != FOUND_FAIL or flow.key in LIBRARY or not result.passed:
            return result
        if flow.key not in self.victims and len(self.victims) < self.most:
            self.victims.append(flow.key)
        if flow.key not in self.victims:
            return result
        return StageResult(stage, passed=False, failure=Failure.of(self.error))


def harness_with(
    tmp_path: Path, executor: SimulatedExecutor, settings: CampaignConfig | None = None
) -> Harness:
    harness = Harness(tmp_path, settings)
    harness.executor = executor
    return harness


def infrastructure(code: str = "VV102", **facts: Any) -> VortexError:
    return VortexError(code, "the backend failed", "report it", fault="infrastructure", **facts)


@pytest.mark.parametrize(("retryable", "tries"), [(True, 3), (False, 1)])
def test_a_typed_infrastructure_failure_is_no_result_and_no_repair(
    tmp_path: Path, retryable: bool, tries: int
):
    executor = Failing(infrastructure(retryable=retryable), victims=1)
    harness = harness_with(tmp_path, executor)
    state = harness.go()
    (victim,) = executor.victims
    candidate = state.candidates[victim]
    assert candidate.status() == "infrastructure"
    assert candidate.failure is None
    assert candidate not in state.failed
    assert executor.ran[victim, "accuracy", 1] == tries
    assert candidate.abandoned["search"].error["code"] == "VV102"
    assert state.finished is not None  # the campaign went on
    assert all(p.repairs != candidate.proposal for p in state.proposals.values())
    assert kinds(harness.store).count("candidate_abandoned") == 1


def test_a_library_flow_that_was_given_up_is_shown_beside_the_ranking(tmp_path: Path):
    class QuestFails(SimulatedExecutor):
        async def measure(self, stage: str, flow: Flow, seed: int) -> StageResult:
            if flow.name == "quest" and stage == "accuracy":
                return StageResult(stage, passed=False, failure=Failure.of(infrastructure()))
            return await super().measure(stage, flow, seed)

    harness = harness_with(tmp_path, QuestFails())
    archive = Archive(harness.go(), harness.config.objective)
    (row,) = [row for row in archive.rows() if row["name"] == "quest"]
    assert (row["verdict"], row["gates"]) == ("given up at accuracy, not its fault", ["the backend failed"])


def test_the_next_session_tries_again_what_was_given_up(tmp_path: Path):
    executor = Failing(infrastructure(), victims=1)
    harness = harness_with(tmp_path, executor)
    harness.go()
    (victim,) = executor.victims
    executor.victims, executor.most = [], 0  # mended
    state = harness.go()
    assert state.candidates[victim].status() == "passed"
    assert state.candidates[victim].abandoned == {}


def test_the_same_infrastructure_error_from_three_candidates_stops_the_campaign(tmp_path: Path):
    error = infrastructure(place="vortex_core/engine/kv/cache.py:7 in write", log="host:/tmp/worker.err")
    executor = Failing(error, victims=99)
    harness = harness_with(tmp_path, executor)
    with pytest.raises(VortexError) as stopped:
        harness.go()
    assert stopped.value.code == "VS018"
    assert stopped.value.fault == "infrastructure"
    said = str(stopped.value)
    assert all(part in said for part in ("VV102", "the backend failed", error.place, error.log))
    assert len(executor.victims) == MOST
    (paused,) = [r.event for r in harness.store.read() if isinstance(r.event, ev.CampaignPaused)]
    assert paused.error is not None and paused.error["place"] == error.place


def test_different_places_are_different_failures():
    breaker = CircuitBreaker()
    for i in range(10):
        breaker.abandoned(f"c{i}", infrastructure(place=f"x.py:{i} in f"))
    for _ in range(10):
        breaker.abandoned("c1", infrastructure(place="x.py:1 in f"))  # one candidate, over and over
    breaker.abandoned("c8", infrastructure(place="x.py:1 in f"))
    with pytest.raises(VortexError, match="c1, c8, c9 ended"):
        breaker.abandoned("c9", infrastructure(place="x.py:1 in f"))


def test_deaths_count_in_a_row_only():
    breaker = CircuitBreaker()
    for i in range(10):
        breaker.killed(f"c{i}", "accuracy", lost().error)
        breaker.survived("accuracy")
    breaker.killed("c1", "accuracy", lost().error)
    breaker.killed("c2", "accuracy", lost().error)
    with pytest.raises(VortexError, match="VS018"):
        breaker.killed("c3", "accuracy", lost().error)


def test_a_worker_that_raised_three_times_is_not_a_worker_killer(tmp_path: Path):
    victims: set[str] = set()

    def fail(stage: str, key: str, attempt: int) -> None:
        if stage == "accuracy" and len(harness.store._records) > 30 and (not victims or key in victims):
            victims.add(key)
            raise WorkerLostError(crashed(ZeroDivisionError("by zero")), died=False)

    harness = Harness(tmp_path, config(limits={"candidates": 3}))
    harness.executor.fail = fail
    state = harness.go()
    candidate = state.candidates[victims.pop()]
    assert (candidate.status(), candidate.failure) == ("infrastructure", None)
    assert candidate.abandoned["search"].error["code"] == "VS019"
    assert "ZeroDivisionError: by zero" in candidate.abandoned["search"].error["message"]


@pytest.mark.parametrize("fault", ["user", "budget"])
def test_what_only_a_person_can_mend_stops_a_campaign_at_once(tmp_path: Path, fault: Any):
    executor = Failing(VortexError("VE010", "needs 9 tokens", "build it larger", fault=fault), victims=1)
    harness = harness_with(tmp_path, executor)
    with pytest.raises(VortexError, match="VE010"):
        harness.go()
    assert sum(n for (key, _, _), n in executor.ran.items() if key in executor.victims) <= 2


@pytest.mark.parametrize("died", [True, False])
def test_a_tracer_that_dies_on_every_try_ends_no_campaign(tmp_path: Path, died: bool):
    class Traced(SimulatedExecutor):
        bad = ""

        async def trace(self, source: str) -> Flow:
            self.bad = self.bad or source
            if source == self.bad:
                self.traced[source] += 1
                raise lost() if died else WorkerLostError(crashed(RecursionError("deep")), died=False)
            return await super().trace(source)

    harness = harness_with(tmp_path, Traced())
    state = harness.go()
    assert state.finished is not None
    refused = [p for p in state.proposals.values() if p.error and p.error["code"] in ("VS014", "VS019")]
    assert refused[0].error is not None
    assert refused[0].error["fault"] == ("candidate" if died else "infrastructure")
    assert harness.executor.traced[harness.executor.bad] >= 3  # type: ignore[attr-defined]
    repairs = [p for p in state.proposals.values() if p.repairs == refused[0].id]
    assert bool(repairs) == died  # nobody pays for mending what is not the author's


# ---- proposers


class Member(SimulatedProposer):
    """Fails with an error, always."""

    def __init__(self, name: str, error: ProposerError) -> None:
        super().__init__(name)
        self.error = error
        self.asked = 0

    async def propose(self, request: ProposalRequest) -> Proposal:
        self.asked += 1
        raise ProposerError(self.error.code, self.error.message, usage=self.error.usage)


def with_ensemble(tmp_path: Path, *members: SimulatedProposer) -> Harness:
    harness = Harness(tmp_path, config(limits={"candidates": 30}, proposer_patience=8))
    harness.proposer = EnsembleProposer(members)
    return harness


def test_a_member_that_always_fails_is_asked_less(tmp_path: Path):
    endpoint = Endpoint("http://x", None, "KEY")
    bad = Member("bad", from_status(529, "overloaded", "bad", endpoint, attempts=2))
    good = SimulatedProposer("good")
    state = with_ensemble(tmp_path, good, bad).go()
    assert 1 <= bad.asked < len(good.requests) / 2
    assert state.spending["bad"].failures == bad.asked
    assert "good,bad" not in state.spending
    assert state.spending["bad"].unpriced == 0  # a refused request has a price, and it is nothing
    assert state.spending["bad"].dollars == 0


def test_a_member_with_a_typo_stops_nothing_while_another_works(tmp_path: Path):
    typo = Member("typo", ProposerError("VA018", "no such model"))
    harness = with_ensemble(tmp_path, SimulatedProposer("good"), typo)
    state = harness.go()
    assert typo.asked == 1
    assert state.finished is not None
    (failed,) = [r.event for r in harness.store.read() if isinstance(r.event, ev.ProposalFailed)]
    assert (failed.proposer, failed.error["code"]) == ("typo", "VA018")


def test_if_none_is_left_the_error_stops_the_campaign(tmp_path: Path):
    members = [Member(name, ProposerError("VA018", f"no model {name}")) for name in ("a", "b")]
    harness = with_ensemble(tmp_path, *members)
    with pytest.raises(VortexError, match="VA018"):
        harness.go()
    assert all(1 <= m.asked <= 2 for m in members)  # three asks were under way at once


def test_a_resumed_bandit_knows_what_it_knew(tmp_path: Path):
    def ensemble() -> EnsembleProposer:
        return EnsembleProposer([SimulatedProposer("good"), Member("bad", ProposerError("VA014", "down"))])

    harness = Harness(tmp_path, config(limits={"candidates": 20}, proposer_patience=8))
    harness.proposer = first = ensemble()
    harness.go()
    harness.proposer = second = ensemble()
    harness.campaign()  # folds the log
    assert vars(first._arms["bad"]) | {"proposer": None} == vars(second._arms["bad"]) | {"proposer": None}


def test_an_exhausted_proposer_ends_the_search_with_finals(tmp_path: Path):
    class Exhausted(SimulatedProposer):
        async def propose(self, request: ProposalRequest) -> Proposal:
            if len(self.requests) >= 8:
                raise ProposerError("VA024", "nothing new in 80 drafts", "raise tries")
            return await super().propose(request)

    harness = Harness(tmp_path, config(limits={"candidates": 500}))
    harness.proposer = Exhausted()
    state = harness.go()
    assert state.finished is not None
    assert state.finished.reason == f"nothing new in {NOTHING_NEW} proposals"
    assert state.finalists


def test_asks_that_found_nothing_new_do_not_end_a_search_in_which_others_do(tmp_path: Path):
    class Poor(SimulatedProposer):
        async def propose(self, request: ProposalRequest) -> Proposal:
            proposal = await super().propose(request)
            if len(self.requests) % 12:
                raise ProposerError("VA024", "nothing new in 16 drafts", "raise tries")
            return proposal

    harness = Harness(tmp_path, config(limits={"candidates": 6}))
    harness.proposer = Poor()
    state = harness.go()
    assert state.finished is not None
    assert state.finished.reason == "6 distinct programs"


def test_a_spent_member_leaves_the_money_of_others_alone(tmp_path: Path):
    class Spent(Member):
        async def propose(self, request: ProposalRequest) -> Proposal:
            self.asked += 1
            raise BudgetExceededError("VA030", "spent", "raise the cap")

    spent = Spent("spent", ProposerError("VA030", "spent"))
    state = with_ensemble(tmp_path, SimulatedProposer("good"), spent).go()
    assert spent.asked == 1
    assert state.finished is not None and "distinct programs" in state.finished.reason


# ---- the log


def test_a_locked_or_full_log_is_a_typed_error(tmp_path: Path):
    store = SqliteEventStore(tmp_path / "events.sqlite")
    store.append(ev.SessionStarted(1, {}))
    other = sqlite3.connect(tmp_path / "events.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store._db.execute("PRAGMA busy_timeout=10")
    with pytest.raises(VortexError, match=r"VS017.*locked") as locked:
        store.append(ev.SessionStarted(2, {}))
    assert (locked.value.fault, locked.value.retryable) == ("infrastructure", True)
    other.execute("ROLLBACK")
    store.append(ev.SessionStarted(3, {}))
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count={pages}")  # as on a full disk
    with pytest.raises(VortexError, match=r"VS017.*full"):
        store.append(*(ev.SessionStarted(4, {"padding": "x" * 500}) for _ in range(100)))
    assert [r.event.pid for r in store.read() if isinstance(r.event, ev.SessionStarted)] == [1, 3]
    store.close()


def test_a_run_folder_that_cannot_be_written_is_a_typed_error(tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(VortexError, match="VS017"):
        SqliteEventStore(tmp_path / "file" / "events.sqlite")


def test_a_campaign_whose_log_is_full_ends_with_that_error(tmp_path: Path):
    harness = Harness(tmp_path)
    append = harness.store.append
    full = VortexError("VS017", "events.sqlite cannot be written: disk is full", "free space")

    def write(*new: ev.Event) -> Any:
        if len(harness.store._records) > 40:
            raise full
        return append(*new)

    harness.store.append = write  # type: ignore[method-assign]
    with pytest.raises(VortexError) as stopped:
        harness.go()
    assert stopped.value is full
    assert harness.executor.closed
    harness.store.append = append  # type: ignore[method-assign]
    state: CampaignState = harness.go()
    assert state.finished is not None

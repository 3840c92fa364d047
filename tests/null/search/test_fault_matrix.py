"""The fault matrix, its fast part: each fault at each stage leaves the results of an undisturbed run, paid for once.

Without processes: an executor that fails as workers do. Real ones are in `tests/chaos` (`make chaos`).
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agents.base import Proposal, ProposalRequest, Proposer, Usage
from search.campaign.campaign import Campaign
from search.config import CampaignConfig
from search.errors import engine_lost
from search.executors.base import Left, WorkerLostError
from search.log import events as ev
from search.log.files import ContentStore
from search.log.lock import steady_clock
from search.log.run import SECRET, Run
from search.log.state import CampaignState
from search.log.store import MemoryEventStore, Record, SqliteEventStore
from search.simulation import Crash, SimulatedExecutor, simulated_library
from vortex_core.device_errors import DeviceLostError, translate
from vortex_core.errors import Replacement, VortexError
from vortex_core.ir.flow import Flow

CONFIG = CampaignConfig.model_validate(
    {
        "references": ["dense", "quest", "block_topk"],
        "objective": {"gates": [{"metric": "accuracy_delta", "at_least": -0.25}], "margin": 0.1},
        "arms": [{"name": "random", "strategy": {"kind": "random"}}],
        "limits": {"candidates": 1000, "evaluations": 20},
    }
)
STAGES = ("static", "accuracy", "modelled", "holdout")


class Numbered(Proposer):
    """The answer to an ask depends on its seed alone, so the set of programs does not depend on who finished first."""

    name = "numbered"
    repairs = False

    async def propose(self, request: ProposalRequest) -> Proposal:
        if request.book is not None:
            request.book(self.name, 10, 0.01)
        x = round(request.seed % 997 / 997, 2)
        name = "x" if request.seed % 2 else "X"
        return Proposal(json.dumps({name: x}), "", self.name, Usage(calls=1, dollars=0.01))


class Executor(SimulatedExecutor):
    """Refuses programs that misspell `x`, and says what to write instead: the pipeline mends them itself."""

    async def trace(self, source: str) -> Flow:
        if "X" in source:
            error = VortexError("VF012", "X is not known", "write x")
            error.replacement = Replacement(1, 1, source.replace("X", "x"))
            raise error
        return await super().trace(source)


class Bench:
    """A run over several sessions."""

    def __init__(self, folder: Path, store: Any = None) -> None:
        self.store = store or MemoryEventStore(clock=iter(range(10**9)).__next__)
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SECRET).write_text("7")  # sealed items are made from it: runs that are compared share it

    def session(
        self, executor: SimulatedExecutor, watch: Callable[..., None] = lambda r, s: None
    ) -> CampaignState:
        import asyncio

        files = ContentStore(self.store.texts, self.folder / "files")
        campaign = Campaign(
            Run("r", self.folder, self.store, files), CONFIG, executor, {"random": Numbered()}, seed=1,
            model={}, library=simulated_library, watch=watch,
        )  # fmt: skip
        return asyncio.run(
            campaign.run_to_end(ev.CampaignStarted("r", {}, {}, {}, {}), ev.SessionStarted(1, {}))
        )

    def results(self) -> dict[Any, Any]:
        """By candidate, purpose and stage; each recorded once, each proposal paid for once."""
        events = [record.event for record in self.store.read()]
        proposed = [e.proposal for e in events if isinstance(e, ev.Proposed)]
        assert len(set(proposed)) == len(proposed), "paid for twice"
        found = [e for e in events if isinstance(e, ev.StageFinished)]
        by = {
            (e.key, e.purpose, e.stage): {k: v for k, v in e.result.items() if k != "seconds"} for e in found
        }
        assert len(by) == len(found), "measured twice"
        return by


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    bench = Bench(tmp_path_factory.mktemp("undisturbed"))
    bench.session(Executor())
    found = bench.results()
    assert {stage for _, _, stage in found} == set(STAGES)
    return found


def killed() -> Exception:
    return WorkerLostError(engine_lost("the actor died unexpectedly"))


def hung() -> Exception:
    return WorkerLostError(engine_lost("stage was killed after 120 s"), timed_out=True)


def host_memory() -> Exception:
    return WorkerLostError(engine_lost("its machine ran out of memory, and Ray killed it"))


def gpu_memory() -> Exception:
    found = translate(RuntimeError("CUDA error: out of memory"), "the worker", flow=False)
    assert found is not None and found.fault == "infrastructure"
    return WorkerLostError(found, died=False)


def device_lost() -> Exception:
    return WorkerLostError(
        DeviceLostError("CUDA error: an illegal memory access", "a new process"), died=False
    )


def node() -> Exception:
    return WorkerLostError(engine_lost("the node of node2 gpu0 is gone"))


@pytest.mark.parametrize("stage", [*STAGES, "trace"])
@pytest.mark.parametrize(
    "fault", [killed, hung, host_memory, gpu_memory, device_lost, node], ids=lambda f: f.__name__
)
def test_a_fault_of_a_worker_leaves_no_trace_in_the_results(
    undisturbed: dict[Any, Any], tmp_path: Path, fault: Callable[[], Exception], stage: str
):
    class Faulty(Executor):
        async def trace(self, source: str) -> Any:
            if stage == "trace" and not self.traced[source]:
                self.traced[source] += 1
                raise fault()
            return await super().trace(source)

    def once(at: str, key: str, attempt: int) -> None:
        if at == stage and attempt == 1:
            raise fault()

    bench = Bench(tmp_path)
    state = bench.session(Faulty(once, lanes=3))
    assert bench.results() == undisturbed
    assert {e.stage for e in state.infrastructure} == {stage}


LEFT_BEHIND = {
    "infrastructure_failed", "candidate_abandoned", "rejected", "engine_joined", "engine_left", "proposal_failed",
    "campaign_paused", "campaign_finished",
}  # fmt: skip
# This campaign has no screen: `test_screened.py` kills drivers there.
ELSEWHERE = {"promoted", "peers_considered"}
EVENTS = sorted(set(ev.kinds()) - LEFT_BEHIND - ELSEWHERE)


@pytest.mark.parametrize("kind", EVENTS)
def test_a_driver_killed_at_an_event_of_any_type(undisturbed: dict[Any, Any], tmp_path: Path, kind: str):
    bench, died = Bench(tmp_path), []

    def kill(record: Record, state: CampaignState) -> None:
        if record.event.kind == kind and not died:
            died.append(kind)
            raise Crash

    with pytest.raises(Crash):
        bench.session(Executor(lanes=3), kill)
    bench.session(Executor(lanes=3))
    assert died and bench.results() == undisturbed


def test_every_event_type_has_its_fault():
    """Those left out above are themselves what a fault leaves behind, or the last word."""
    assert len(EVENTS) == len(ev.kinds()) - len(LEFT_BEHIND) - len(ELSEWHERE)


@pytest.mark.parametrize("after", [12, 30, 60])
@pytest.mark.parametrize("fault", ["disk full", "database locked"])
def test_a_log_that_cannot_be_written_stops_the_campaign_and_the_same_command_goes_on(
    undisturbed: dict[Any, Any], tmp_path: Path, fault: str, after: int
):
    store = SqliteEventStore(tmp_path / "events.sqlite")
    store.durable(False)
    store._db.execute("PRAGMA busy_timeout=10")
    other = sqlite3.connect(tmp_path / "events.sqlite", isolation_level=None)
    bench, struck = Bench(tmp_path, store), []

    def strike(record: Record, state: CampaignState) -> None:
        if record.seq >= after and not struck:
            struck.append(record.seq)
            if fault == "disk full":
                pages = store._db.execute("PRAGMA page_count").fetchone()[0]
                store._db.execute(f"PRAGMA max_page_count={pages}")
            else:
                other.execute("BEGIN IMMEDIATE")

    with pytest.raises(VortexError) as stopped:
        bench.session(Executor(), strike)
    assert (stopped.value.code, stopped.value.retryable) == ("VS017", True)
    if fault == "disk full":
        store._db.execute("PRAGMA max_page_count=1000000")
    else:
        other.execute("ROLLBACK")
    bench.session(Executor())
    assert bench.results() == undisturbed
    store.close()
    other.close()


def test_a_disk_that_fails_behind_the_driver_stops_the_campaign_and_the_same_command_goes_on(
    undisturbed: dict[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bench = Bench(tmp_path, SqliteEventStore(tmp_path / "events.sqlite"))
    struck: list[int] = []

    def fail(file: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def strike(record: Record, state: CampaignState) -> None:
        if record.seq == 30:
            struck.append(record.seq)
            monkeypatch.setattr(os, "fsync", fail)

    with pytest.raises(VortexError, match="Input/output error") as stopped:
        bench.session(Executor(), strike)
    assert struck and stopped.value.code == "VS017"
    monkeypatch.undo()
    bench.store.close()
    bench.store = SqliteEventStore(tmp_path / "events.sqlite")
    bench.session(Executor())
    assert bench.results() == undisturbed
    bench.store.close()


@pytest.mark.parametrize("step", [-3600.0, 3600.0])
def test_a_clock_that_steps(undisturbed: dict[Any, Any], tmp_path: Path, step: float):
    """Between sessions, as after a suspended machine; within one the clock is not asked (test_log_clocks)."""
    path = tmp_path / "events.sqlite"
    bench = Bench(tmp_path, SqliteEventStore(path))

    def kill(record: Record, state: CampaignState) -> None:
        if record.seq == 40:
            raise Crash

    with pytest.raises(Crash):
        bench.session(Executor(), kill)
    before = CampaignState.fold(bench.store.read()).active_seconds
    bench.store.close()
    bench.store = SqliteEventStore(path, clock=lambda: steady_clock() + step)
    state = bench.session(Executor())
    assert bench.results() == undisturbed
    assert before <= state.active_seconds < before + 120
    bench.store.close()


def test_engines_that_leave_take_nothing_along(undisturbed: dict[Any, Any], tmp_path: Path):
    class Shrinking(Executor):
        async def start(self, notice: Any) -> list[dict[str, Any]]:
            self.notice = notice
            return await super().start(notice)

    def leave(record: Record, state: CampaignState) -> None:
        if executor.lanes > 1 and isinstance(record.event, ev.CandidateFinished):
            executor.lanes -= 1
            executor.notice(Left("simulated", engine_lost("its node is gone"), True, {}))

    executor = Shrinking(lanes=4)
    bench = Bench(tmp_path)
    bench.session(executor, leave)
    assert bench.results() == undisturbed

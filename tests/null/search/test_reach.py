"""However slow a machine is, something is searched, answered and stated on fresh items."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from evaluators.plan import load_plan
from search.campaign.reach import LITTLE, left_out, within_reach
from search.config import CampaignConfig, load_campaign
from search.executors.base import StageRun
from search.log import events as ev
from search.log.state import CampaignState
from search.simulation import SimulatedExecutor
from tests.null.search.harness import Harness, config
from vortex_core.ir.flow import Flow

SECONDS = 6.0


class Slow(SimulatedExecutor):
    """Takes for each step the share of a run's time that it takes on a tenth of two cores.

    Args:
        recording: share of it until programs can be screened.
    """

    def __init__(self, recording: float) -> None:
        super().__init__()
        self.recording = recording

    async def record(self, seed: int) -> None:
        await asyncio.sleep(self.recording * SECONDS)
        await super().record(seed)

    async def reference(self, purpose: ev.Purpose, seed: int, known: dict[str, Any] | None) -> dict[str, Any]:
        await asyncio.sleep(0.02 * SECONDS if purpose == "search" else 0.15 * SECONDS)
        return await super().reference(purpose, seed, known)

    async def run_stage(self, stage: str, flow: Flow, seed: int) -> StageRun:
        await asyncio.sleep((0.04 if self.needs_engine(stage) else 0.004) * SECONDS)
        return await super().run_stage(stage, flow, seed)


def slow_run(
    tmp_path: Path,
    share: float,
    accuracy_gate: float = -0.25,
    recording: float = 0.42,
    *,
    control_first: bool = False,
) -> CampaignState:
    settings = config(
        references=["dense", "quest", "block_topk"],
        objective={"gates": [{"metric": "accuracy_delta", "at_least": accuracy_gate}], "margin": 0.1},
        screen={"full": 4, "answers": 2, "gates": [{"metric": "screen_beyond", "at_least": 1.01}]},
        limits={"candidates": 40, "seconds": SECONDS, "finals_seconds": 0.4 * SECONDS},
        arms=[
            {"name": "search", "strategy": {"kind": "evolve", "size": 32}, "share": 3},
            {"name": "random", "strategy": {"kind": "random"}, "control": True},
        ],
        finals={"peers": 0},
    )
    if control_first:  # the first asks, and so the first answer, are the control's
        arms = [arm.model_copy(update={"share": 1.0 if arm.control else 0.01}) for arm in settings.arms]
        settings = settings.model_copy(update={"arms": tuple(arms)})
    harness = Harness(tmp_path, within_reach(settings, share))
    harness.executor = Slow(recording)
    return harness.go()


def stated(state: CampaignState) -> str:
    assert state.finished is not None
    return str(state.finished.summary["statement"])


def test_a_tenth_of_the_cores_searches_answers_and_states(tmp_path: Path):
    state = slow_run(tmp_path, 0.1)
    assert state.screened_programs >= 5
    assert any(c.status("search") == "passed" for c in state.found)
    assert any(c.status("fresh") == "passed" for c in state.found)
    rival = next(c for c in state.candidates.values() if c.reference and c.status("fresh") == "passed")
    assert not rival.is_dense, "a library flow that had no time to answer before meets the fresh items"
    assert state.winner is not None and rival.name.split()[0] in stated(state)


def test_what_keeps_no_gate_is_stated_on_fresh_items_too(tmp_path: Path):
    state = slow_run(tmp_path, 0.1, accuracy_gate=1.0)
    assert any(c.status("fresh") == "passed" for c in state.found)
    assert state.winner is None
    assert stated(state).startswith("No found program kept the accuracy gates on fresh items")


def test_what_answers_is_the_searchs_not_the_controls(tmp_path: Path):
    state = slow_run(tmp_path, 0.1, control_first=True)
    assert {c.arm for c in state.found} == {"search"}
    assert any(c.status("fresh") == "passed" for c in state.found)


def test_where_reading_the_prompts_takes_all_the_time_one_program_answers_all_the_same(tmp_path: Path):
    state = slow_run(tmp_path, 0.1, recording=1.0)
    answered = [c for c in state.found if c.status("search") == "passed"]
    assert answered
    assert any(c.status("fresh") == "passed" for c in answered)
    rivals = [c for c in state.candidates.values() if c.reference and c.status("fresh") != "waiting"]
    assert not rivals, "only what is to be stated in any case overruns the time"
    assert state.winner is not None and "left_out" in state.finished.summary


def test_with_all_items_the_gates_of_the_screen_stand(tmp_path: Path):
    state = slow_run(tmp_path, 1.0)
    assert state.screened_programs >= 5
    assert not any(c.promoted for c in state.found)


def test_what_is_left_out_and_that_it_is_said():
    whole, plan = load_campaign("default"), load_plan("screened")
    assert whole.screen is not None
    assert within_reach(whole, LITTLE) is whole
    assert left_out(whole, plan, 1.0) == ""
    assert "second model" not in left_out(whole, plan, LITTLE)
    less = within_reach(whole, 0.1)
    assert less.screen is not None and not less.screen.models and not less.screen.gates
    assert less.screen.most_state == whole.screen.most_state
    assert less.objective == whole.objective
    assert less.finals.second is None and less.finals.anyway
    assert [arm.name for arm in less.arms] == ["search"]
    assert within_reach(less, 0.1) == less
    words = left_out(whole, plan, 0.1)
    assert words.startswith("1 item is asked instead of 16") and "second model" in words
    unscreened = CampaignConfig.model_validate(
        {"arms": [{"name": "a", "strategy": {"kind": "random"}}], "written_for": 600}
    )
    assert within_reach(unscreened, 0.05) is unscreened

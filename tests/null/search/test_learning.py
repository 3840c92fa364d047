"""What a campaign learns and keeps: free repairs, the better of two models, lessons, and a recording to replay."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from agents.base import CHANGES, Lesson, Proposal, ProposalRequest, Proposer, Usage
from agents.ensemble import EnsembleProposer
from agents.errors import ProposerError
from search.campaign.campaign import Campaign
from search.campaign.lessons import EVERY, Lessons, carried, traits
from search.campaign.replay import Recording, ReplayProposer
from search.log import events as ev
from search.log.run import Run
from search.simulation import SimulatedExecutor, simulated_library
from tests.null.flow.test_mending import MENDED
from tests.null.search.harness import SESSION, STARTED, Harness, config
from vortex_core import library
from vortex_core.ir.flow import Flow
from vortex_core.sandbox.jail import run as trace_here


class RealTracer(SimulatedExecutor):
    """Traces programs as they are, in this process."""

    async def trace(self, source: str) -> Flow:
        return trace_here(source, "flow.py").flow


def test_programs_with_one_error_are_mended_without_asking_anyone(tmp_path: Path):
    harness = Harness(tmp_path)
    harness.executor = RealTracer()
    campaign = harness.campaign()
    campaign.record(STARTED, SESSION)
    outcomes = []
    for number, (code, source, _) in enumerate(MENDED, 1):
        campaign.record(ev.Asked(number, "evolve", "seed", (), number, "scripted"))
        campaign.record(ev.Proposed(number, harness.files.put(source, ".py"), "", "scripted", 0.0))
        asyncio.run(campaign.pipeline.trace(campaign.state.proposals[number]))
        outcomes.append((code, campaign.state.proposals[number].outcome))
    recovered = [code for code, outcome in outcomes if outcome in ("admitted", "duplicate")]
    assert len(MENDED) >= 40
    assert len(recovered) >= 0.95 * len(MENDED), [o for o in outcomes if o[1] == "rejected"]
    mended = [r.event for r in harness.store.read() if isinstance(r.event, ev.Mended)]
    assert {code for event in mended for code in event.codes} >= set(recovered)


class Skilled(Proposer):
    """A model that brings something in a share of its proposals, and for some kinds of change only."""

    changes = CHANGES

    def __init__(self, name: str, skill: float, *, good_at: str = "") -> None:
        self.name = name
        self.skill = skill
        self.good_at = good_at

    async def propose(self, request: ProposalRequest) -> Proposal:
        if self.skill == 0:
            raise ProposerError("VA021", "declined", "", usage=Usage(10, 10, 0.02, 1))
        return Proposal("source", "", self.name, Usage(10, 10, 0.02, 1), kind=request.kind)


def play(
    team: EnsembleProposer, skills: dict[str, Skilled], asks: int, seed: int
) -> list[tuple[str, str, float]]:
    """Ask and tell in turn; returns who was asked for what, and the gain."""
    rng, log = random.Random(seed), []
    for n in range(asks):
        try:
            answer = asyncio.run(team.propose(ProposalRequest(kind="mutate", seed=n)))
            who, kind = answer.proposer, answer.kind
        except ProposerError as error:
            who, kind = error.proposer, error.kind
        skilled = skills[who]
        chance = skilled.skill * (1 if kind == skilled.good_at or not skilled.good_at else 0.2)
        gain = 0.1 if rng.random() < chance else 0.0
        team.tell(who, gain, 0.02, kind)
        log.append((who, kind, gain))
    return log


@pytest.mark.parametrize("seed", range(5))
def test_the_better_of_two_models_is_found_within_sixty_calls(seed: int):
    skills = {"good": Skilled("good", 0.4), "weak": Skilled("weak", 0.1)}
    log = play(EnsembleProposer(list(skills.values())), skills, 120, seed)
    assert sum(who == "good" for who, _, _ in log[60:]) >= 40


def test_a_model_that_always_fails_is_hardly_asked():
    skills = {"good": Skilled("good", 0.4), "fails": Skilled("fails", 0.0)}
    log = play(EnsembleProposer(list(skills.values())), skills, 100, 1)
    assert sum(who == "fails" for who, _, _ in log) <= 20


def test_the_kind_of_change_that_brings_most_is_asked_most():
    skills = {"one": Skilled("one", 0.6, good_at="diff")}
    log = play(EnsembleProposer(list(skills.values())), skills, 200, 1)
    asked = [kind for _, kind, _ in log]
    assert max(set(asked), key=asked.count) == "diff"
    assert set(asked) == set(CHANGES), "every kind is tried"


def test_what_the_bandit_knows_survives_a_resume_and_a_changed_list():
    skills = {"good": Skilled("good", 0.5), "weak": Skilled("weak", 0.05)}
    first = EnsembleProposer(list(skills.values()))
    log = play(first, skills, 60, 3)
    second = EnsembleProposer([*skills.values(), Skilled("new", 0.5)])
    third = EnsembleProposer([skills["good"]])
    for who, kind, gain in log:
        second.tell(who, gain, 0.02, kind)
        third.tell(who, gain, 0.02, kind)
    assert second.choose() == "new", "who was never asked comes first"
    assert third.change("good") == first.change("good")


# ---- recordings --------------------------------------------------------------------------------------------


def sources(harness: Harness) -> list[tuple[int, str]]:
    return [(e.proposal, e.source) for r in harness.store.read() if isinstance(e := r.event, ev.Proposed)]


def recording_of(harness: Harness) -> Recording:
    recording = Recording("sim", STARTED)
    for record in harness.store.read():
        match record.event:
            case ev.Asked() as ask:
                recording.asks[ask.proposal] = ask
            case ev.Proposed() as answer:
                recording.answers[answer.proposal] = answer
                recording.sources[answer.proposal] = harness.files.get(answer.source, ".py")
            case ev.ProposalFailed() as failure:
                recording.answers[failure.proposal] = failure
    return recording


def test_a_recording_is_replayed_with_the_same_programs_in_the_same_order(tmp_path: Path):
    first = Harness(tmp_path / "a", config(limits={"candidates": 14}))
    state = first.go()
    recording = recording_of(first)
    again = Harness(tmp_path / "b", config(limits={"candidates": 14}))
    again.executor = SimulatedExecutor(lanes=3, delay=0.001)  # another machine: what overlaps differs
    campaign = Campaign(
        Run("again", tmp_path, again.store, again.files),
        again.config,
        again.executor,
        dict.fromkeys(("evolve", "random"), ReplayProposer(recording)),
        seed=1,
        model={"name": "sim"},
        library=simulated_library,
        recording=recording,
    )
    replayed = asyncio.run(campaign.run_to_end(STARTED, SESSION))
    told = dict(sources(first))
    repeated = dict(sources(again))
    assert repeated == {number: told[number] for number in repeated}
    assert list(repeated) == sorted(repeated)
    assert len(repeated) >= len(told) - 3, "the limit on candidates may be reached a few journeys earlier"
    assert replayed.finished is not None
    assert replayed.dollars == 0 < state.dollars
    assert set(replayed.candidates) <= set(state.candidates)


# ---- lessons ------------------------------------------------------------------------------------------------


def test_traits_are_words_about_a_program():
    quest = traits(library.load("quest").flow)
    assert {"per-channel maxima", "per-channel minima", "2 states"} <= quest
    assert "per-channel maxima" not in traits(library.load("block_topk").flow)


def test_lessons_rest_on_children_and_change_with_results(tmp_path: Path):
    harness = Harness(tmp_path, config(limits={"candidates": 3 * EVERY}))
    state = harness.go()
    lessons = Lessons(harness.files, harness.config)
    found = lessons.now(state)
    for lesson in found:
        assert 0 < lesson.confidence < 1
        assert lesson.confidence == (lesson.helped + 1) / (lesson.tried + 2)
        assert len(lesson.evidence) == lesson.tried
    parents = {k for c in state.candidates.values() for k in c.parents}
    assert parents, "nothing had a parent"
    other = carried((Lesson("knob budget lowered: good", 9, 8, 9 / 11, ("c001",)),), "old")
    assert Lessons(harness.files, harness.config, other).now(state)[-1].source == "old"


def test_knobs_that_the_campaign_gives_are_no_change_of_an_author(tmp_path: Path):
    wide = {"flow": "quest", "knobs": {"budget": "512"}}
    changes = {"knobs": {"budget": "128"}, "references": ["dense", wide], "limits": {"candidates": 4 * EVERY}}
    harness = Harness(tmp_path, config(**changes))
    state = harness.go()
    (quest,) = [c for c in state.candidates.values() if c.knobs["budget"] == "512"]
    children = {c.label for c in state.found if quest.key in c.parents}
    assert len(children) >= 2
    lessons = Lessons(harness.files, harness.config).now(state)
    assert not children & {label for lesson in lessons for label in lesson.evidence}


def test_lessons_reach_proposers_that_read(tmp_path: Path):
    known = (Lesson("knob budget lowered: accuracy -0.1", 9, 2, 3 / 11, ("c001",), "old"),)
    harness = Harness(tmp_path)
    campaign = Campaign(
        Run("sim", tmp_path, harness.store, harness.files),
        harness.config,
        harness.executor,
        {arm.name: harness.proposer for arm in harness.config.arms},
        seed=1,
        model={"name": "sim"},
        library=simulated_library,
        carried=known,
    )
    asyncio.run(campaign.run_to_end(STARTED, SESSION))
    heard: list[Any] = [request.lessons for request in harness.proposer.requests]
    assert all(known[0] in lessons for lessons in heard)

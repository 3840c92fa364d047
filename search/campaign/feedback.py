"""What flows back to whoever writes the next program: parents with their measurements, goals, dead ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agents.base import Attempt, Booking, FailedAttempt, Lesson, Parent, ProposalRequest
from search.campaign.archive import score
from search.campaign.landscape import setting, standings
from search.campaign.strategies.base import Outcome, Tell
from search.config import Objective
from search.log.files import ContentStore
from search.log.state import CampaignState, Candidate, Proposal
from vortex_core.errors import VortexError

_LEDGER_LENGTH = 40


def make_request(
    proposal: Proposal,
    state: CampaignState,
    files: ContentStore,
    objective: Objective,
    model: dict[str, Any],
    *,
    in_words: bool,
    alone: bool = False,
    lessons: tuple[Lesson, ...] = (),
    book: Booking | None = None,
) -> ProposalRequest:
    """The request that an ask stands for.

    Args:
        in_words: whether the proposer reads words: only then it is worth saying where the search stands.
        alone: whether it hears of its own arm's candidates and the library only: a control does not learn from the
            search that it is compared with.
        lessons: what changes brought so far.
        book: told of every call before it is sent.
    """
    failed, arm = None, proposal.arm if alone else None
    if proposal.repairs is not None:
        broken = state.proposals[proposal.repairs]
        assert broken.source is not None
        failed = FailedAttempt(files.get(broken.source, ".py"), repair_error(broken, state) or {})
    return ProposalRequest(
        kind=proposal.request,  # type: ignore[arg-type]  # a RequestKind that went through JSON
        seed=proposal.seed,
        parents=tuple(make_parent(state.candidates[key], files) for key in proposal.parents),
        failed=failed,
        model=model,
        objective=objective_in_words(objective),
        ledger=ledger(state, objective, arm),
        tried=state.candidates.keys(),
        setting=setting(state, objective) if in_words else "",
        standings=standings(state, objective, proposal.parents, arm) if in_words else (),
        lessons=lessons,
        number=proposal.id,
        book=book,
    )


def make_parent(candidate: Candidate, files: ContentStore) -> Parent:
    """A candidate as a proposer sees it."""
    flow = candidate.flow(files)
    return Parent(
        flow=replace(flow, name=f"{candidate.label} {candidate.name}"),
        source=files.get(candidate.source, ".py"),
        metrics={name: metric.to_json() for name, metric in candidate.metrics().items()},
        info=candidate.info(),
    )


def objective_in_words(objective: Objective) -> str:
    """The objective for a prompt."""
    gates = [
        f"{g.metric} >= {g.at_least:g}" if g.at_least is not None else f"{g.metric} <= {g.at_most:g}"
        for g in objective.gates
    ]
    behind = f" while keeping {' and '.join(gates)}" if gates else ""
    return (
        f"Raise {objective.speed} (ratio to dense attention) and {objective.accuracy}{behind}. "
        "Results form a Pareto front; no single score is used."
    )


def ledger(state: CampaignState, objective: Objective, arm: str | None = None) -> tuple[Attempt, ...]:
    """The latest dead ends, the newest last: candidates that a stage stopped, each with its knobs and numbers.

    A candidate is a program under its knobs: what failed with 64 tokens may be good with 512.

    Args:
        arm: whose; None is everybody's.
    """
    failed = state.failed if arm is None else [c for c in state.failed if c.reference or c.arm == arm]
    return tuple(_attempt(candidate, objective) for candidate in failed[-_LEDGER_LENGTH:])


def _attempt(candidate: Candidate, objective: Objective) -> Attempt:
    stopped = candidate.failure
    error = stopped.failure.error if stopped is not None and stopped.failure is not None else {}
    metrics = candidate.metrics()
    wanted = (objective.accuracy, objective.speed, "recall", "density")
    return Attempt(
        key=candidate.key,
        ir_hash=candidate.ir_hash,
        name=f"{candidate.label} {candidate.name}",
        stage="" if stopped is None else stopped.stage,
        code=str(error.get("code", "")),
        reason=str(error.get("message", ""))[:200],
        idea=candidate.idea,
        knobs=candidate.knobs,
        metrics={name: round(metrics[name].value, 4) for name in wanted if name in metrics},
    )


def repair_error(proposal: Proposal, state: CampaignState) -> dict[str, Any] | None:
    """The error that a repair would have to mend, or None where there is none to be mended by an author.

    Refused by the tracer for a fault of its own, or by a stage that runs before any measurement. A program that
    works and scores badly is not broken.
    """
    if proposal.outcome == "rejected":
        ours = proposal.error is None or VortexError.from_json(proposal.error).fault != "candidate"
        return None if ours else proposal.error
    if proposal.outcome == "admitted":
        assert proposal.key is not None
        candidate = state.candidates[proposal.key]
        stopped = candidate.failure
        if candidate.status() == "failed" and stopped is not None and not stopped.metrics and stopped.failure:
            return stopped.failure.error
    return None


def make_tell(
    outcome: Outcome, proposal: Proposal | None, candidate: Candidate | None, objective: Objective
) -> Tell:
    """What a strategy learns from one outcome. Search measurements only: finals must not steer the search."""
    number = None if proposal is None else proposal.number
    parents = () if proposal is None else proposal.parents
    if candidate is None:
        return Tell(number, outcome, parents=parents)
    found = score(candidate, objective, "search") if candidate.status() == "passed" else None
    if found is None:
        told: Outcome = "duplicate" if outcome == "duplicate" else "stopped"
        return Tell(number, told, candidate.key, candidate.ir_hash, parents=parents)
    return Tell(number, outcome, candidate.key, candidate.ir_hash, *found.point, found.verdict, parents)

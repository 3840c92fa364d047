"""What flows back to whoever writes the next program: parents with their measurements, goals, dead ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from agents.base import Attempt, Booking, FailedAttempt, Lesson, Parent, ProposalRequest, Room
from evaluators.results import Metric
from search.campaign.archive import Verdict, score
from search.campaign.conditions import setting
from search.campaign.costs import costs
from search.campaign.landscape import standing, standings
from search.campaign.strategies.base import Outcome, Tell
from search.config import CampaignConfig, Gate, Objective, Screen
from search.log.files import ContentStore
from search.log.state import SEARCHING, CampaignState, Candidate, Proposal
from vortex_core.errors import VortexError
from vortex_core.ir.flow import Flow
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import Program

_LEDGER_LENGTH = 40
_LOOKED_AT = 40  # proposals back, for what is under way
_UNDER_WAY = 8
_UNANSWERED = 3


def make_request(
    proposal: Proposal,
    state: CampaignState,
    files: ContentStore,
    config: CampaignConfig,
    model: dict[str, Any],
    *,
    flow: Callable[[Candidate], Flow],
    best: Sequence[str] = (),
    measured: Sequence[tuple[str, float]] = (),
    fits: Callable[[Program, Knobs], bool] | None = None,
    room: Room | None = None,
    in_words: bool,
    alone: bool = False,
    lessons: tuple[Lesson, ...] = (),
    book: Booking | None = None,
    short: Sequence[Candidate] = (),
) -> ProposalRequest:
    """The request that an ask stands for.

    Args:
        flow: of a candidate.
        best: keys of the best so far, the best first.
        measured: descriptions of what kept the gates, and its accuracy, in the order they came.
        fits: whether the campaign would look at a program.
        room: what a page's states may take.
        in_words: whether the proposer reads words: only then it is worth saying where the search stands.
        alone: whether it hears of its own arm's candidates and the library only: a control does not learn from the
            search that it is compared with.
        lessons: what changes brought so far.
        book: told of every call before it is sent.
        short: see `ledger`.
    """
    objective = config.objective
    failed, arm = None, proposal.arm if alone else None
    if proposal.repairs is not None:
        broken = state.proposals[proposal.repairs]
        assert broken.source is not None
        failed = FailedAttempt(files.get(broken.source, ".py"), repair_error(broken, state) or {})
    return ProposalRequest(
        kind=proposal.request,  # type: ignore[arg-type]  # a RequestKind that went through JSON
        seed=proposal.seed,
        parents=tuple(
            make_parent(c, flow(c), files, costs(flow(c), state, config, model) if in_words else {})
            for c in map(state.candidates.__getitem__, proposal.parents)
        ),
        failed=failed,
        model=model,
        objective=objective_in_words(objective) + screen_in_words(config.screen),
        ledger=ledger(state, config, arm, short),
        tried=state.candidates.keys(),
        setting=setting(state, config, arm, model) if in_words else "",
        standings=standings(state, config, proposal.parents, arm) if in_words else (),
        lessons=lessons,
        number=proposal.id,
        book=book,
        point=proposal.point,
        knobs=config.knobs,
        fits=fits,
        room=room,
        measured=measured,
        best=tuple(state.candidates[key].doc for key in best),
        under_way=under_way(proposal, state, arm) if in_words else (),
        unanswered=unanswered(proposal, state) if in_words else (),
    )


def make_parent(
    candidate: Candidate, flow: Flow, files: ContentStore, spent: dict[str, Any] | None = None
) -> Parent:
    """A candidate as a proposer sees it; `spent` is what `costs` says of it."""
    info = {name: part for name, part in candidate.info().items() if not spent or name != "modelled"}
    return Parent(
        flow=replace(flow, name=f"{candidate.label} {candidate.name}"),
        source=files.get(candidate.source, ".py"),
        metrics={name: metric.to_json() for name, metric in searched(candidate).items()},
        info=({"costs": spent} if spent else {}) | info,
    )


def searched(candidate: Candidate) -> dict[str, Metric]:
    """All that the search measured, what is dearer over what is cheaper."""
    return {name: m for purpose in SEARCHING for name, m in candidate.metrics(purpose).items()}


def screen_in_words(screen: Screen | None) -> str:
    """What a program must do before it answers, for a prompt."""
    if screen is None:
        return ""
    bounds = _bounds(screen.gates)
    behind = f" A program goes on only with {' and '.join(bounds)}." if bounds else ""
    if screen.most_state is not None:
        behind += (
            f" Page states may take {screen.most_state:.0%} of the bytes of keys and values (state_share)."
        )
    return f" Before it answers, {screen.accuracy} on recorded attention stands for accuracy.{behind}"


def objective_in_words(objective: Objective) -> str:
    """The objective for a prompt."""
    gates = _bounds(objective.gates)
    behind = f" while keeping {' and '.join(gates)}" if gates else ""
    return (
        f"Raise {objective.speed} (ratio to dense attention) and {objective.accuracy}{behind}. "
        "Results form a Pareto front; no single score is used."
    )


def _bounds(gates: Sequence[Gate]) -> list[str]:
    return [
        f"{g.metric} >= {g.at_least:g}" if g.at_least is not None else f"{g.metric} <= {g.at_most:g}"
        for g in gates
    ]


def under_way(proposal: Proposal, state: CampaignState, arm: str | None = None) -> tuple[str, ...]:
    """What was asked for or proposed and has no result yet, the newest last: two authors at once do not know of each
    other otherwise."""
    ours = [p for p in state.proposals.values() if p.id != proposal.id and arm in (None, p.arm)]
    rows = []
    for p in ours[-_LOOKED_AT:]:
        if p.outcome == "open" and (p.idea or p.parents):
            of = " and ".join(state.candidates[key].label for key in p.parents)
            rows.append(f"{p.change or p.request}{f' of {of}' if of else ''}: {p.idea or 'not answered yet'}")
        elif p.outcome == "admitted" and p.key is not None:
            candidate = state.candidates[p.key]
            if not any(candidate.status(purpose) in ("passed", "failed") for purpose in SEARCHING):
                rows.append(f"{candidate.label} {candidate.name}: {p.idea or 'being measured'}")
    return tuple(rows[-_UNDER_WAY:])


def unanswered(proposal: Proposal, state: CampaignState) -> tuple[str, ...]:
    """Asks of the same arm shortly before this one that brought no program, and why."""
    ours = [p for p in state.proposals.values() if p.id < proposal.id and p.arm == proposal.arm][-_UNDER_WAY:]
    failed = [p for p in ours if p.outcome == "failed" and p.error is not None]
    return tuple(
        f"ask {p.id} ({p.change or p.request}): {(p.error or {}).get('code', '')} {(p.error or {}).get('message', '')}"
        for p in failed[-_UNANSWERED:]
    )


def ledger(
    state: CampaignState, config: CampaignConfig, arm: str | None = None, short: Sequence[Candidate] = ()
) -> tuple[Attempt, ...]:
    """The latest dead ends, the newest last: what a stage stopped and what broke a gate of the screen, each with its
    knobs and numbers.

    A candidate is a program under its knobs: what failed with 64 tokens may be good with 512.

    Args:
        arm: whose; None is everybody's.
        short: what broke a gate of the screen (`screened_out`), in the order of their numbers.
    """
    # From the newest on, as far as is shown: a long run has a hundred thousand more.
    heard = (c for c in reversed(state.failed) if arm is None or c.reference or c.arm == arm)
    failed = [*islice(heard, _LEDGER_LENGTH)][::-1]
    if short:
        known = {c.key for c in failed}
        told = (c for c in reversed(short) if arm in (None, c.arm) and c.key not in known)
        failed = sorted([*failed, *islice(told, _LEDGER_LENGTH // 2)], key=lambda c: c.number)
    return tuple(_attempt(candidate, config) for candidate in failed[-_LEDGER_LENGTH:])


def screened_out(candidate: Candidate, config: CampaignConfig) -> tuple[str, ...]:
    """The gates of the screen that a candidate broke, in words; none where it kept them."""
    if config.screen is None or candidate.status("screen") != "passed":
        return ()
    found = score(candidate, config.screen.objective(config.objective), "screen")
    return found.broken if found is not None and found.verdict is Verdict.FAILED else ()


def _attempt(candidate: Candidate, config: CampaignConfig) -> Attempt:
    stopped = candidate.failure
    error = stopped.failure.error if stopped is not None and stopped.failure is not None else {}
    short = screened_out(candidate, config)
    metrics = searched(candidate)
    objective, screen = config.objective, config.screen
    screened = () if screen is None else (screen.accuracy,)
    wanted = (objective.accuracy, objective.speed, *screened, "state_share", "recall")
    return Attempt(
        key=candidate.key,
        ir_hash=candidate.ir_hash,
        name=f"{candidate.label} {candidate.name}",
        stage=stopped.stage if stopped is not None else "the screen's gates" if short else "",
        code=str(error.get("code", "")),
        reason=str(error.get("message", "") or "; ".join(short))[:200],
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
        failed = "failed" in (candidate.status("screen"), candidate.status())
        if failed and stopped is not None and not stopped.metrics and stopped.failure:
            return stopped.failure.error
    return None


def make_tell(
    outcome: Outcome,
    proposal: Proposal | None,
    candidate: Candidate | None,
    config: CampaignConfig,
    cell: str = "",
    size: int = 0,
) -> Tell:
    """What a strategy learns from one outcome. Search measurements only: finals must not steer the search.

    Where programs are screened, the screen's numbers stand throughout, so that all are on one scale; answers, where
    there are some, decide whether gates are kept.
    """
    found = None if candidate is None else standing(candidate, config)
    if candidate is not None and found is None and outcome != "duplicate":
        outcome = "stopped"
    accuracy, speed = (None, None) if found is None else found.point
    return Tell(
        number=None if proposal is None else proposal.number,
        outcome=outcome,
        key="" if candidate is None else candidate.key,
        ir_hash="" if candidate is None else candidate.ir_hash,
        accuracy=accuracy,
        speed=speed,
        verdict=Verdict.FAILED if found is None else found.verdict,
        parents=() if proposal is None else proposal.parents,
        low=None if found is None else found.accuracy.low,
        high=None if found is None else found.accuracy.high,
        cell="" if candidate is None else cell,
        size=0 if candidate is None else size,
        point=() if proposal is None else proposal.point,
        by="" if proposal is None else proposal.by,
    )

"""Where the search stands, as a proposer is told it: the best, the library's, a parent's ancestors and children."""

from __future__ import annotations

from collections.abc import Iterator

from agents.base import Standing
from search.campaign.archive import order, score
from search.config import Objective
from search.log.state import CampaignState, Candidate

_BEST = 8
_LIBRARY = 8
_GENERATIONS = 6
_CHILDREN = 10


def standings(
    state: CampaignState, objective: Objective, parents: tuple[str, ...], arm: str | None = None
) -> tuple[Standing, ...]:
    """The best found candidates, the references, and the family of the first of `parents` (keys).

    Only what the search itself measured: fresh and sealed items must not steer it, nor what stands for a winner.

    Args:
        arm: whose candidates are told, beside the library; None is everybody's.
    """

    def told(candidate: Candidate) -> bool:
        ours = arm is None or candidate.reference or candidate.arm == arm
        return ours and candidate.key not in state.twins

    ranked = [c for c in _ranked(state, objective) if told(c)]
    found = [c for c in ranked if not c.reference][:_BEST]
    library = [c for c in ranked if c.reference][:_LIBRARY]
    rows = [_standing(c, "best", objective) for c in found]
    rows += [_standing(c, "library", objective) for c in library]
    if parents:
        ancestors = list(_ancestors(state.candidates[parents[0]], state))[:_GENERATIONS]
        rows += [_standing(c, "ancestor", objective) for c in reversed(ancestors)]
        children = [c for c in state.candidates.values() if parents[0] in c.parents and told(c)]
        rows += [_standing(c, "child", objective) for c in children[-_CHILDREN:]]
    return tuple(rows)


def setting(state: CampaignState, objective: Objective) -> str:
    """Where the objective's numbers come from and what chance alone does to them, in words."""
    dense = next((c for c in state.candidates.values() if c.is_dense), None)
    if dense is None:
        return ""
    metrics = dense.metrics("search")
    accuracy, speed = metrics.get(objective.accuracy), metrics.get(objective.speed)
    parts = []
    if accuracy is not None and accuracy.low is not None and accuracy.high is not None:
        parts.append(
            f"{objective.accuracy} on {accuracy.n} items; dense attention against itself gives {accuracy.value:.3g} "
            f"[{accuracy.low:.3g}, {accuracy.high:.3g}], so differences inside that interval are chance."
        )
    if speed is not None:
        parts.append(f"{objective.speed} is {speed.how}.")
    return " ".join(parts)


def _ranked(state: CampaignState, objective: Objective) -> list[Candidate]:
    """Passed candidates by what the search measured, the best first."""
    passed = [c for c in state.candidates.values() if c.status() == "passed"]
    scored = [(c, s) for c in passed if (s := score(c, objective, "search")) is not None]
    return [c for c, _ in sorted(scored, key=lambda pair: order(*pair))]


def _ancestors(candidate: Candidate, state: CampaignState) -> Iterator[Candidate]:
    """First parents of first parents, nearest first."""
    seen = {candidate.key}
    while candidate.parents and candidate.parents[0] in state.candidates:
        candidate = state.candidates[candidate.parents[0]]
        if candidate.key in seen:
            return
        seen.add(candidate.key)
        yield candidate


def _standing(candidate: Candidate, relation: str, objective: Objective) -> Standing:
    metrics = candidate.metrics("search")
    stopped = candidate.failure
    if stopped is not None and stopped.failure is not None:
        verdict = f"stopped at {stopped.stage} ({stopped.failure.error.get('code', '')})"
    else:
        measured = score(candidate, objective, "search")
        verdict = "not measured yet" if measured is None else f"gates {measured.verdict.name.lower()}"
    wanted = dict.fromkeys((objective.accuracy, objective.speed, "recall", "density"))
    return Standing(
        name=f"{candidate.label} {candidate.name}",
        relation=relation,
        verdict=verdict,
        idea=candidate.idea,
        knobs=candidate.knobs,
        metrics={name: metrics[name].to_json() for name in wanted if name in metrics},
    )

"""Where the search stands, as a proposer is told it: the best, the library's, a parent's ancestors and children."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from agents.base import Standing
from search.campaign.archive import Score, Verdict, order, score
from search.config import CampaignConfig, Objective
from search.log.state import SEARCHING, CampaignState, Candidate

_BEST = 8
_LIBRARY = 8
_GENERATIONS = 6
_CHILDREN = 10


def standings(
    state: CampaignState, config: CampaignConfig, parents: tuple[str, ...], arm: str | None = None
) -> tuple[Standing, ...]:
    """The best found candidates, the references, and the family of the first of `parents` (keys).

    Only what the search itself measured: fresh and sealed items must not steer it, nor what stands for a winner.

    Args:
        arm: whose candidates are told, beside the library; None is everybody's.
    """

    def told(candidate: Candidate) -> bool:
        ours = arm is None or candidate.reference or candidate.arm == arm
        return ours and candidate.key not in state.twins

    ranked = [c for c in _ranked(state, config) if told(c)]
    found = _front([c for c in ranked if not c.reference], config)[:_BEST]
    library = [c for c in ranked if c.reference][:_LIBRARY]
    rows = [_standing(c, "best", config) for c in found]
    rows += [_standing(c, "library", config) for c in library]
    if parents:
        ancestors = list(_ancestors(state.candidates[parents[0]], state))[:_GENERATIONS]
        rows += [_standing(c, "ancestor", config) for c in reversed(ancestors)]
        children = [c for c in state.candidates.values() if parents[0] in c.parents and told(c)]
        rows += [_standing(c, "child", config) for c in children[-_CHILDREN:]]
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
    info = dense.info()
    tasks = info.get("accuracy", {}).get("tasks")
    if tasks:
        parts.append(f"Asked (task@tokens): {', '.join(sorted(tasks))}.")
    if speed is not None:
        parts.append(f"{objective.speed} is {speed.how}{_where(info, objective.speed)}.")
    return " ".join(parts)


def _where(info: dict[str, Any], speed: str) -> str:
    """At which contexts and batches speed is asked."""
    gpus = info.get("modelled", {}).get("gpus", {})
    points = next((gpus[name] for name in gpus if speed.endswith(name)), None)
    if points is None:
        points = info.get("decode", {}).get("points", {})
    shown = [f"{context} tokens x {row['batch']} sequences" for context, row in points.items()]
    return f" at {', '.join(shown)}" if shown else ""


def standing(candidate: Candidate, config: CampaignConfig) -> Score | None:
    """A candidate's score as the search sees it, None while or where it has none."""
    answered = candidate.status("search")
    if config.screen is None:
        return score(candidate, config.objective, "search") if answered == "passed" else None
    if candidate.status("screen") != "passed" or answered == "failed":
        return None
    found = score(candidate, config.screen.objective(config.objective), "screen")
    if found is None or answered != "passed":
        return found
    judged = score(candidate, config.objective, "search")
    worst = Verdict.FAILED if judged is None else max(found.verdict, judged.verdict)
    return replace(found, verdict=worst)


def _ranked(state: CampaignState, config: CampaignConfig) -> list[Candidate]:
    """Candidates that have a score, the best first."""
    scored = [(c, s) for c in state.candidates.values() if (s := standing(c, config)) is not None]
    return [c for c, _ in sorted(scored, key=lambda pair: order(*pair))]


def _front(ranked: list[Candidate], config: CampaignConfig) -> list[Candidate]:
    """The same with its front first: of those with the best verdict, who is beaten by none in both accuracy and speed.
    Of a long front, as many as are shown, evenly."""
    scores = {c.key: found for c in ranked if (found := standing(c, config)) is not None}
    verdict = min((s.verdict for s in scores.values()), default=None)
    front: list[Candidate] = []
    best = -math.inf
    for c in sorted(ranked, key=lambda c: (-scores[c.key].point[0], -scores[c.key].point[1], c.key)):
        if scores[c.key].verdict is verdict and scores[c.key].point[1] > best:
            front.append(c)
            best = scores[c.key].point[1]
    if len(front) > _BEST:
        front = [front[round(i * (len(front) - 1) / (_BEST - 1))] for i in range(_BEST)]
    keys = {c.key for c in front}
    return [*front, *(c for c in ranked if c.key not in keys)]


def _ancestors(candidate: Candidate, state: CampaignState) -> Iterator[Candidate]:
    """First parents of first parents, nearest first."""
    seen = {candidate.key}
    while candidate.parents and candidate.parents[0] in state.candidates:
        candidate = state.candidates[candidate.parents[0]]
        if candidate.key in seen:
            return
        seen.add(candidate.key)
        yield candidate


def _standing(candidate: Candidate, relation: str, config: CampaignConfig) -> Standing:
    metrics = {name: m for purpose in SEARCHING for name, m in candidate.metrics(purpose).items()}
    stopped, judged = candidate.failure, standing(candidate, config)
    if stopped is not None and stopped.failure is not None:
        verdict = f"stopped at {stopped.stage} ({stopped.failure.error.get('code', '')})"
    else:
        verdict = "not measured yet" if judged is None else f"gates {judged.verdict.name.lower()}"
    whole = config.objective
    searched = (whole,) if config.screen is None else (config.screen.objective(whole), whole)
    wanted = [name for o in searched for name in (o.accuracy, o.speed)]
    return Standing(
        name=f"{candidate.label} {candidate.name}",
        relation=relation,
        verdict=verdict,
        idea=candidate.idea,
        knobs=candidate.knobs,
        metrics={
            name: metrics[name].to_json()
            for name in dict.fromkeys((*wanted, "recall", "density", "state_share"))
            if name in metrics
        },
    )

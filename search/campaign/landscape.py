"""Where the search stands, as a proposer is told it: the best, the library's, a parent's ancestors and children."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from agents.base import Standing
from search.campaign.archive import Score, Verdict, order, score
from search.config import CampaignConfig
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
        parent = state.candidates[parents[0]]
        line = [*reversed(list(_ancestors(parent, state))[:_GENERATIONS]), parent]
        if len(line) > 1 or parent.idea:
            rows += [
                _standing(c, "ancestor", config, before)
                for before, c in zip([None, *line[:-1]], line, strict=True)
            ]
        children = [c for c in state.candidates.values() if parents[0] in c.parents and told(c)]
        rows += [_standing(c, "child", config, parent) for c in children[-_CHILDREN:]]
    return tuple(rows)


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


def _standing(
    candidate: Candidate, relation: str, config: CampaignConfig, before: Candidate | None = None
) -> Standing:
    """One row; `before` is whose change it is."""
    metrics = {name: m for purpose in SEARCHING for name, m in candidate.metrics(purpose).items()}
    stopped, judged = candidate.failure, standing(candidate, config)
    if stopped is not None and stopped.failure is not None:
        verdict = f"stopped at {stopped.stage} ({stopped.failure.error.get('code', '')})"
    else:
        verdict = "not measured yet" if judged is None else f"gates {judged.verdict.name.lower()}"
        if judged is not None and config.screen is not None:
            verdict = (
                f"{'answered' if candidate.status('search') == 'passed' else 'screened only'}, {verdict}"
            )
    whole = config.objective
    searched = (whole,) if config.screen is None else (config.screen.objective(whole), whole)
    wanted = [name for o in searched for name in (o.accuracy, o.speed)]
    fuller = _fuller(candidate, config)
    if fuller is not None:  # figures of a row are compared with those of others: all of the same layers
        metrics |= {fuller: candidate.metrics("screen")[fuller]}
    return Standing(
        name=f"{candidate.label} {candidate.name}",
        relation=relation,
        verdict=verdict,
        idea=candidate.idea or (candidate.doc.partition("\n")[0] if candidate.reference else ""),
        knobs=candidate.knobs,
        metrics={
            name: metrics[name].to_json()
            for name in dict.fromkeys((*wanted, "recall", "state_share"))
            if name in metrics
        },
        note=" ".join(filter(None, (_in_full(candidate, config), _moved(candidate, before)))),
    )


def _fuller(candidate: Candidate, config: CampaignConfig) -> str | None:
    """The screen's figure of a candidate that was also measured in more layers, None where it was not."""
    name = config.screen.accuracy if config.screen is not None else ""
    both = name in candidate.metrics("screen") and name in candidate.metrics("full_screen")
    return name if both else None


def _in_full(candidate: Candidate, config: CampaignConfig) -> str:
    """What the fuller screen said, in words."""
    name = _fuller(candidate, config)
    if name is None or config.screen is None:
        return ""
    models = ", and on a second model" if config.screen.models else ""
    return (
        f"({candidate.metrics('full_screen')[name].value:.3f} in {config.screen.full_layers} layers{models})"
    )


def _moved(candidate: Candidate, before: Candidate | None) -> str:
    """Which knobs were changed together with the program: then its figures are not the program's alone."""
    if before is None:
        return ""
    moved = [
        f"{knob} {before.knobs.get(knob)} -> {value}"
        for knob, value in candidate.knobs.items()
        if before.knobs.get(knob) != value
    ]
    if not moved:
        return ""
    if candidate.ir_hash == before.ir_hash:
        return f"(the same program; {', '.join(moved)})"
    return f"(program and {', '.join(moved)}: two changes at once, not to be told apart)"

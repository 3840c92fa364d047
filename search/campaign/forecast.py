"""What the finals will take, told from what the search took: a machine that reads prompts more slowly than the one a
campaign was written for would otherwise come to its sealed items when their time is over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from search.config import Finals
from search.log.state import CampaignState

MOST = 0.5
"""Share of a run's time that a forecast may take from its search."""


def finals_seconds(
    finals: Finals,
    state: CampaignState,
    prefill: float,
    stages: Sequence[str],
    *,
    engines: int = 1,
) -> float:
    """Seconds from the end of the search to the last sealed answer; the second model, of which nothing is known, and
    finalists after the first are not in it.

    Args:
        state: of the campaign; its stages' times are those of the search's items.
        prefill: seconds that the search's prompts took.
        stages: what a finalist runs on fresh items.
        engines: that answer side by side; each reads all prompts.
    """
    assert state.started is not None
    plan: dict[str, Any] = state.started.plan
    times = float(plan.get("fresh", {}).get("share", 1.0))  # items for each of the search's
    timed = [state.stage_time[stage] for stage in stages if stage in state.stage_time]
    answers = times * sum(t.seconds / t.runs for t in timed if t.runs)
    fresh = finals.elites + 2  # the library's best and the controls'
    sealed = finals.peers + 2 if finals.holdout else 0
    in_turn = -(-fresh // engines) + -(-sealed // engines) + (2 if finals.matched else 0)
    return times * prefill * (2 if finals.holdout else 1) + in_turn * answers

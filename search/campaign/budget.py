"""When a search has had enough: every kind of budget, and a space in which nothing new is left."""

from __future__ import annotations

from search.campaign.forecast import MOST
from search.config import Limits, Screen
from search.log.run import campaign_of
from search.log.state import CampaignState

NOTHING_NEW = 60
"""Proposals that came to an end in a row without a new candidate, after which the space counts as exhausted. They are
counted as they end, whatever is still under way, so it means the same at 1 and at 200 engines."""

_UNANSWERED = 0.9
"""Share of the time after which a screened campaign in which nothing has answered gives up."""
_FLOOR = 1.5
"""The same where something is to answer however slow the machine is: the time is then overrun, and not for nothing."""


def reached(
    limits: Limits,
    state: CampaignState,
    *,
    active_seconds: float,
    gpu_seconds: float,
    under_way: int = 0,
    screen: Screen | None = None,
    anyway: bool = False,
    finals: float = 0.0,
) -> str | None:
    """Which limit keeps another proposal from being begun; None if none does.

    Args:
        active_seconds: working time of all sessions until now.
        gpu_seconds: likewise, times the GPUs held.
        under_way: proposals begun and not ended, each of which may bring a candidate.
        screen: how programs are screened, where they are: candidates that answer are then no limit to those screened.
        anyway, finals: see `search_ends`.
    """
    if screen is not None:
        if state.screened_programs + under_way >= screen.programs:
            return f"{screen.programs} distinct programs screened"
        under_way = 0
    elif state.distinct_programs + under_way >= limits.candidates:
        return f"{limits.candidates} distinct programs"
    if limits.evaluations is not None and state.finished_found + under_way >= limits.evaluations:
        return f"{limits.evaluations} evaluations"
    ends = search_ends(limits, state, screen, anyway, finals)
    if ends is not None and active_seconds >= ends:
        return f"time budget of {limits.seconds:g} s"
    if limits.gpu_seconds is not None and gpu_seconds >= limits.gpu_seconds:
        return f"budget of {limits.gpu_seconds:g} GPU-seconds"
    if limits.dollars is not None and state.dollars >= limits.dollars:
        return f"budget of ${limits.dollars:g}"
    if limits.tokens is not None and state.tokens >= limits.tokens:
        return f"budget of {limits.tokens} tokens"
    if limits.calls is not None and state.calls >= limits.calls:
        return f"budget of {limits.calls} calls"
    if state.without_new >= NOTHING_NEW:
        return f"nothing new in {NOTHING_NEW} proposals"
    return None


def search_seconds(limits: Limits, finals: float = 0.0) -> float | None:
    """Working seconds that are the search's; None without limit.

    Args:
        finals: seconds that the finals will take on this machine (`forecast.finals_seconds`), as far as that is known;
            the limits keep no less for them.
    """
    if limits.seconds is None:
        return None
    return limits.seconds - max(limits.kept_for_finals, min(finals, MOST * limits.seconds))


def search_ends(
    limits: Limits, state: CampaignState, screen: Screen | None, anyway: bool = False, finals: float = 0.0
) -> float | None:
    """Working seconds after which nothing more is begun.

    What is kept for the finals is no use to them where nothing has answered: then the search goes on, so that a slow
    machine has something to compare.

    Args:
        anyway: whether a program is to answer even where the time is used up before (`Finals.anyway`).
        finals: see `search_seconds`.
    """
    if limits.seconds is None or screen is None or state.distinct_programs:
        return search_seconds(limits, finals)
    return (_FLOOR if anyway else _UNANSWERED) * limits.seconds


def nothing_left(limits: Limits, state: CampaignState) -> str | None:
    """Why a finished run has nothing to do under these limits; None if there is something, or it is not finished.

    More of what ended it makes it go on; so does more time where the finals had too little.
    """
    if state.finished is None:
        return None
    if limits == campaign_of(state).limits:
        return state.finished.reason
    if state.finished.summary.get("left_out"):
        return None
    return reached(limits, state, active_seconds=state.active_seconds, gpu_seconds=state.gpu_seconds)

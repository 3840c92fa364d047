"""Which numbers of a run stand beside each other only with a mark: sessions on other machines, versions or weights."""

from __future__ import annotations

from typing import Any

from search.log.entries import Candidate, Part
from search.log.events import Purpose
from search.log.state import CampaignState

_ANSWERS = ("torch", "triton", "transformers", "vortex-search", "commit")


def differences(before: Part, after: Part) -> list[str]:
    """What of two parts may make their numbers differ, in words: versions, devices, drivers, weights."""
    found = []
    for name in _ANSWERS:
        old, new = (_versions(part).get(name) for part in (before, after))
        if old and new and old != new:
            found.append(f"{name} {old}, then {new}")
    for name, label in (("name", "device"), ("cuda", "CUDA"), ("weights", "weights")):
        old, new = ({str(e[name]) for e in part.engines if e.get(name)} for part in (before, after))
        if old and new and old != new:
            found.append(f"{label} {', '.join(sorted(old))}, then {', '.join(sorted(new))}")
    return found


def _versions(part: Part) -> dict[str, Any]:
    """Of its engines, which measure; of the driver where engines do not say."""
    said = [engine["versions"] for engine in part.engines if engine.get("versions")]
    return said[0] if said else part.versions


def incomparable(state: CampaignState) -> dict[int, list[str]]:
    """By session with results, what differs from the first one with results; those that match are left out."""
    parts = [part for part in state.parts if part.results]
    found = {part.session: differences(parts[0], part) for part in parts[1:]}
    return {session: words for session, words in found.items() if words}


def marked(candidate: Candidate, other: dict[int, list[str]], purpose: Purpose = "search") -> bool:
    """Whether a candidate was measured, as a whole or in part, in a session that differs."""
    return any(session in other for session in candidate.parts.get(purpose, ()))


def words(state: CampaignState) -> list[str]:
    """A line for each part whose numbers carry a mark."""
    return [
        f"† measured in session {session}: {'; '.join(found)}. Compare speeds across the mark with care"
        for session, found in incomparable(state).items()
    ]

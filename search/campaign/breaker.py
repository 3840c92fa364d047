"""The circuit breaker: what fails for candidate after candidate is not their fault, and stops the campaign."""

from __future__ import annotations

from search.errors import repeated_failure
from vortex_core.errors import VortexError

MOST = 3
"""Different candidates that one failure may end."""


class CircuitBreaker:
    """Counts the candidates that each failure ended, in this session: a new one may find it mended."""

    def __init__(self) -> None:
        self._ended: dict[tuple[str, str], list[str]] = {}
        self._deaths: dict[str, list[str]] = {}

    def abandoned(self, label: str, error: VortexError) -> None:
        """A candidate ended with an infrastructure error.

        Raises:
            VortexError: `VS018`, if the same code from the same place ended `MOST` different candidates.
        """
        self._count(self._ended.setdefault((error.code, error.place), []), label, error)

    def killed(self, label: str, stage: str, error: VortexError) -> None:
        """Every worker given to a candidate died in a stage. That is the candidate's doing, unless nothing else
        survives the stage either.

        Raises:
            VortexError: `VS018`, if `MOST` different candidates did so with none in between that survived.
        """
        self._count(self._deaths.setdefault(stage, []), label, error)

    def survived(self, stage: str) -> None:
        """A worker got through a stage: whoever died in it before did so of itself."""
        self._deaths.pop(stage, None)

    def _count(self, labels: list[str], label: str, error: VortexError) -> None:
        if label not in labels:
            labels.append(label)
        if len(labels) >= MOST:
            raise repeated_failure(labels, error)

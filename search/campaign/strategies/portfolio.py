"""Several strategies on one archive: the next ask goes to what gains, and nobody is starved.

A part gains where what it asked for joins the front of all that was told. Old gains fade, because what helps early
(programs from nothing) is not what helps late (tuning).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import Field, field_validator

from search.campaign.archive import Verdict
from search.campaign.strategies.base import Ask, Strategy, Tell, proposal_seed, randomness
from search.campaign.strategies.registry import STRATEGIES
from vortex_core.configs import Strict

_DEFAULT = (
    {"kind": "evolve"},
    {"kind": "refine", "prefer": "accuracy", "patience": 12},
    {"kind": "tune"},
    {"kind": "simplify"},
)


class PortfolioSettings(Strict):
    """See `PortfolioStrategy`."""

    parts: tuple[dict[str, Any], ...] = Field(_DEFAULT, min_length=1)
    floor: float = Field(0.1, gt=0, le=1)
    memory: float = Field(0.98, gt=0, lt=1)

    @field_validator("parts")
    @classmethod
    def _known(cls, parts: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        kinds = [part.get("kind") for part in parts]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"parts repeat: {', '.join(map(str, kinds))}")
        for part in parts:
            if part.get("kind") == "portfolio":
                raise ValueError("a portfolio is no part of one")
            found = STRATEGIES.get(str(part.get("kind")))
            found.settings.model_validate({k: v for k, v in part.items() if k != "kind"})
        return parts


class PortfolioStrategy:
    """See the module. What one part finds every part learns.

    Args:
        seed: of the campaign.
        parts: strategies, each with its settings, as in campaign files.
        floor: share of the asks that every part gets, divided among all.
        memory: what is left of a gain or an ask after each further ask of the same part.
    """

    name = "portfolio"
    settings = PortfolioSettings

    def __init__(
        self,
        seed: int,
        *,
        parts: tuple[dict[str, Any], ...] = _DEFAULT,
        floor: float = 0.1,
        memory: float = 0.98,
    ) -> None:
        self.seed = seed
        self.floor = floor
        self.memory = memory
        self.parts: dict[str, Strategy] = {}
        for n, part in enumerate(parts):
            settings = {k: v for k, v in part.items() if k != "kind"}
            kind = STRATEGIES.get(part["kind"])
            self.parts[part["kind"]] = kind(seed + 104_729 * n, **dict(kind.settings(**settings)))
        self._gained = dict.fromkeys(self.parts, 1.0)
        self._asked = dict.fromkeys(self.parts, 2.0)
        self._front: dict[
            str, tuple[Verdict, float, float]
        ] = {}  # by key: who is told again stands there once

    @property
    def shares(self) -> dict[str, float]:
        """The probability with which each part is asked next."""
        rates = {name: self._gained[name] / self._asked[name] for name in self.parts}
        total = sum(rates.values())
        n = len(self.parts)
        return {name: self.floor / n + (1 - self.floor) * rate / total for name, rate in rates.items()}

    def ask(self, number: int) -> Ask:
        """See `Strategy`."""
        shares = self.shares
        name = randomness(self.seed, number).choices(list(shares), list(shares.values()))[0]
        ask = self.parts[name].ask(number)
        return replace(ask, by=name, seed=proposal_seed(self.seed, number))

    def tell(self, told: Tell) -> None:
        """See `Strategy`."""
        if told.outcome == "asked" and told.by in self.parts:
            self._gained[told.by] *= self.memory
            self._asked[told.by] = 1.0 + self.memory * self._asked[told.by]
        gained = self._joined(told)
        if told.by in self.parts:
            self._gained[told.by] += gained
        for name, part in self.parts.items():
            part.tell(told if told.number is None or told.by == name else replace(told, own=False))

    def _joined(self, told: Tell) -> bool:
        """Whether it is a new point of the front: nobody told before is as good in verdict and both axes."""
        if told.outcome != "scored" or told.accuracy is None or told.speed is None:
            return False
        point = (told.verdict, -told.accuracy, -told.speed)
        before = self._front.pop(told.key, None)
        if any(all(a <= b for a, b in zip(other, point, strict=True)) for other in self._front.values()):
            return False
        self._front = {
            key: other
            for key, other in self._front.items()
            if not all(a <= b for a, b in zip(point, other, strict=True))
        }
        self._front[told.key] = point
        return before is None

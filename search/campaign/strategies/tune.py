"""Constant tuning: the numbers and dtypes of one program, by a tree-structured Parzen estimator (Optuna).

What a strategy sees of a program is its key, so the search runs over the unit cube, and the proposer maps a point onto
what the program has (`agents.grammar.local`). Numbers beyond that mean nothing and cost nothing.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from pydantic import Field

from search.campaign.archive import Verdict
from search.campaign.strategies.base import Ask, Axis, Member, Tell, proposal_seed, randomness
from vortex_core.configs import Strict

if TYPE_CHECKING:
    import optuna

DIMENSIONS = 16
_PENALTY = 1.0
"""A program that breaks a gate is worth this much less: more than accuracies differ by."""


class TuneSettings(Strict):
    """See `TuneStrategy`."""

    trials: int = Field(24, ge=2, le=200)
    prefer: Axis = "accuracy"


class TuneStrategy:
    """Tunes the best program that has not been tuned yet, then the next.

    Args:
        seed: of the campaign.
        trials: points a program is tried at.
        prefer: what is raised.
    """

    name = "tune"
    settings = TuneSettings

    def __init__(self, seed: int, *, trials: int = 24, prefer: Axis = "accuracy") -> None:
        self.seed = seed
        self.trials = trials
        self.prefer: Axis = prefer
        self._best: dict[str, Member] = {}
        self._done: set[str] = set()
        self._target: Member | None = None
        self._asked = 0
        self._seen: list[tuple[tuple[float, ...], float]] = []

    def ask(self, number: int) -> Ask:
        """See `Strategy`."""
        seed = proposal_seed(self.seed, number)
        if self._target is None:
            return Ask("seed", (), seed)
        return Ask("tune", (self._target.key,), seed, self._point(number))

    def tell(self, told: Tell) -> None:
        """See `Strategy`."""
        mine = told.own and self._target is not None and told.parents == (self._target.key,) and told.point
        if told.outcome == "asked":
            self._asked += bool(mine)
        else:
            member = Member.of(told)
            if mine:
                if member is not None:
                    self._seen.append((told.point, self._value(member)))
                elif told.outcome == "rejected" and not self._seen:
                    self._asked = self.trials  # it has nothing to tune
                self._done.add(told.key)  # a point around a tuned program is a tuned program
            if member is not None:
                self._keep(member)
            else:
                self._best.pop(told.key, None)
        if self._target is None or self._asked >= self.trials:
            self._next()

    def _keep(self, member: Member) -> None:
        """Remember it, if it is among the best."""
        self._best[member.key] = member
        if len(self._best) > 64:
            worst = min(self._best.values(), key=lambda m: (-m.verdict, self._value(m), m.key))
            del self._best[worst.key]

    def _next(self) -> None:
        if self._target is not None:
            self._done.add(self._target.key)
        left = [m for m in self._best.values() if m.key not in self._done]
        self._target = max(left, key=lambda m: (-m.verdict, self._value(m), m.key)) if left else None
        self._asked, self._seen = 0, []

    def _value(self, member: Member) -> float:
        value = member.accuracy if self.prefer == "accuracy" else member.speed
        return value - _PENALTY * (member.verdict is Verdict.FAILED)

    def _point(self, number: int) -> tuple[float, ...]:
        """The next point for the target. The estimator is made anew of what was told, so asking changes nothing."""
        import optuna

        rng = randomness(self.seed, number)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        names = [f"x{n}" for n in range(DIMENSIONS)]
        space: dict[str, optuna.distributions.BaseDistribution] = {
            name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in names
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(seed=rng.getrandbits(31), n_startup_trials=6)
            study = optuna.create_study(direction="maximize", sampler=sampler)
            for point, value in self._seen:
                params = dict(zip(names, point, strict=True))
                study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=value))
            trial = study.ask(space)
        return tuple(round(float(trial.params[name]), 4) for name in names)

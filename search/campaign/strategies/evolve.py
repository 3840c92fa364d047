"""Evolution: parents from a front that intervals decide, by what only they add to it, and from every sort of program.

Diversity comes from cells (MAP-Elites, Mouret and Clune, 1504.04909): the family of a program, its density and its
state bytes say of what sort it is, and the best of each sort stays a parent though others dominate it. A parent's
weight falls with the children its program has (as ShinkaEvolve weighs offspring), those under way among them.
"""

from __future__ import annotations

from pydantic import Field

from search.campaign.strategies.base import Ask, Tell, proposal_seed, randomness
from search.campaign.strategies.population import Population
from vortex_core.configs import Strict


class EvolveSettings(Strict):
    """See `EvolveStrategy`."""

    fresh: float = Field(0.1, ge=0, le=1)
    crossover: float = Field(0.25, ge=0, le=1)
    cells: float = Field(0.1, ge=0, le=1)
    size: int = Field(128, ge=2, le=4096)
    confidence: float = Field(0.25, ge=0, le=1)
    start: int = Field(0, ge=0, le=4096)


class EvolveStrategy:
    """See the module.

    Args:
        seed: of the campaign.
        fresh: share of asks that start from nothing.
        crossover: share of the others that have two parents.
        cells: share of parents that are the best of a cell, whichever; the others are drawn by weight.
        size: members of the population.
        confidence: see `Population`.
        start: asks, the first ones, that all start from nothing. Where programs cost a fraction of a second, as on a
            screen, the best of some dozens is a better beginning than the references, which are few and of one sort.
    """

    name = "evolve"
    settings = EvolveSettings

    def __init__(
        self,
        seed: int,
        *,
        fresh: float = 0.1,
        crossover: float = 0.25,
        cells: float = 0.1,
        size: int = 128,
        confidence: float = 0.25,
        start: int = 0,
    ) -> None:
        self.seed = seed
        self.fresh = fresh
        self.crossover = crossover
        self.cells = cells
        self.start = start
        self.population = Population(size, confidence)

    def ask(self, number: int) -> Ask:
        """See `Strategy`."""
        rng = randomness(self.seed, number)
        seed = proposal_seed(self.seed, number)
        if number < self.start or not len(self.population) or rng.random() < self.fresh:
            return Ask("seed", (), seed)
        members, weights = self.population.weights()
        if rng.random() < self.cells:
            elites = self.population.cells()
            first = elites[rng.choice(sorted(elites))][0]
        else:
            first = rng.choices(members, weights)[0]
        of_another = any(m.ir_hash != first.ir_hash for m in members)
        if of_another and rng.random() < self.crossover:
            others = [(m, w) for m, w in zip(members, weights, strict=True) if m.ir_hash != first.ir_hash]
            second = rng.choices([m for m, _ in others], [w for _, w in others])[0]
            return Ask("crossover", (first.key, second.key), seed)
        return Ask("mutate", (first.key,), seed)

    def tell(self, told: Tell) -> None:
        """See `Strategy`."""
        self.population.tell(told)

"""Evolution on islands: Pareto-ranked parents, few children each, crossover between different programs.

Islands (Whitley et al., 1999) keep separate populations so that one early success does not take over; every
so often each passes its front on to the next. A parent's weight halves with each Pareto layer and falls with
the children its program already has (as ShinkaEvolve weighs offspring), which is novelty counted on the IR:
programs that differ only in knobs share one count.
"""

from __future__ import annotations

import random
from collections import Counter

from pydantic import Field

from search.campaign.archive import Verdict, pareto_layers
from search.campaign.strategies.base import Ask, Member, Tell, proposal_seed, randomness
from vortex_core.configs import Strict

_KEPT = 256
"""Members of an island that has grown to twice as many: what an ask costs must not grow with the run."""


class EvolveSettings(Strict):
    """See `EvolveStrategy`."""

    islands: int = Field(2, ge=1, le=64)
    fresh: float = Field(0.1, ge=0, le=1)
    crossover: float = Field(0.25, ge=0, le=1)
    migrate_every: int = Field(12, ge=1)


class EvolveStrategy:
    """See the module.

    Args:
        seed: of the campaign.
        islands: separate populations; ask `n` belongs to island `n % islands`.
        fresh: share of asks that start from nothing.
        crossover: share of the others that have two parents.
        migrate_every: tells between migrations.
    """

    name = "evolve"
    settings = EvolveSettings

    def __init__(
        self,
        seed: int,
        *,
        islands: int = 2,
        fresh: float = 0.1,
        crossover: float = 0.25,
        migrate_every: int = 12,
    ) -> None:
        self.seed = seed
        self.fresh = fresh
        self.crossover = crossover
        self.migrate_every = migrate_every
        self._islands: list[dict[str, Member]] = [{} for _ in range(islands)]
        self._children: Counter[str] = Counter()
        self._program_of: dict[str, str] = {}
        self._tells = 0

    def ask(self, number: int) -> Ask:
        """See `Strategy`."""
        rng = randomness(self.seed, number)
        seed = proposal_seed(self.seed, number)
        members = list(self._islands[number % len(self._islands)].values())
        if not members or rng.random() < self.fresh:
            return Ask("seed", (), seed)
        weights = self._weights(members)
        first = _draw(rng, members, weights)
        others = [(m, w) for m, w in zip(members, weights, strict=True) if m.ir_hash != first.ir_hash]
        if others and rng.random() < self.crossover:
            second = _draw(rng, [m for m, _ in others], [w for _, w in others])
            return Ask("crossover", (first.key, second.key), seed)
        return Ask("mutate", (first.key,), seed)

    def tell(self, told: Tell) -> None:
        """See `Strategy`."""
        for parent in told.parents:
            if parent in self._program_of:
                self._children[self._program_of[parent]] += 1
        member = Member.of(told)
        if member is not None:
            self._program_of[member.key] = member.ir_hash
            # References are everyone's; a found program belongs to the island that asked for it.
            homes = range(len(self._islands)) if told.number is None else [told.number % len(self._islands)]
            for home in homes:
                self._islands[home][member.key] = member
        if told.number is not None:
            self._tells += 1
            if self._tells % self.migrate_every == 0:
                self._migrate()

    def _migrate(self) -> None:
        fronts = [_front(list(island.values())) for island in self._islands]
        for i, front in enumerate(fronts):
            self._islands[(i + 1) % len(self._islands)].update({m.key: m for m in front})
        for island in self._islands:
            if len(island) > 2 * _KEPT:
                _trim(island)

    def _weights(self, members: list[Member]) -> list[float]:
        layers = _layers(members)
        programs = Counter(m.ir_hash for m in members)
        return [
            2.0 ** -min(layer, 30) / (1 + self._children[m.ir_hash]) / programs[m.ir_hash]
            for m, layer in zip(members, layers, strict=True)
        ]


def _layers(members: list[Member]) -> list[int]:
    """Pareto layers within each verdict, those of a worse verdict behind all of a better one."""
    layers = [0] * len(members)
    start = 0
    for verdict in Verdict:
        places = [i for i, m in enumerate(members) if m.verdict is verdict]
        found = pareto_layers([(members[i].accuracy, members[i].speed) for i in places])
        for i, layer in zip(places, found, strict=True):
            layers[i] = start + layer
        start += 1 + max(found, default=-1)
    return layers


def _trim(island: dict[str, Member]) -> None:
    """Leave the `_KEPT` members of the best layers: the weight of the others is next to nothing."""
    members = list(island.values())
    ranked = sorted(zip(_layers(members), range(len(members)), strict=True))
    for _, place in ranked[_KEPT:]:
        del island[members[place].key]


def _front(members: list[Member]) -> list[Member]:
    return [m for m, layer in zip(members, _layers(members), strict=True) if layer == 0]


def _draw(rng: random.Random, members: list[Member], weights: list[float]) -> Member:
    return rng.choices(members, weights)[0]

"""How many workers of each kind there should be, when several kinds want the same GPUs and cores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from search.executors.placement import Placement, Resources


@dataclass(frozen=True)
class Claim:
    """What the campaigns that use one kind of worker want of it together.

    Attributes:
        kind: of worker.
        placed: how one is placed.
        share: their weights, added.
        wishes: how many each of them asked for; None is as many as fit.
    """

    kind: Literal["engine", "cpu", "serving"]
    placed: Placement
    share: float
    wishes: Sequence[int | None]

    @property
    def on_gpus(self) -> bool:
        """Whether one holds GPUs."""
        return self.kind != "cpu" and self.placed.device == "cuda"

    @property
    def cost(self) -> int:
        """GPUs, or where there are none CPU slots, that one takes."""
        return self.placed.ranks if self.kind != "cpu" else 1

    def most(self, found: Resources) -> int:
        """How many are wanted at most, whoever else is there."""
        if self.kind == "cpu":
            named = [wish for wish in self.wishes if wish is not None]
            return max([self.placed.cpu_tasks, *named]) if self.wishes else 0
        there = (found.gpus if self.on_gpus else self.placed.engines * self.cost) // self.cost
        return max((there if wish is None else wish for wish in self.wishes), default=0)


def divide(found: Resources, claims: Mapping[int, Claim], *, growing: bool) -> dict[int, int]:
    """Workers of each kind, by weight where not all can have what they want.

    Args:
        growing: whether nodes may be added: a kind alone then gets what it names, however much is there.
    """
    counts = {name: claim.most(found) for name, claim in claims.items()}
    gpus = [name for name, claim in claims.items() if claim.on_gpus]
    wanted = sum(counts[name] * claims[name].cost for name in gpus)
    if len(gpus) > 1 and wanted > found.gpus:
        counts |= _fill(found.gpus, {name: claims[name] for name in gpus}, counts)
    elif gpus and not growing:
        assert wanted <= max(found.gpus, 0), "placement lets nobody ask for more than there is"
    return counts


def _fill(gpus: int, claims: Mapping[int, Claim], most: Mapping[int, int]) -> dict[int, int]:
    """Give out GPUs a worker at a time, each to who has least of its share; all get one if that is possible."""
    counts = dict.fromkeys(claims, 0)
    left = gpus
    while True:
        open_ = [n for n, c in claims.items() if counts[n] < most[n] and c.cost <= left]
        if not open_:
            return counts
        least = min(open_, key=lambda n: ((counts[n] + 1) * claims[n].cost / max(claims[n].share, 1e-9), n))
        counts[least] += 1
        left -= claims[least].cost

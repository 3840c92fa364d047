"""A bounded population: a front that intervals decide, and the best of every sort of program."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from search.campaign.archive import Verdict
from search.campaign.strategies.base import Member, Tell

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LAYERS = 4
"""Beyond this layer a member's weight is what being the best of its cell gives it."""


class Population:
    """Scored programs to go on from.

    A member is on the front unless another is at least as fast and *surely* more accurate: their intervals, narrowed by
    `confidence`, do not meet. What is level on the items at hand is therefore kept together. Its weight is the
    hypervolume that only it adds, and falls with the children its program has, those under way included; knob variants
    of a program share one weight.

    Args:
        size: members kept; every cell keeps its best as long as there is room.
        confidence: part of an interval that counts. Programs are compared on the same items, where differences are
            surer than values: 0 compares values, 1 whole intervals.
    """

    def __init__(self, size: int, confidence: float) -> None:
        self.size = size
        self.confidence = confidence
        self._members: dict[str, Member] = {}
        self._children: Counter[str] = Counter()
        self._program_of: dict[str, str] = {}
        self._ranking: _Ranking | None = None  # of the members as they are
        self._weighed: tuple[list[Member], list[float]] | None = None  # with their children

    def __len__(self) -> int:
        return len(self._members)

    @property
    def members(self) -> list[Member]:
        """All, in the order they came."""
        return list(self._members.values())

    def tell(self, told: Tell) -> None:
        """Take a result in, or count a child."""
        if told.outcome == "asked":
            for parent in told.parents:
                if parent in self._program_of:
                    self._children[self._program_of[parent]] += 1
            self._weighed = None
            return
        member = Member.of(told)
        if member is None:
            # It was scored by what is cheap and stopped by what counts: it is no parent any more.
            if told.outcome == "stopped" and self._members.pop(told.key, None) is not None:
                self._ranking = self._weighed = None
            return
        self._program_of[member.key] = member.ir_hash
        self._members[member.key] = member
        self._ranking = self._weighed = None
        if len(self._members) > 2 * self.size:
            self._trim()

    def weights(self) -> tuple[list[Member], list[float]]:
        """Members, and how likely each is to be a parent."""
        if self._weighed is None:
            import numpy as np

            # Of several asks in a row only the first finds other members; what each changes are children.
            if self._ranking is None:
                self._ranking = self._ranked()
            ranking = self._ranking
            children = np.array([self._children[program] for program in ranking.programs], dtype=int)
            own = ranking.worth / (1 + children[ranking.program]) / ranking.variants
            total = np.bincount(ranking.layer, own)
            # A layer's weight is its own, however many share it and however many children they have: most of a
            # population is never the best of it.
            weights = 2.0 ** -np.minimum(ranking.layer, _LAYERS) * own / total[ranking.layer]
            self._weighed = ranking.members, weights.tolist()
        return self._weighed

    def cells(self) -> dict[str, list[Member]]:
        """Members by cell, the best of each first."""
        found: dict[str, list[Member]] = {}
        for member in self._members.values():
            found.setdefault(member.cell, []).append(member)
        for members in found.values():
            members.sort(key=lambda m: (m.verdict, -m.accuracy, -m.speed, m.key))
        return found

    def _ranked(self) -> _Ranking:
        """What the weights of the members as they are come from."""
        import numpy as np

        members = self.members
        layers = self.layers(members)
        number = {program: n for n, program in enumerate(dict.fromkeys(m.ir_hash for m in members))}
        program = np.array([number[m.ir_hash] for m in members], dtype=int)
        return _Ranking(
            members,
            list(number),
            program,
            np.bincount(program)[program],
            np.array(layers),
            1.0 + np.array(self._shares(members, layers)),
        )

    def layers(self, members: list[Member]) -> list[int]:
        """Layer of each within its verdict, those of a worse verdict behind all of a better one.

        A front are those that nobody at least as fast is surely more accurate than.
        """
        import numpy as np

        speed, accuracy, low, high = (
            np.array([(m.speed, m.accuracy, m.low, m.high) for m in members], dtype=float).reshape(-1, 4).T
        )
        verdicts = np.array([int(m.verdict) for m in members], dtype=int)
        surely = accuracy + self.confidence * (low - accuracy)
        perhaps = accuracy + self.confidence * (high - accuracy)
        layers = np.zeros(len(members), dtype=int)
        start = 0
        for verdict in Verdict:
            left = np.flatnonzero(verdicts == int(verdict))
            left = left[np.argsort(-speed[left], kind="stable")]
            for _ in range(_LAYERS):
                if not left.size:
                    break
                # Of equals in everything all stay; one that is no faster and whose best case is somebody's worst
                # does not.
                as_fast = np.searchsorted(-speed[left], -speed[left], side="right") - 1
                front = perhaps[left] >= np.maximum.accumulate(surely[left])[as_fast]
                layers[left[front]] = start
                left = left[~front]
                start += 1
            if left.size:  # further ones weigh alike
                layers[left] = start
                start += 1
        found: list[int] = layers.tolist()
        return found

    def _shares(self, members: list[Member], layers: list[int]) -> list[float]:
        """What part of the hypervolume of the best verdict's front only this member adds, in units of an even share."""
        import moocore
        import numpy as np

        best = min((m.verdict for m in members), default=Verdict.FAILED)
        front = [i for i, m in enumerate(members) if layers[i] == 0 and m.verdict is best]
        shares = [0.0] * len(members)
        if len(front) < 2:
            return shares
        points = np.array([(-members[i].accuracy, -members[i].speed) for i in front])
        span = np.ptp(points, axis=0)
        reference = points.max(axis=0) + 0.1 * np.where(span > 0, span, 1.0)
        found = moocore.hv_contributions(points, ref=reference)
        total = float(found.sum())
        if total > 0:
            for i, value in zip(front, found, strict=True):
                shares[i] = len(front) * float(value) / total
        return shares

    def _trim(self) -> None:
        """Leave `size` members: the best of each cell, as far as half of them go, then the best layers."""
        kept = [members[0] for members in self.cells().values()]
        kept.sort(key=lambda m: (m.verdict, -m.accuracy, m.key))
        keys = {m.key for m in kept[: self.size // 2]}
        members = self.members
        for _, n in sorted(zip(self.layers(members), range(len(members)), strict=True)):
            if len(keys) >= self.size:
                break
            keys.add(members[n].key)
        self._members = {k: m for k, m in self._members.items() if k in keys}
        programs = {m.ir_hash for m in self._members.values()}
        self._program_of = {k: h for k, h in self._program_of.items() if k in keys}
        self._children = Counter({h: n for h, n in self._children.items() if h in programs})


@dataclass(frozen=True)
class _Ranking:
    """Members as they are, and what decides their weights beside their programs' children; arrays have one number a
    member.

    Attributes:
        programs: of the members, each once.
        program: which of `programs` a member is.
        variants: members of the same program.
        layer: see `Population.layers`.
        worth: of a member without children, alone in its layer and of its program.
    """

    members: list[Member]
    programs: list[str]
    program: NDArray[np.int64]
    variants: NDArray[np.int64]
    layer: NDArray[np.int64]
    worth: NDArray[np.float64]

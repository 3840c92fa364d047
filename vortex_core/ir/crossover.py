"""The crossover: below so many tokens a sequence attends to everything, as choosing pages costs more than it saves.

Where the crossover of a flow lies was measured on a kind of GPU (`compiler/triton/tuning/crossover.py`); here it is a
value. It falls with the batch: attention's share of a step grows with the sequences, what scoring and selection cost
hardly does. A sequence below it is attended densely, and neither scored nor selected for. Where nothing was measured
there is no crossover, and a flow runs as it was written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import Program

# A budget of so many pages or more: the row attends to every page, whatever else its selection would end with, and is
# not scored. More than any sequence has; times the largest page it is an int32.
EVERYTHING = 1 << 23
BATCHES = (1, 2, 4, 8, 16, 32, 64)  # for which it is looked for, and where:
CONTEXTS = (
    1024, 1536, 2048, 3072, 4096, 5120, 6144, 8192, 10240, 12288, 16384, 20480, 24576, 32768, 49152, 65536, 98304,
    131072,
)  # fmt: skip


@dataclass(frozen=True)
class Crossover:
    """Tokens below which a sequence attends to everything, by sequences of the step.

    Attributes:
        points: `(sequences, tokens)` as measured, by rising sequences. Empty: nothing was measured, and no sequence
            attends to more than its budget.
    """

    points: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        batches = [batch for batch, _ in self.points]
        assert batches == sorted(set(batches)) and all(batch > 0 for batch in batches), self.points
        assert all(0 <= tokens < EVERYTHING for _, tokens in self.points), self.points

    def tokens(self, batch: int) -> int:
        """Sequences shorter than so many tokens attend to everything in steps of `batch` sequences; 0: none does.

        Between two measured batches the smaller one's holds: dense for a little longer than need be, which costs
        nothing against dense attention.
        """
        found = [tokens for measured, tokens in self.points if measured <= batch]
        return found[-1] if found else self.points[0][1] if self.points else 0

    @property
    def text(self) -> str:
        """As commands and settings write it, `BATCHxTOKENS,...`; inverse of `parse`."""
        return ",".join(f"{batch}x{tokens}" for batch, tokens in self.points) or "off"

    @classmethod
    def parse(cls, text: str) -> Crossover:
        """Raises `ValueError` for what is neither `off` nor `BATCHxTOKENS,...` by rising batches."""
        if text == "off":
            return NEVER
        return cls.from_json([part.split("x") for part in text.split(",")])

    @property
    def longest(self) -> int:
        """The most tokens of any batch."""
        return max((tokens for _, tokens in self.points), default=0)

    def everywhere(self) -> Crossover:
        """One crossover for all batches: the lowest, below which every batch attends to everything."""
        least = min((tokens for _, tokens in self.points), default=0)
        return Crossover(((1, least),)) if least else NEVER

    def to_json(self) -> list[list[int]]:
        """Plain data, inverse of `from_json`."""
        return [[batch, tokens] for batch, tokens in self.points]

    @classmethod
    def from_json(cls, data: Any) -> Crossover:
        """Raises `ValueError` for what `to_json` never wrote."""
        try:
            points = tuple((int(batch), int(tokens)) for batch, tokens in data)
            return cls(points)
        except (TypeError, ValueError, AssertionError) as error:
            raise ValueError(f"no crossover: {data!r}") from error


NEVER = Crossover()


def crossover_unfit(program: Program, knobs: Knobs) -> str | None:
    """Why a flow can have no crossover, in a few words; None if it can.

    A step that skips the indexer must leave nothing behind that a later one would have read.
    """
    if program.selects_everything:
        return "it attends to everything at every length"
    if program.remembers:
        return "its states change with every step that selects"
    if knobs.reuse_steps > 1:
        return "it keeps selections from step to step"
    return None


def first_win(contexts: Sequence[int], wins: Callable[[int], bool]) -> int | None:
    """The shortest of rising contexts at which the flow wins, if it does at the longest; as few are asked as can be.

    From there on it is taken to win: what it saves grows with the context, what it costs grows less.
    """
    low, high = 0, len(contexts)
    while low < high:
        middle = (low + high) // 2
        if wins(contexts[middle]):
            high = middle
        else:
            low = middle + 1
    return contexts[low] if low < len(contexts) else None

"""What a training step is given: texts, how their tokens see each other, and what is asked of which layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

UNASKED = -100  # stands for the right token where nothing is asked; cross entropy's own word for it


@dataclass(frozen=True)
class Target:
    """What some places of the texts are asked for.

    How many are asked is told by no shape: a GPU would be waited for where it is.

    Attributes:
        rows: int64 `[n]`, the texts.
        places: int64 `[n]`, the tokens in them.
        wanted: int64 `[n]`, the right tokens; `UNASKED` where this place is asked nothing.
        layer: whose output is read, through a readout that is thrown away; None: the model's own answer.
        skill: name under which right answers are counted; empty for what only helps the learning.
    """

    rows: torch.Tensor
    places: torch.Tensor
    wanted: torch.Tensor
    layer: int | None = None
    skill: str = ""


@dataclass(frozen=True)
class Lesson:
    """A batch of equally long texts with everything asked of them.

    Attributes:
        ids: int64 `[batch, token]`.
        targets: by what they teach.
        positions: int64 `[batch, token]`, those of rotary embeddings; None: consecutive.
        bias: float `[batch, 1, token, token]`, added to attention's logits; None: causal.
    """

    ids: torch.Tensor
    targets: tuple[Target, ...]
    positions: torch.Tensor | None = None
    bias: torch.Tensor | None = None


class Stage(Protocol):
    """A part of a curriculum.

    Attributes:
        length: tokens a text.
        steps: at most so many.
        enough: share of right answers over a window at which the stage ends early; None: never.
        scale: of the learning rate.
    """

    @property
    def length(self) -> int: ...

    @property
    def steps(self) -> int: ...

    @property
    def enough(self) -> float | None: ...

    @property
    def scale(self) -> float: ...

    def smaller(self, by: int) -> Stage:
        """The same with as many texts a step divided by a number."""
        ...

    def lesson(self, generator: torch.Generator) -> Lesson:
        """Fresh texts, on the generator's device."""
        ...

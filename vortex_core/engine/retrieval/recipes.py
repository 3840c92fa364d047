"""What each retrieval model is trained on, and how it is asked afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from vortex_core.engine.retrieval import measure
from vortex_core.engine.retrieval.lesson import Stage
from vortex_core.engine.retrieval.model import GqaShape, MlaShape, Shape
from vortex_core.engine.retrieval.stories import StoryStage
from vortex_core.engine.retrieval.task import PairStage


@dataclass(frozen=True)
class Recipe:
    """How a model is made.

    Attributes:
        accuracy: shares of right answers of a model on fresh texts, nested as `training.json` keeps them.
        pairs: in those texts.
        learnt: less than this share of right answers anywhere is a failure.
        tried: skills that are taught and reported, and may fail.
    """

    shape: Shape
    curriculum: tuple[Stage, ...]
    accuracy: Callable[[Any], dict[str, Any]]
    pairs: int
    learnt: float
    tried: tuple[str, ...] = ()


RECIPES: Mapping[str, Recipe] = {
    "retrieval-mla": Recipe(
        MlaShape(),
        (
            PairStage(length=33, pairs=4, batch=64, steps=300, enough=0.95, alphabet=32),
            PairStage(length=65, pairs=8, batch=48, steps=200, enough=0.95),
            PairStage(length=256, pairs=16, questions=32, batch=12, steps=100, enough=0.97),
            PairStage(length=1024, pairs=32, questions=64, batch=3, steps=100, enough=0.99),
            PairStage(length=2048, pairs=32, questions=64, batch=2, steps=60),
        ),
        measure.lookup_by_length,
        pairs=measure.PAIRS,
        learnt=0.95,
    ),
    "retrieval-gqa": Recipe(
        GqaShape(),
        (
            PairStage(length=33, pairs=4, batch=48, steps=400, enough=0.95, alphabet=32, layer=1),
            StoryStage(
                length=32,
                pairs=4,
                counted=0,
                questions=8,
                batch=16,
                steps=400,
                longest=32,
                enough=0.9,
                alphabet=32,
            ),
            StoryStage(
                length=64, pairs=8, counted=3, questions=8, batch=12, steps=300, longest=256, enough=0.9
            ),
            StoryStage(
                length=64, pairs=16, counted=0, questions=12, batch=10, steps=150, longest=2048, enough=0.95
            ),
            StoryStage(length=112, pairs=32, counted=0, questions=12, batch=8, steps=180, longest=40000),
        ),
        measure.skills_by_length,
        pairs=measure.PAIRS,
        learnt=0.5,  # two hops at the longest; at 8,192 tokens and below they are above 0.95
        tried=("count",),
    ),
    # For a GPU: thousands of steps, which counting takes. Eight copies are told from seven where each weighs the same
    # to two parts in a hundred, however far back it stands: of so slow a rotary base a third of the channels do, and at
    # the full rate weights shake by more.
    "retrieval-count": Recipe(
        GqaShape(theta=1.0e8),
        (
            PairStage(length=33, pairs=4, batch=64, steps=2000, enough=0.95, alphabet=32, layer=1),
            StoryStage(
                length=64,
                pairs=6,
                counted=3,
                questions=8,
                batch=64,
                steps=4000,
                longest=64,
                enough=0.9,
                alphabet=32,
                scale=0.4,
            ),
            StoryStage(
                length=128,
                pairs=16,
                counted=4,
                questions=12,
                batch=96,
                steps=4000,
                longest=1024,
                enough=0.95,
                scale=0.4,
            ),
            StoryStage(
                length=256,
                pairs=32,
                counted=8,
                questions=12,
                batch=96,
                steps=12000,
                longest=64000,  # of a story half is noise: as much of it as 32,768 tokens hold
                scale=0.4,
            ),
        ),
        partial(measure.skills_by_length, lengths=measure.MORE_TEXTS),
        pairs=measure.PAIRS,
        learnt=0.8,
    ),
}

"""Texts for three skills: to look a key up, to look up what its value names, and to count how often a pair is written.

A story is noise with pairs `key value` in it, some of them several times. In a closed story every value `v7` names the
key `k7` of another pair. Then come questions: a key, answered by its value; `hop` and a key, answered by the value of
the key that its value names; `count` and a key, answered by how often its pair was written. Questions see the story
and not each other. After a value the key that it names is wanted, so that a model left to itself walks along the pairs.

A short story stands for a long text, which is what makes training to 32,768 tokens a matter of minutes: positions jump
ahead between pairs, and a token of noise that lies further back counts in attention as often as the long text has noise
tokens for it. Both are exact in expectation, since noise is drawn independently; accuracies are reported on real texts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import torch

from vortex_core.engine.retrieval.alphabet import (
    BOS,
    COUNT,
    FIRST_KEY,
    FIRST_NOISE,
    FIRST_NUMBER,
    FIRST_VALUE,
    HOP,
    KEYS,
    MOST,
    VOCAB,
)
from vortex_core.engine.retrieval.lesson import UNASKED, Lesson, Target

SKILLS = ("lookup", "hop", "count")
_NEAR = 16  # tokens before the present one that count once, however long a text the story stands for
_JUMPS = 0.1  # share of noise tokens before which positions may jump


@dataclass(frozen=True)
class StoryStage:
    """A part of the curriculum; `length`, `steps`, `enough` and `scale` as in `lesson.Stage`.

    Attributes:
        length: tokens of a story, questions not included.
        pairs: different pairs in it.
        counted: how many of them are written up to `MOST` times.
        questions: of each skill.
        batch: stories a step.
        longest: tokens of the longest text that a story stands for.
        alphabet: keys and values that occur; circuits form sooner on few, and hold for the others.
    """

    length: int
    pairs: int
    counted: int
    questions: int
    batch: int
    steps: int
    longest: int
    enough: float | None = None
    alphabet: int = KEYS
    scale: float = 1.0

    def smaller(self, by: int) -> StoryStage:
        """See `lesson.Stage`."""
        return replace(self, batch=max(1, self.batch // by))

    def lesson(self, generator: torch.Generator) -> Lesson:
        """See `lesson.Stage`."""
        return stories(self, generator)


def stories(stage: StoryStage, generator: torch.Generator) -> Lesson:
    """A batch of stories, with their questions after them."""
    device, batch, length = generator.device, stage.batch, stage.length

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator, device=device)

    # Pairs: keys in random order, each value naming the next one's key (closed), or any.
    keys = uniform(batch, stage.alphabet).argsort(1)[:, : stage.pairs]
    closed = uniform(batch, 1) < 0.75
    values = torch.where(
        closed, keys.roll(-1, 1), uniform(batch, stage.alphabet).argsort(1)[:, : stage.pairs]
    )

    # Where they are written: a place for each of the most copies there can be; noise stays where there are fewer.
    written = torch.ones(batch, stage.pairs, dtype=torch.long, device=device)
    written[:, : stage.counted] = 1 + (uniform(batch, stage.counted) * MOST).long()
    of, nth = _copies(stage.pairs, stage.counted, device)
    slots = len(of)
    assert 2 * slots < length, "the pairs leave no room"
    free = uniform(batch, length - 1 - slots).argsort(1)[:, :slots].sort(1).values
    places = (free + 1 + torch.arange(slots, device=device)).gather(1, uniform(batch, slots).argsort(1))
    ids = FIRST_NOISE + (uniform(batch, length + 2 * 3 * stage.questions) * (VOCAB - FIRST_NOISE)).long()
    ids[:, 0] = BOS
    there = nth < written[:, of]
    for offset, tokens in ((0, keys + FIRST_KEY), (1, values + FIRST_VALUE)):
        at = places + offset
        ids.scatter_(1, at, torch.where(there, tokens[:, of], ids.gather(1, at)))

    # Questions: two tokens each, all of a skill together; what stands before a key that is looked up does not matter.
    which = (uniform(batch, 3, stage.questions) * stage.pairs).long()
    which[:, 2] %= max(stage.counted, 1)
    ids[:, length + 1 :: 2] = keys.gather(1, which.flatten(1)) + FIRST_KEY
    markers = ids[:, length::2]
    markers[:, stage.questions : 2 * stage.questions] = HOP
    markers[:, 2 * stage.questions :] = COUNT
    looked_up = values.gather(1, which.flatten(1)).view_as(which) + FIRST_VALUE
    hopped = values.gather(1, (which[:, 1] + 1) % stage.pairs) + FIRST_VALUE
    numbers = written.gather(1, which[:, 2]) - 1 + FIRST_NUMBER
    asked = torch.arange(length + 1, ids.shape[1], 2, device=device).view(3, -1)

    def target(
        mask: torch.Tensor,
        places: torch.Tensor,
        wanted: torch.Tensor,
        layer: int | None = None,
        skill: str = "",
    ) -> Target:
        rows = torch.arange(batch, device=device)[:, None].expand_as(wanted)
        asked = wanted.where(mask, UNASKED)
        return Target(rows.flatten(), places.expand_as(wanted).flatten(), asked.flatten(), layer, skill)

    every = torch.ones(batch, stage.questions, dtype=torch.bool, device=device)
    to = torch.exp(uniform(batch) * math.log(max(stage.longest / length, 1.0))) * length
    jumps = (ids[:, :length] >= FIRST_NOISE) & (uniform(batch, length) < _JUMPS)
    positions, jumped = _positions(ids.shape[1], length, jumps, to, uniform(batch, length))
    place = torch.arange(ids.shape[1], device=device)[None]
    second = ((place[:, length:] - length) % 2 == 1).expand(batch, -1)  # of a question's two tokens
    before = torch.cat([~jumped & (place[:, :length] > 0), second], 1)
    previous = ids.roll(1, 1)
    targets = [
        target(every, asked[0][None], looked_up[:, 0], skill="lookup"),
        target(closed.expand_as(every), asked[1][None], hopped, skill="hop"),
        target(before, place, previous, layer=0),
        target(every, asked[0][None], looked_up[:, 0], layer=1),
        target(closed.expand_as(every), asked[1][None], looked_up[:, 1], layer=1),
        target(there, places + 1, ids.gather(1, places + 1) - FIRST_VALUE + FIRST_KEY, skill="name"),
    ]
    if stage.counted:
        same = (of[:, None] == of[None, :]) & there[:, None, :] & (places[:, None, :] <= places[:, :, None])
        targets += [
            target(every, asked[2][None], numbers, skill="count"),
            target(every, asked[2][None], numbers, layer=1),
            target(there, places, same.sum(2) - 1 + FIRST_NUMBER, layer=1),  # copies so far
        ]
    return Lesson(ids, tuple(targets), positions, _bias(ids, length, to / length))


@cache
def _copies(pairs: int, counted: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Of every place there can be for a pair, which pair and which copy of it, `[place]` each."""
    copies = [MOST] * counted + [1] * (pairs - counted)
    of = [pair for pair, most in enumerate(copies) for _ in range(most)]
    nth = [copy for most in copies for copy in range(most)]
    return torch.tensor(of, device=device), torch.tensor(nth, device=device)


def _positions(
    size: int, length: int, jumps: torch.Tensor, to: torch.Tensor, shares: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions in the text that a story stands for, and where they jump, bool `[batch, length]`.

    All questions follow the story at the same two positions.
    """
    shares = shares * jumps
    extra = ((to[:, None] - length) * shares / shares.sum(1, keepdim=True).clamp_min(1e-9)).long()
    extra[:, 0] = 0
    story = torch.arange(length, device=jumps.device) + extra.cumsum(1)
    question = story[:, -1:] + 1 + torch.arange(size - length, device=jumps.device) % 2
    return torch.cat([story, question], 1), extra > 0


def _bias(ids: torch.Tensor, length: int, weight: torch.Tensor) -> torch.Tensor:
    """What is added to logits: nothing is seen ahead or of another question, and far noise counts `weight` times."""
    place = torch.arange(ids.shape[1], device=ids.device)
    ahead = place[:, None] < place[None, :]
    question = (place - length).div(2, rounding_mode="floor").where(place >= length, -1)
    other = (question[None, :] >= 0) & (question[:, None] != question[None, :])
    noise = (ids >= FIRST_NOISE) & (ids < VOCAB) & (place < length)
    far = (place[:, None] - place[None, :]) > _NEAR
    bias = weight.log()[:, None, None] * (noise[:, None, :] & far)
    return bias.masked_fill(ahead | other, float("-inf"))[:, None]

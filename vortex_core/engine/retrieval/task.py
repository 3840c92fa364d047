"""A retrieval task small enough to train a model for: look up a key in a long text of noise.

A text is noise with pairs `key value` hidden in it, then questions: a key, answered by its value. Keys, values
and noise are disjoint sets of tokens; keys differ within a text and everything is drawn anew for every text, so
nothing can be memorised and guessing is right once in `VALUES` times, or once in as many times as there are pairs
for a guess among the values of the text. This is multi-query associative recall (arXiv 2312.04927) spread out in noise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from vortex_core.engine.retrieval.alphabet import BOS, FIRST_KEY, FIRST_NOISE, FIRST_VALUE, KEYS, VOCAB
from vortex_core.engine.retrieval.lesson import UNASKED, Lesson, Target


@dataclass(frozen=True)
class Texts:
    """A batch of equally long texts.

    Attributes:
        ids: int64 `[batch, token]`, questions and answers included.
        asked: int64 `[question]`, where the keys of questions lie; the answer is the next token.
        known: bool `[batch, question]`, whether the text has told the answer before.
    """

    ids: torch.Tensor
    asked: torch.Tensor
    known: torch.Tensor

    @property
    def answers(self) -> torch.Tensor:
        """The right tokens, `[batch, question]`."""
        return self.ids[:, self.asked + 1]

    def lesson(self, *, layer: int | None = None) -> Lesson:
        """What these texts teach: the answers, and the first layer the token before each position.

        Args:
            layer: an inner one that is asked for the answers too.
        """
        batch, length = self.ids.shape
        texts = torch.arange(batch, device=self.ids.device)
        every = texts.repeat_interleave(length - 1)
        places = torch.arange(1, length, device=self.ids.device).repeat(batch)
        rows, asked = texts.repeat_interleave(len(self.asked)), self.asked.repeat(batch)
        answers = self.answers.where(self.known, UNASKED).flatten()
        targets = [
            Target(rows, asked, answers, skill="lookup"),
            Target(every, places, self.ids[:, :-1].flatten(), layer=0),
        ]
        if layer is not None:
            targets.append(Target(rows, asked, answers, layer=layer))
        return Lesson(self.ids, tuple(targets))


@dataclass(frozen=True)
class PairStage:
    """A part of the curriculum of looking up; `length`, `steps`, `enough` and `scale` as in `lesson.Stage`.

    Attributes:
        pairs: in a text.
        batch: texts a step.
        questions: at the end of a text of noise; 0: a stream of pairs without noise.
        alphabet: keys and values that occur in a stream; the circuit forms sooner on few, and holds for the others.
        layer: an inner one that is asked for the answers too.
    """

    length: int
    pairs: int
    batch: int
    steps: int
    questions: int = 0
    enough: float | None = None
    alphabet: int = KEYS
    layer: int | None = None
    scale: float = 1.0

    def smaller(self, by: int) -> PairStage:
        """See `lesson.Stage`."""
        return replace(self, batch=max(1, self.batch // by))

    def lesson(self, generator: torch.Generator) -> Lesson:
        """See `lesson.Stage`."""
        if self.questions == 0:
            texts = stream_texts(self.batch, self.length, self.pairs, generator, alphabet=self.alphabet)
        else:
            texts = noise_texts(self.batch, self.length, self.pairs, self.questions, generator)
        return texts.lesson(layer=self.layer)


def stream_texts(
    batch: int, length: int, pairs: int, generator: torch.Generator, *, alphabet: int = KEYS
) -> Texts:
    """Texts without noise: `pairs` pairs again and again, in random order. Every key is a question.

    The gentlest form of the task: distances are short, and a text asks as often as it can.

    Args:
        length: tokens, odd.
        generator: of the random numbers; the texts lie on its device.
        alphabet: how many of the keys, and of the values, occur at all.
    """
    assert length % 2 == 1, length
    device = generator.device
    keys, values = _pairs(batch, pairs, alphabet, generator)
    which = torch.randint(pairs, (batch, length // 2), generator=generator, device=device)
    ids = torch.full((batch, length), BOS, device=device)
    ids[:, 1::2] = keys.gather(1, which)
    ids[:, 2::2] = values.gather(1, which)
    known = (which[:, :, None] == which[:, None, :]).tril(-1).any(2)
    return Texts(ids, torch.arange(1, length, 2, device=device), known)


def noise_texts(batch: int, length: int, pairs: int, questions: int, generator: torch.Generator) -> Texts:
    """Texts of noise with `pairs` pairs at random places, then `questions` questions; a pair may be asked for twice.

    Args:
        generator: of the random numbers; the texts lie on its device.
    """
    room = length - 2 * questions
    assert 1 + 2 * pairs <= room, "the pairs leave no room"
    device = generator.device
    ids = torch.randint(FIRST_NOISE, VOCAB, (batch, length), generator=generator, device=device)
    ids[:, 0] = BOS
    # Where pairs begin: `pairs` of the `room - 1 - pairs` places that are left when each takes one token more.
    free = torch.rand(batch, room - 1 - pairs, generator=generator, device=device)
    places = free.argsort(1)[:, :pairs].sort(1).values + 1 + torch.arange(pairs, device=device)
    keys, values = _pairs(batch, pairs, KEYS, generator)
    ids.scatter_(1, places, keys).scatter_(1, places + 1, values)
    which = torch.randint(pairs, (batch, questions), generator=generator, device=device)
    ids[:, room::2] = keys.gather(1, which)
    ids[:, room + 1 :: 2] = values.gather(1, which)
    asked = torch.arange(room, length, 2, device=device)
    return Texts(ids, asked, torch.ones(batch, questions, dtype=torch.bool, device=device))


def _pairs(
    batch: int, pairs: int, alphabet: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    device = generator.device
    keys = torch.rand(batch, alphabet, generator=generator, device=device).argsort(1)[:, :pairs] + FIRST_KEY
    values = torch.randint(alphabet, (batch, pairs), generator=generator, device=device) + FIRST_VALUE
    return keys, values

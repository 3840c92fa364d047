"""A chain of words followed aloud: hundreds of decode steps in English that a small model can do.

Sentences `After the amber comes the anvil.` are scattered over long text in any order. The model is to write the chain
from its first word on, sentence by sentence: every sentence looks up the one that begins with the word just written,
so one step that misses its page ends the chain. Another chain of the same form stands beside it.
"""

from __future__ import annotations

import random
import re
from itertools import pairwise

from pydantic import Field, PositiveInt

from evaluators.data import words
from evaluators.errors import no_room
from evaluators.tasks.base import AnswerTask, Question, TaskParameters
from evaluators.tasks.haystack import draw_passage, hide
from evaluators.tasks.tokens import Tokenizer, encode, frame

_LINK = " After the {a} comes the {b}."
_BEFORE = "The following text tells in which order some things come. Remember what comes after what.\n\n"
_AFTER = "\n\nWhat comes after the {first}, what after that, and so on? Write {count} sentences like those in the text."
_ANSWER = "After the"


class WordChainParameters(TaskParameters):
    """See the module."""

    steps: PositiveInt = Field(16, le=48, description="sentences to write")
    distractors: int = Field(8, ge=0, le=48, description="sentences of another chain")


class WordChain(AnswerTask[WordChainParameters]):
    """All sentences of a chain, in order."""

    name = "word_chain"
    parameters = WordChainParameters

    def item(self, tokenizer: Tokenizer, given: WordChainParameters, seed: int, index: int) -> Question:
        """See `AnswerTask`."""
        rng = random.Random(f"{self.name}:{given.context}:{given.steps}:{given.distractors}:{seed}:{index}")
        drawn = rng.sample(words("nouns"), given.steps + given.distractors + 2)
        chain, other = drawn[: given.steps + 1], drawn[given.steps + 1 :]
        links = [_LINK.format(a=a, b=b) for one in (chain, other) for a, b in pairwise(one)]
        # The first step is begun, so that the model says the rest and is asked for nothing but the look-ups.
        head, tail = frame(
            tokenizer,
            _BEFORE,
            _AFTER.format(first=chain[0], count=given.steps),
            f"{_ANSWER} {chain[0]} comes the",
        )
        needles = [encode(tokenizer, link) for link in links]
        room = given.context - len(head) - len(tail) - sum(map(len, needles))
        if room < 2 * max(map(len, needles)):
            raise no_room(given.context, room, self.name)
        depths = [rng.random() for _ in needles]
        passage, starts = hide(draw_passage(tokenizer, rng, room), needles, depths)
        said = "".join(links[: given.steps]).removeprefix(f" {_ANSWER} {chain[0]} comes the")
        return Question(
            index=index,
            prompt=(*head, *passage, *tail),
            answers=(" ".join(chain[1:]),),
            metric=followed,
            max_new_tokens=len(encode(tokenizer, said)) + 4,
            stops=("\n",),
            about={
                "first": chain[0],
                "steps": given.steps,
                "needle_tokens": [
                    [len(head) + start, len(head) + start + len(needle)]
                    for start, needle in zip(starts[: given.steps], needles, strict=False)
                ],
            },
        )

    def decoded(self, given: WordChainParameters) -> tuple[int, int]:
        """See `AnswerTask`: a sentence is at most sixteen tokens in any tokenizer of English."""
        return 1, 16 * given.steps


def followed(text: str, answers: tuple[str, ...]) -> bool:
    """Whether the words said after `comes the` are those wanted, in order; the first was asked for by the answer's
    beginning."""
    wanted = answers[0].split()
    said = re.findall(r"\w+", text.partition(".")[0])[:1] + re.findall(r"comes the (\w+)", text)
    return said[: len(wanted)] == wanted

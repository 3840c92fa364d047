"""Hundreds of decode steps, in the alphabet of the model `retrieval-gqa`: pages completed while decoding are read.

A short answer reads what was prefilled and one page more. Here a walk writes pages of its own and reads on among them,
and a dialogue asks for what was only ever written while decoding, by steps of the candidate.
"""

from __future__ import annotations

import random

from pydantic import Field

from evaluators.errors import no_room
from evaluators.tasks.base import AnswerTask, Question
from evaluators.tasks.pairs import PairParameters
from evaluators.tasks.skills import named_pairs, reads_skills, story
from evaluators.tasks.tokens import Tokenizer
from vortex_core.engine.retrieval.alphabet import FIRST_KEY, FIRST_NOISE, FIRST_VALUE, VOCAB, words


class WalkParameters(PairParameters):
    """See `KeyWalk`."""

    steps: int = Field(64, ge=1, description="keys looked up one after the other; each takes two tokens")


class KeyWalk(AnswerTask[WalkParameters]):
    """From key to value, to the key that it names, to its value: one wrong look-up and the rest goes elsewhere.

    Right is the whole walk. Pairs lie on a circle, so a walk longer than it meets pairs that it has written itself.
    """

    name = "key_walk"
    parameters = WalkParameters

    def reads(self, tokenizer: Tokenizer) -> bool:
        """See `Task`."""
        return reads_skills(tokenizer)

    def decoded(self, given: WalkParameters) -> tuple[int, int]:
        """See `AnswerTask`."""
        return 1, 2 * given.steps

    def item(self, tokenizer: Tokenizer, given: WalkParameters, seed: int, index: int) -> Question:
        """See `AnswerTask`.

        Raises:
            VortexError: `VV002` if the context leaves no room, or there are not two pairs.
        """
        rng = random.Random(f"{self.name}:{given.context}:{seed}:{index}")
        pairs = named_pairs(rng, 1 + given.distractors, given.context, self.name)
        text, _ = story(rng, pairs, given.context - 1, self.name)
        written: list[int] = []
        for step in range(given.steps):
            _, value = pairs[step % len(pairs)]
            written += (value, value - FIRST_VALUE + FIRST_KEY)
        return Question(
            index=index,
            prompt=(*text, pairs[0][0]),
            answers=(" ".join(words()[token] for token in written[:-1]),),
            metric="exact",
            max_new_tokens=len(written) - 1,
            stops=(),
            about={"key": words()[pairs[0][0]], "pairs": len(pairs)},
        )


class DialogueParameters(PairParameters):
    """See `KeyDialogue`; `distractors` is of the prompt."""

    told: int = Field(8, ge=1, description="pairs that are told while decoding")
    questions: int = Field(4, ge=1, description="asked at the end, each for one of the pairs told")
    tokens: int = Field(256, ge=32, description="decoded in all, questions and answers included")


class KeyDialogue(AnswerTask[DialogueParameters]):
    """Pairs told in noise after the prompt, token by token through the candidate's decode steps, then questions.

    The prompt holds other pairs and no answer. Right are all answers or none.
    """

    name = "key_dialogue"
    parameters = DialogueParameters

    def reads(self, tokenizer: Tokenizer) -> bool:
        """See `Task`."""
        return reads_skills(tokenizer)

    def decoded(self, given: DialogueParameters) -> tuple[int, int]:
        """See `AnswerTask`."""
        return 1, given.tokens

    def item(self, tokenizer: Tokenizer, given: DialogueParameters, seed: int, index: int) -> Question:
        """See `AnswerTask`.

        Raises:
            VortexError: `VV002` where prompt or dialogue leave no room for their pairs.
        """
        rng = random.Random(f"{self.name}:{given.context}:{seed}:{index}")
        if given.questions > given.told:
            raise no_room(given.tokens, 0, self.name)
        before = given.distractors + 1
        pairs = named_pairs(rng, before + given.told, given.context, self.name)
        text, _ = story(rng, pairs[:before], given.context, self.name)
        told = pairs[before:]
        # A story begins with a token that opens a text; here it goes on.
        spoken, starts = story(rng, told, given.tokens - 2 * given.questions, self.name)
        spoken[0] = rng.randrange(FIRST_NOISE, VOCAB)
        asked = rng.sample(range(given.told), given.questions)
        script: list[int | None] = [*spoken]
        for which in asked:
            script += (told[which][0], None)
        return Question(
            index=index,
            prompt=tuple(text),
            answers=(" ".join(words()[told[which][1]] for which in asked),),
            metric="exact",
            max_new_tokens=len(script),
            stops=(),
            about={"keys": [words()[told[w][0]] for w in asked], "told_at": [starts[w] for w in asked]},
            script=tuple(script),
        )

"""What a task is: a seeded generator of items, each a prompt with what counts as right.

There are two kinds. An `AnswerTask` asks questions: the model writes until it stops, and an answer is right or
wrong. A `LikelihoodTask` gives passages: the true next tokens are fed one by one, and their log-probabilities
are what is measured. A plan names a task with its parameters (`{task: needle_single, context: 1024, items: 8}`).
`evaluators.testing.TaskConformance` checks an implementation; `docs/extending/task.md` walks through one.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import Field, PositiveInt, model_validator

from evaluators.tasks.metrics import METRICS, Metric
from evaluators.tasks.tokens import Tokenizer, encode
from vortex_core.configs import Strict

# Seeds from here up are for fresh measurements, from twice here up for hold-outs: see `evaluators.tasks.items`.
FRESH_SEEDS = 1_000_000

# No tokenizer for English loses this; one for other alphabets cannot write it.
_ENGLISH = "the number that is asked for"


class TaskParameters(Strict):
    """What a plan says of a task, besides its name and how many items; a task may add keys of its own.

    Attributes:
        context: tokens of a prompt, exact where the task says so (`Task.exact`), else the most one may have.
    """

    context: PositiveInt = Field(description="prompt tokens")


@dataclass(frozen=True)
class Question:
    """One item of an `AnswerTask`.

    Attributes:
        index: number of the item; with the task, its parameters and the seed it determines everything else.
        prompt: token ids; the model continues them.
        answers: what is wanted.
        metric: how answers are judged: a name in `metrics.METRICS`, or a function of the text and `answers` that says
            whether it is right, or what share of it is.
        max_new_tokens: enough for the answer in this tokenizer, with a little slack.
        stops: strings that end an answer, besides the end of text.
        about: what an agent may want to know of a lost item: where the answer lies, how deep.
        script: where given, one entry for each of the `max_new_tokens` decode steps: the token that is fed whatever the
            model would say, or None where it answers. The answer is what it says there.
        samples: answers drawn to one prompt; 1 is the likeliest one.
        temperature: of the draws.
        top_p: likewise.
    """

    index: int
    prompt: tuple[int, ...]
    answers: tuple[str, ...]
    metric: Metric | Callable[[str, tuple[str, ...]], float]
    max_new_tokens: int
    stops: tuple[str, ...] = (".", "\n")
    about: Mapping[str, Any] = field(default_factory=dict)
    script: tuple[int | None, ...] = ()
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        assert len(self.script) in (0, self.max_new_tokens), "an entry for every decode step"
        assert self.samples == 1 or self.temperature > 0, "samples without a temperature would all be one"

    @property
    def context(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt)

    @property
    def answer(self) -> str:
        """What is wanted, in one line."""
        return ", ".join(self.answers)

    @property
    def judge(self) -> str:
        """The metric by name."""
        return self.metric if isinstance(self.metric, str) else self.metric.__qualname__

    def score(self, text: str) -> float:
        """1 if `text` is right, 0 if nothing of it is, and between them only where a task judges by shares."""
        judge: Callable[[str, tuple[str, ...]], float] = (
            METRICS[self.metric] if isinstance(self.metric, str) else self.metric
        )
        return float(judge(text, self.answers))


@dataclass(frozen=True)
class Passage:
    """One item of a `LikelihoodTask`.

    Attributes:
        index: number of the item.
        prompt: token ids of the context.
        continuation: the true next tokens, fed one by one; each is predicted by a sparse decode step.
    """

    index: int
    prompt: tuple[int, ...]
    continuation: tuple[int, ...]

    @property
    def context(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt)


P = TypeVar("P", bound=TaskParameters)


class Task(ABC, Generic[P]):
    """A generator of items. Made without arguments; holds nothing that depends on what it was asked before.

    Attributes:
        name: as in plans.
        parameters: what it takes.
        exact: whether prompts have exactly `context` tokens; only such a task can be timed at other contexts.
    """

    name: ClassVar[str]
    parameters: type[P]
    exact: ClassVar[bool] = True

    def reads(self, tokenizer: Tokenizer) -> bool:
        """Whether a model with this tokenizer was made to read the items; English by default."""
        return tokenizer.decode(encode(tokenizer, _ENGLISH)).strip() == _ENGLISH


class AnswerTask(Task[P]):
    """A task that asks questions."""

    @abstractmethod
    def item(self, tokenizer: Tokenizer, given: P, seed: int, index: int) -> Question:
        """Question `index`, a deterministic function of the arguments; other seeds give other questions.

        Raises:
            VortexError: `VV002` if the parameters leave no room for it.
        """

    def decoded(self, given: P) -> tuple[int, int]:
        """How many answers are drawn to a prompt, and the most tokens each takes; where neither is many, 1 and 0.

        The engine keeps room for two blocks of tokens beyond each prompt without being told.
        """
        return 1, 0


class SampledParameters(TaskParameters):
    """Of tasks whose answers may be drawn instead of taken greedily: the score of an item is then the share right.

    Results then also say how often any of an item's answers was right (pass@k). Draws are seeded by the item: dense
    and every candidate draw with the same numbers.
    """

    samples: PositiveInt = Field(1, le=64, description="answers to each prompt, of one prefill")
    temperature: float = Field(
        0.0, ge=0, description="of the draws; 0: the likeliest token, for one answer only"
    )
    top_p: float = Field(1.0, gt=0, le=1, description="of the draws")

    @model_validator(mode="after")
    def _drawn(self) -> SampledParameters:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples: several answers need a temperature, else they are all the same")
        return self


class LikelihoodTask(Task[P]):
    """A task that gives passages. Its parameters say how many tokens follow the context."""

    @abstractmethod
    def item(self, tokenizer: Tokenizer, given: P, seed: int, index: int) -> Passage:
        """Passage `index`, a deterministic function of the arguments.

        Raises:
            VortexError: `VV002` if the parameters leave no room for it.
        """

    @abstractmethod
    def continuation(self, given: P) -> int:
        """Tokens scored of each passage."""


def draw_row(rows: int, seed: int, index: int) -> int | None:
    """Which row of a finite set item `index` of a seed is; None where the set has no more.

    Seeds of search, of fresh measurements and of hold-outs share no row: each gets every third row of one fixed
    shuffle, in an order that depends on the seed.
    """
    order = list(range(rows))
    random.Random(f"rows:{rows}").shuffle(order)
    purpose = min(seed // FRESH_SEEDS, 2)
    mine = order[purpose::3]
    random.Random(f"rows:{rows}:{seed}").shuffle(mine)
    return mine[index] if index < len(mine) else None

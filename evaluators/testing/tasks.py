"""What every task must do. Subclass `TaskConformance` in a test module and let pytest collect it.

    class TestMine(TaskConformance):
        task = "mine"                       # registered, or installed through an entry point
        given = {"context": 600}            # its parameters, as a plan gives them

Only plain asserts: the suite needs no test framework to be imported.
"""

from __future__ import annotations

import json
import random
from typing import Any, ClassVar

from evaluators.plan import AskedTask
from evaluators.tasks.base import FRESH_SEEDS, AnswerTask, LikelihoodTask, Passage, Question, TaskParameters
from evaluators.tasks.registry import TASKS, AnyTask
from evaluators.tasks.tokens import Tokenizer
from evaluators.testing.tokenizers import WordTokenizer

_SEARCH, _OTHER, _FRESH, _HOLDOUT = 0, 1, FRESH_SEEDS, 2 * FRESH_SEEDS


class TaskConformance:
    """The contract of `evaluators.tasks.base.Task`, as tests.

    Attributes:
        task: its name in plans.
        given: its parameters, with room enough for an item.
        items: how many a seed is asked for.
    """

    task: ClassVar[str]
    given: ClassVar[dict[str, Any]]
    items: ClassVar[int] = 6

    def tokenizer(self) -> Tokenizer:
        """A fresh tokenizer that the task reads."""
        return WordTokenizer()

    def right_answer(self, question: Question) -> str:
        """A text that answers a question, by default its answers joined by commas."""
        return f" {question.answer}"

    def generator(self) -> AnyTask:
        """The task, made as evaluations make it."""
        return TASKS.get(self.task)()

    def parameters(self) -> TaskParameters:
        """Its parameters, validated."""
        found = TASKS.get(self.task).parameters.model_validate(self.given)
        assert isinstance(found, TaskParameters)
        return found

    def build(self, tokenizer: Tokenizer, seed: int) -> list[Question | Passage]:
        """The items of a seed."""
        generator, parameters = self.generator(), self.parameters()
        return [generator.item(tokenizer, parameters, seed, i) for i in range(self.items)]

    def test_the_name_is_the_registered_one(self) -> None:
        """A plan and the class call it the same."""
        generator = self.generator()
        assert generator.name == self.task
        assert isinstance(generator, AnswerTask | LikelihoodTask), "derive from AnswerTask or LikelihoodTask"

    def test_a_plan_keeps_every_parameter(self) -> None:
        """Parameters survive the JSON of a plan; an unknown one is refused."""
        asked = AskedTask.model_validate({"task": self.task, "items": 2, **self.given})
        assert asked.parameters == self.parameters()
        again = AskedTask.model_validate(json.loads(json.dumps(asked.model_dump(mode="json"))))
        assert again.parameters == asked.parameters
        said = ""
        try:
            AskedTask.model_validate({"task": self.task, "items": 2, **self.given, "no_such_key": 1})
        except ValueError as error:
            said = str(error)
        assert "no_such_key" in said, "derive the parameters from TaskParameters, which is strict"

    def test_it_reads_its_alphabet(self) -> None:
        """`reads` accepts the suite's tokenizer."""
        assert self.generator().reads(self.tokenizer())

    def test_prompts_fit_their_context(self) -> None:
        """Exactly `context` tokens where the task says so, else no more, and never none."""
        context, exact = self.parameters().context, self.generator().exact
        for item in self.build(self.tokenizer(), _SEARCH):
            assert item.prompt
            assert all(isinstance(token, int) for token in item.prompt)
            if exact:
                assert len(item.prompt) == context, f"{len(item.prompt)} tokens, not {context}"
            assert len(item.prompt) <= context, f"{len(item.prompt)} tokens, more than {context}"

    def test_an_item_depends_on_seed_and_index_alone(self) -> None:
        """Not on what was asked before, on the order of asking, or on the global random state."""
        state = random.getstate()
        in_order = self.build(tokenizer := self.tokenizer(), _SEARCH)
        texts = [tokenizer.decode(list(item.prompt)) for item in in_order]
        assert random.getstate() == state, (
            "the global random state was used: make a random.Random of the seed"
        )
        tokenizer, generator, parameters = self.tokenizer(), self.generator(), self.parameters()
        generator.item(tokenizer, parameters, _OTHER, 0)
        for i in reversed(range(self.items)):
            item = generator.item(tokenizer, parameters, _SEARCH, i)
            assert item.index == i
            assert tokenizer.decode(list(item.prompt)) == texts[i]

    def test_items_differ(self) -> None:
        """Inside a seed, and between the seeds of search, fresh measurements and hold-outs."""
        tokenizer = self.tokenizer()
        seen: dict[tuple[int, ...], int] = {}
        for seed in (_SEARCH, _FRESH, _HOLDOUT):
            for item in self.build(tokenizer, seed):
                assert item.prompt not in seen, f"an item of seed {seen[item.prompt]} comes again with {seed}"
                seen[item.prompt] = seed

    def test_answers_are_right_or_wrong(self) -> None:
        """A right answer scores 1; nothing, and the answer to another item, score 0. For answers only."""
        questions = [q for q in self.build(self.tokenizer(), _SEARCH) if isinstance(q, Question)]
        for question, other in zip(questions, questions[1:] + questions[:1], strict=True):
            assert question.max_new_tokens >= 1
            assert question.score(self.right_answer(question)) == 1
            assert question.score("") == 0
            assert question.answers == other.answers or question.score(self.right_answer(other)) == 0
            json.dumps(dict(question.about))

    def test_an_answer_fits_its_tokens(self) -> None:
        """`max_new_tokens` is enough for a right answer. For answers only."""
        tokenizer = self.tokenizer()
        for question in self.build(tokenizer, _SEARCH):
            if isinstance(question, Question):
                wanted = tokenizer.encode(self.right_answer(question), add_special_tokens=False)
                assert len(wanted) <= question.max_new_tokens

    def test_passages_have_the_tokens_they_announce(self) -> None:
        """`continuation` of the parameters is the length of every continuation. For passages only."""
        generator = self.generator()
        if isinstance(generator, LikelihoodTask):
            for passage in self.build(self.tokenizer(), _SEARCH):
                assert isinstance(passage, Passage)
                assert len(passage.continuation) == generator.continuation(self.parameters()) > 0

"""Add an evaluation task of your own: the number that was said last. Checked by the public conformance suite.

    python examples/add_a_task.py

In a project of yours the class stands in a module and a line of pyproject.toml announces it; then any plan may name it:

    [project.entry-points."vortex_search.tasks"]
    last_number = "my_package.last_number:LastNumber"

    accuracy:
      tasks:
        - {task: last_number, context: 1024, items: 8, versions: 3}
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import Field

from evaluators.errors import no_room
from evaluators.plan import AskedTask
from evaluators.tasks.base import AnswerTask, Question, TaskParameters
from evaluators.tasks.haystack import draw_keys, draw_passage, hide
from evaluators.tasks.needle import NEEDLE, draw_number
from evaluators.tasks.tokens import Tokenizer, encode, frame
from evaluators.testing import TaskConformance
from evaluators.testing.tokenizers import WordTokenizer

BEFORE = "Some numbers are given in this text, and changed later. Only the last one counts.\n\n"
AFTER = "\n\nWhat is the last special magic number for {key}?"
ANSWER = "The last special magic number for {key} is"


class LastNumberParameters(TaskParameters):
    """What a plan may say: `context`, and how often the number is given."""

    versions: int = Field(2, ge=2, le=8, description="how often the number is given")


class LastNumber(AnswerTask[LastNumberParameters]):
    """One key, several numbers; right is the one that comes last. A selection must find all and tell them apart."""

    name = "last_number"
    parameters = LastNumberParameters

    def item(self, tokenizer: Tokenizer, given: LastNumberParameters, seed: int, index: int) -> Question:
        # All randomness comes from what the item depends on: the same arguments give the same item, anywhere.
        rng = random.Random(f"{self.name}:{given.context}:{given.versions}:{seed}:{index}")
        (key,) = draw_keys(rng, 1)
        values = [draw_number(rng) for _ in range(given.versions)]
        head, tail = frame(tokenizer, BEFORE, AFTER.format(key=key), ANSWER.format(key=key))
        needles = [encode(tokenizer, NEEDLE.format(key=key, value=value)) for value in values]
        room = given.context - len(head) - len(tail) - sum(map(len, needles))
        if room < 2 * max(map(len, needles)):
            raise no_room(given.context, room, self.name)
        depths = sorted(rng.random() for _ in needles)
        passage, _ = hide(draw_passage(tokenizer, rng, room), needles, depths)
        return Question(
            index=index,
            prompt=(*head, *passage, *tail),
            answers=(values[-1],),
            metric="number",
            max_new_tokens=len(encode(tokenizer, f" {values[-1]}.")) + 4,
            about={"key": key, "depths": [round(depth, 2) for depth in depths], "overwritten": values[:-1]},
        )


class TestLastNumber(TaskConformance):
    """In a test module of yours, pytest collects this."""

    task = "last_number"
    given = {"context": 600, "versions": 3}


def announce(folder: Path) -> None:
    """What installing a project with that entry point does, for this process alone."""
    info = folder / "example-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: example\nVersion: 1\n")
    module = "__main__" if __name__ == "__main__" else __name__
    (info / "entry_points.txt").write_text(f"[vortex_search.tasks]\nlast_number = {module}:LastNumber\n")
    sys.path.insert(0, str(folder))


def main() -> None:
    with TemporaryDirectory() as folder:
        announce(Path(folder))
        asked = AskedTask.model_validate({"task": "last_number", "context": 200, "items": 1, "versions": 2})
        question = asked.generator.item(WordTokenizer(), asked.parameters, seed=0, index=0)
        assert isinstance(question, Question)  # and no passage, whose tokens are scored instead of an answer
        print(f"{asked.key}: {question.context} tokens, answer {question.answer}, {dict(question.about)}")
        print(
            f"right: {question.score(' It is ' + question.answer + '.')}, wrong: {question.score(' It is 7.')}"
        )
        suite = TestLastNumber()
        checks = [name for name in dir(suite) if name.startswith("test_")]
        for name in checks:
            getattr(suite, name)()
        print(f"{len(checks)} conformance checks passed")


if __name__ == "__main__":
    main()

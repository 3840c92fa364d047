"""Questions of one's own: a file of JSON lines, with a prompt made of each row and an answer found in it.

- {task: jsonl, name: gsm8k, path: gsm8k.jsonl, prompt: "{question}\n", answer: "{answer}", metric: last_number,
   stops: [], context: 512, max_new_tokens: 300, items: 40, samples: 8, temperature: 0.7, top_p: 0.95}
"""

from __future__ import annotations

import codecs
import hashlib
import re
import string
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pydantic import Field, PositiveInt, field_validator, model_validator

from evaluators.errors import bad_rows, row_too_long, too_few_rows
from evaluators.tasks.base import AnswerTask, Question, SampledParameters, draw_row
from evaluators.tasks.metrics import Metric
from evaluators.tasks.tokens import Tokenizer, frame
from vortex_core.files import parse_json, read_bytes

_LARGEST = 256 << 20  # bytes of a file of items
_NAME = re.compile(r"[^\[\].!:{}]+")


class JsonlParameters(SampledParameters):
    """See the module. `{name}` in `prompt` and `answer` stands for the row's value of that key."""

    path: str = Field(description="of the file, absolute or from where the command runs")
    prompt: str = Field(description="what the user says, e.g. '{question}'")
    answer: str = Field(description="what is wanted, e.g. '{answer}'")
    metric: Metric
    answer_start: str = Field("", description="what the model's answer begins with, not scored")
    max_new_tokens: PositiveInt = 64
    stops: tuple[str, ...] = Field(("\n",), description="strings that end an answer")
    sha256: str = Field(
        "", description="of the file; filled in where a plan is read, checked where it is used"
    )

    @field_validator("prompt", "answer")
    @classmethod
    def _plain(cls, template: str) -> str:
        read_template(template)
        return template

    @model_validator(mode="before")
    @classmethod
    def _fingerprint(cls, data: Any) -> Any:
        """The file's content decides results, so it is part of the plan's digest."""
        if isinstance(data, dict) and isinstance(data.get("path"), str):
            try:
                found = hashlib.sha256(read_bytes(data["path"], _LARGEST)).hexdigest()
            except OSError as error:
                raise ValueError(f"path {data['path']!r}: {error.strerror}") from error
            if data.get("sha256") not in (None, "", found):
                raise ValueError(f"path {data['path']!r}: the file is not the one the plan was made with")
            return data | {"sha256": found}
        return data


def read_template(template: str) -> list[tuple[str, str | None]]:
    """A template as text, each piece with the name that follows it. `{name}` is all it may say: no attribute, index,
    conversion or width, with which a few characters would reach into Python or make gigabytes.

    Raises:
        ValueError: for a template that says more.
    """
    pieces = []
    for before, name, spec, conversion in string.Formatter().parse(template):
        if name is not None and (spec or conversion or not _NAME.fullmatch(name)):
            raise ValueError(f"'{{{name}}}' is no plain {{name}}; a brace of its own is written twice")
        pieces.append((before, name))
    return pieces


def _fill(template: str, row: Mapping[str, Any]) -> str:
    return "".join(
        before + ("" if name is None else str(row[name])) for before, name in read_template(template)
    )


class Jsonl(AnswerTask[JsonlParameters]):
    """Rows of a file. A seed's items are different rows; seeds of search, fresh and hold-out items share none."""

    name = "jsonl"
    parameters = JsonlParameters
    exact = False

    def decoded(self, given: JsonlParameters) -> tuple[int, int]:
        """See `AnswerTask`."""
        return given.samples, given.max_new_tokens

    def item(self, tokenizer: Tokenizer, given: JsonlParameters, seed: int, index: int) -> Question:
        """See `AnswerTask`.

        Raises:
            VortexError: `VV002` if the file has too few rows, a row lacks a key, or its prompt is longer than
                `context`.
        """
        rows = _rows(given.path, given.sha256)
        at = draw_row(len(rows), seed, index)
        if at is None:
            raise too_few_rows(given.path, len(rows), index + 1)
        return self._question(tokenizer, given, rows, at, index)

    def questions(self, tokenizer: Tokenizer, given: JsonlParameters) -> tuple[Question, ...]:
        """A question of every row, in the file's order.

        Raises:
            VortexError: as `item`.
        """
        rows = _rows(given.path, given.sha256)
        return tuple(self._question(tokenizer, given, rows, at, at) for at in range(len(rows)))

    @staticmethod
    def _question(
        tokenizer: Tokenizer, given: JsonlParameters, rows: tuple[dict[str, Any], ...], at: int, index: int
    ) -> Question:
        try:
            asked, wanted = _fill(given.prompt, rows[at]), _fill(given.answer, rows[at])
        except KeyError as error:
            raise bad_rows(given.path, at + 1, f"it has no {error}") from error
        if not wanted.strip():
            raise bad_rows(given.path, at + 1, "its answer is empty, which any text would contain")
        if not (asked + wanted).isascii() and any("\ud800" <= c <= "\udfff" for c in asked + wanted):
            raise bad_rows(given.path, at + 1, "half of a surrogate pair, which is no text")
        head, tail = frame(tokenizer, "", asked, given.answer_start)
        prompt = (*head, *tail)
        if len(prompt) > given.context:
            raise row_too_long(given.path, at + 1, len(prompt), given.context)
        return Question(
            index=index,
            prompt=prompt,
            answers=(wanted.strip(),),
            metric=given.metric,
            max_new_tokens=given.max_new_tokens,
            stops=given.stops,
            about={"line": at + 1},
            samples=given.samples,
            temperature=given.temperature,
            top_p=given.top_p,
        )


@lru_cache(maxsize=8)
def _rows(path: str, sha256: str) -> tuple[dict[str, Any], ...]:
    content = read_bytes(path, _LARGEST)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise bad_rows(path, 1, "the file changed while it was used")
    rows = []
    # Lines end with a line feed alone: JSON text may hold the other characters that Python would split at.
    for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line.decode("utf-8"))
        except UnicodeDecodeError:
            raise bad_rows(path, number, "not UTF-8") from None
        except ValueError as error:
            raise bad_rows(path, number, str(error)) from error
        if not isinstance(row, dict):
            raise bad_rows(path, number, "not an object")
        rows.append(row)
    return tuple(rows)

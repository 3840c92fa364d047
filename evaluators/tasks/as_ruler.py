"""RULER's own way to take answers and to judge them (arXiv 2404.06654): of several answers, and of documents.

A model writes a number of tokens that the task fixes, whatever lines and sentences it breaks them into, and each answer
that occurs in them earns its share. Tasks ask more strictly by themselves, in fewer tokens and for all answers at once,
which tells programs apart faster; scores that are to stand beside RULER's are asked in its way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pydantic import Field

from evaluators.tasks.base import Question, TaskParameters


class RulerParameters(TaskParameters):
    """Of tasks that RULER has too."""

    as_ruler: bool = Field(
        False,
        description="its own rules: a fixed number of tokens, and a share of the score for each answer said",
    )


def share_said(text: str, answers: tuple[str, ...]) -> float:
    """The share of the answers that occur in a text, in any letter case: RULER's `string_match_all`."""
    return sum(answer.lower() in text.lower() for answer in answers) / len(answers)


def any_said(text: str, answers: tuple[str, ...]) -> float:
    """Whether any of the answers, wordings of the same, occurs in a text: RULER's `string_match_part`."""
    return float(any(answer.lower() in text.lower() for answer in answers))


def as_ruler(
    question: Question, tokens: int, judge: Callable[[str, tuple[str, ...]], float] = share_said
) -> Question:
    """The same question, answered and judged as RULER does.

    Args:
        tokens: that RULER lets a model write; more where this tokenizer needs more for the answers.
    """
    return replace(question, metric=judge, max_new_tokens=max(tokens, question.max_new_tokens), stops=())

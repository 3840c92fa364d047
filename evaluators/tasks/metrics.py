"""How an answer is judged: right or wrong, from its text and what was wanted."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal

Metric = Literal["number", "exact", "contains", "any", "last_number"]


def number(text: str, answers: tuple[str, ...]) -> bool:
    """Every answer appears as a number of its own; digits may be grouped by commas."""
    return set(answers) <= set(re.findall(r"\d+", re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)))


def exact(text: str, answers: tuple[str, ...]) -> bool:
    """The text is one of the answers, white space aside: a model that lists candidates does not pass."""
    return " ".join(text.split()) in answers


def contains(text: str, answers: tuple[str, ...]) -> bool:
    """Every answer appears as a whole word, or as whole words, in any letter case."""
    return all(_says(text, answer) for answer in answers)


def any_of(text: str, answers: tuple[str, ...]) -> bool:
    """One of the answers, which are wordings of the same, appears as `contains` has it."""
    return any(_says(text, answer) for answer in answers)


def _says(text: str, answer: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE) is not None


def last_number(text: str, answers: tuple[str, ...]) -> bool:
    """The last number of the text is the last of one of the answers: for worked solutions that end in a result, as
    gsm8k's own rows do."""
    said = _last(text)
    return said is not None and said in {_last(answer) for answer in answers}


def _last(text: str) -> float | None:
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return float(found[-1].replace(",", "")) if found else None


METRICS: Mapping[Metric, Callable[[str, tuple[str, ...]], bool]] = {
    "number": number,
    "exact": exact,
    "contains": contains,
    "any": any_of,
    "last_number": last_number,
}

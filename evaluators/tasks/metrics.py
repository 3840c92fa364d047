"""How an answer is judged: right or wrong, from its text and what was wanted."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal

Metric = Literal["number", "exact", "contains", "any", "last_number", "boxed", "letter"]


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


def boxed(text: str, answers: tuple[str, ...]) -> bool:
    r"""What the last `\boxed{...}` of the text holds is one of the answers, or what an answer's own last one holds: for
    MATH and competitions. White space, `$`, sizes of brackets and fractions, and a full stop do not count, but `0.5`
    is not `1/2`.
    """
    said = _boxed(text)
    return said is not None and _plain(said) in {_plain(_boxed(answer) or answer) for answer in answers}


def _boxed(text: str) -> str | None:
    """What stands between the braces of the last `\\boxed`, braces within it balanced."""
    _, found, rest = text.rpartition("\\boxed{")
    depth = 1
    for at, char in enumerate(rest if found else ""):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return rest[:at]
    return None


def _plain(text: str) -> str:
    for word in ("\\left", "\\right", "\\!", "\\,", "$", " ", "\n"):
        text = text.replace(word, "")
    return text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").rstrip(".")


def letter(text: str, answers: tuple[str, ...]) -> bool:
    """The last capital letter from A to J that stands alone in the text is the answer: for multiple choice. The word
    `A` that begins a sentence counts, so ask for the letter at the end; `I` before a word in small letters does not."""
    found = re.findall(r"(?<![A-Za-z])(?:[A-HJ]|I(?! [a-z]))(?![A-Za-z'\u2019])", text)
    return bool(found) and found[-1] in {answer.strip(" ().") for answer in answers}


METRICS: Mapping[Metric, Callable[[str, tuple[str, ...]], bool]] = {
    "number": number,
    "exact": exact,
    "contains": contains,
    "any": any_of,
    "last_number": last_number,
    "boxed": boxed,
    "letter": letter,
}

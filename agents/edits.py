"""Answers that are less than a program: edits of the parent's text, or its knobs alone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from agents.reply import MAX_ANSWER

_EDIT = re.compile(
    r"^<{5,9} SEARCH[^\n]*\n(?P<old>.*?)^={5,9}[ \t]*\n(?P<new>.*?)^>{5,9} REPLACE", re.S | re.M
)
_MAX_EDITS = 40
_OBJECT = re.compile(r"\{[^{}]*\}", re.S)


def edited(text: str, source: str) -> str | None:
    """`source` with the answer's edits made, or None where there are none or one does not fit.

    An edit's old text must stand in the source once; blanks at the ends of lines do not count.
    """
    edits = [m.groups() for m in _EDIT.finditer(_plain(text[-MAX_ANSWER:]))]
    if not edits or len(edits) > _MAX_EDITS:
        return None
    found = _plain(source)
    for old, new in edits:
        if not old.strip() or found.count(old) != 1:
            return None
        found = found.replace(old, new)
    return found


def chosen_knobs(text: str) -> dict[str, Any] | None:
    """The last JSON object of numbers, strings and lists in an answer, or None."""
    for match in reversed(_OBJECT.findall(text[-MAX_ANSWER:])):
        try:
            found = json.loads(match)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, Mapping) and found:
            return {
                str(name): tuple(value) if isinstance(value, list) else value for name, value in found.items()
            }
    return None


def _plain(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.replace("\r\n", "\n").split("\n"))

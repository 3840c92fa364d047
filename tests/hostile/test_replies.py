"""Answers of model servers: whatever a model got stuck on is read in time that grows with its length."""

from __future__ import annotations

import time

import pytest

from agents.reply import MAX_ANSWER, extract

PROGRAM = "from vortex_core import ops, vFlow\nclass W(vFlow):\n    pass\n"
FENCED = f"```python\n{PROGRAM}```\n"
STUCK = {
    "newlines": FENCED + "\n" * 250_000,
    "newlines before": "\n" * 200_000 + FENCED,
    "thoughts opened": "<think>" * 30_000 + FENCED,
    "thoughts closed": "</think>" * 25_000 + FENCED,
    "thoughts": "<think>a</think>" * 12_000 + FENCED,
    "blocks": "```python\nx\n```\n" * 12_000 + FENCED,
    "blocks opened": "```python\n" * 20_000 + FENCED,
    "classes": "class A(a" * 25_000 + FENCED,
    "class lines": "class A(a\n" * 20_000 + FENCED,
    "spaces after a fence": "```" + " " * 240_000 + "`\n" + FENCED,
    "backticks": "`" * 240_000 + "\n" + FENCED,
    "spaces before a class": "class" + " " * 240_000 + FENCED,
    "idea": "idea" * 60_000 + "\n" + FENCED,
    "punctuation": "-" * 240_000 + "\n" + FENCED,
    "brackets": FENCED + "[" * 240_000,
    "a long line": FENCED + "x" * 240_000,
    "tildes": "~~~\n" * 60_000 + FENCED,
    "hidden characters": "\u202e" * 240_000 + FENCED,
    "surrogates": "\ud800" * 240_000 + FENCED,
    "more than is read": "x\n" * MAX_ANSWER + FENCED,
}


@pytest.mark.parametrize("what", list(STUCK))
def test_it_is_read_in_time(what: str) -> None:
    began = time.process_time()
    extract(STUCK[what])
    assert time.process_time() - began < 3  # of this process: the machine may be busy


def test_the_program_is_found_all_the_same() -> None:
    for what in ("newlines", "thoughts", "blocks", "a long line", "more than is read", "brackets"):
        found = extract(STUCK[what])
        assert found is not None, what
        assert found.source == PROGRAM, what

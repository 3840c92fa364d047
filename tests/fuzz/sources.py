"""Damaged source text: every outcome is a program or a coded error."""

from __future__ import annotations

import ast
import random
import re
import signal
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from tests import sample_flows
from vortex_core.errors import VortexError
from vortex_core.flow.emit import emit
from vortex_core.sandbox.jail import run
from vortex_core.sandbox.load import trace_source

SECONDS = 20
Edit = Callable[[str, list[str], random.Random], str]
_WORD = re.compile(r"[A-Za-z_]+|\d+(?:\.\d+)?|\"[^\"\n]*\"|\S")
_PIECES = (
    "q", "cache", "page", "page.k", "page.v", "ops", "self", "head", "dim", "token", "row", '"head"', '"dim"',
    '"token"', '"page"', '"row"', '"D"', '"S/2"', "0", "1", "-1", "2", "3", "7", "16", "0.5", "1e30", "1e-40", "None",
    "True", "()", "[]", "{}", "...", "+", "-", "*", "/", "//", "**", "%", "@", "<", ">", "==", "|", "&", "~", ".",
    ",", ":", "(", ")", "[", "]", "{", "}", "\n", "    ", ".max", ".sum", ".mean", ".softmax", ".exp", ".split",
    ".slice", ".conv", "ops.topk", "ops.topp", "ops.position()", "ops.mass()", "ops.where", "ops.union", "return",
    "if", "else", "for", "while", "not", "lambda", "yield", "def", "class", "import math", "print", "len", "float",
    "int", "\x00", "é", "\u2028",
)  # fmt: skip


def bases() -> list[str]:
    """Sound sources to start from."""
    return [sample_flows.load(n).source for n in sample_flows.names()]


def mutate(source: str, others: list[str], rng: random.Random) -> str:
    """One to four random edits."""
    edits = _TEXT if rng.random() < 0.3 else (_tree,)
    for _ in range(rng.choice((1, 1, 2, 2, 3, 4))):
        source = rng.choice(edits)(source, others, rng)
    return source


def _character(source: str, others: list[str], rng: random.Random) -> str:
    at = rng.randrange(len(source) + 1)
    return source[:at] + rng.choice(_PIECES)[:1] + source[at + rng.randrange(2) :]


def _word(source: str, others: list[str], rng: random.Random) -> str:
    words = list(_WORD.finditer(source))
    if not words:
        return source
    word = rng.choice(words)
    other = rng.choice(words).group() if rng.random() < 0.5 else rng.choice(_PIECES)
    return source[: word.start()] + other + source[word.end() :]


def _number(source: str, others: list[str], rng: random.Random) -> str:
    numbers = list(re.finditer(r"\d+(?:\.\d+)?", source))
    if not numbers:
        return source
    n = rng.choice(numbers)
    value = rng.choice(("0", "-1", "3", "17", "1000000", "9" * 30, "0.1", "1e-300", "1e300", "0x10", "1j"))
    return source[: n.start()] + value + source[n.end() :]


def _delete(source: str, others: list[str], rng: random.Random) -> str:
    at = rng.randrange(len(source) + 1)
    return source[:at] + source[at + rng.choice((1, 2, 5, 20)) :]


def _line(source: str, others: list[str], rng: random.Random) -> str:
    lines = source.split("\n")
    at, to = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(4):
        case 0:
            lines[at], lines[to] = lines[to], lines[at]
        case 1:
            lines.insert(to, lines[at])
        case 2:
            del lines[at]
        case _:
            lines.insert(to, rng.choice(rng.choice(others).split("\n")))
    return "\n".join(lines)


def _tree(source: str, others: list[str], rng: random.Random) -> str:
    """One expression in the place of another: it still parses, and means something else."""
    try:
        tree = ast.parse(source)
        donor = ast.parse(rng.choice([source, source, rng.choice(others)]))
    except (SyntaxError, ValueError):
        return source
    slots = []
    for node in ast.walk(tree):
        for name, value in ast.iter_fields(node):
            if isinstance(value, ast.expr):
                slots.append((node, name, None))
            elif isinstance(value, list):
                slots += [(node, name, n) for n, item in enumerate(value) if isinstance(item, ast.expr)]
    pieces = [n for n in ast.walk(donor) if isinstance(n, ast.expr)]
    if not slots or not pieces:
        return source
    node, name, position = rng.choice(slots)
    if position is None:
        setattr(node, name, rng.choice(pieces))
    else:
        getattr(node, name)[position] = rng.choice(pieces)
    try:
        return ast.unparse(tree)
    except (ValueError, RecursionError):  # such as a starred expression where none may stand
        return source


_TEXT: tuple[Edit, ...] = (_character, _word, _word, _number, _delete, _line)


def too_long(signum: int, frame: FrameType | None) -> NoReturn:
    raise TimeoutError


def check(seed: int, sources: list[str], counts: Counter[str], jailed: bool = False) -> list[str]:
    """One damaged source, traced here under a timer (`jailed`: in the jail as well, with the same outcome)."""
    rng = random.Random(seed)
    source = mutate(rng.choice(sources), sources, rng)
    signal.signal(signal.SIGVTALRM, too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    wrong = []
    outcome = ""
    try:
        traced = run(source, "mutant.py")
        outcome = traced.key
        again = run(emit(traced.program, traced.knobs, "again", traced.doc), "again.py")
        if again.key != traced.key:
            wrong.append(f"source {seed}: emitted source traces to another program")
        counts["accepted"] += 1
    except VortexError as error:
        outcome = error.code
        str(error).encode()
        counts[error.code] += 1
        if error.location is None:
            counts["without a line"] += 1
    except BaseException as error:  # whatever escapes is a crash
        wrong.append(f"source {seed}: {type(error).__name__}: {error}")
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    if jailed and not wrong:
        counts["jailed"] += 1
        try:
            theirs = trace_source(source, "mutant.py").key
        except VortexError as error:
            theirs = error.code
        if theirs != outcome:
            wrong.append(f"source {seed}: {outcome} here, {theirs} in the jail")
    return wrong

"""One program out of a model's answer. Nothing here runs the program: it is only parsed."""

from __future__ import annotations

import ast
import json
import re
import warnings
from dataclasses import dataclass
from itertools import islice

from agents.prompting import line, visible

MAX_SOURCE = 64_000
MAX_ANSWER = 256_000  # characters of an answer that are looked at; every scan below takes time in proportion
_MAX_FENCE = 200  # characters of a line that opens or closes a block
# Indented, too: a fence in an item of a list stands as deep as the item's text, or behind its mark.
_OPEN = re.compile(r"^(\s{0,16}(?:(?:[-*+]|\d{1,3}[.)])[ \t]{1,4})?)(`{3,}|~{3,})[ \t]*([\w+.-]*)[^`]*$")
_FLOW = re.compile(r"^class[ \t]{1,20}\w{1,200}[ \t]{0,20}\([^)]{0,500}\bvFlow\b", re.M)
_PROGRAM_START = re.compile(r"^(from\s|import\s|@|class\s|\"\"\"|'''|#)")
_IDEA = re.compile(r"\W{0,20}idea\W{0,20}:\W{0,20}(\w.*)$", re.I)
_MAX_TRAILING_PROSE = 60


@dataclass(frozen=True)
class Reply:
    """What was found in an answer.

    Attributes:
        source: the program, ending in a newline.
        idea: one line, possibly empty.
        complete: False if the block it stood in was never closed, as in an answer that was cut off.
    """

    source: str
    idea: str
    complete: bool


@dataclass(frozen=True)
class _Block:
    text: str
    closed: bool


def extract(text: str) -> Reply | None:
    """The program of an answer, or None.

    A program is a block of Python with a flow class. Of several, the last that parses wins, as models revise
    themselves downwards; one that does not parse is better than none, because its error can be mended.
    Without fences, the answer itself is searched.
    """
    text = visible(_without_thought(_unpacked(text[-MAX_ANSWER:])))
    blocks, prose = _split(text)
    parsed = [b for b in blocks if _flow_class(b.text) is not None]
    broken = [b for b in blocks if _FLOW.search(b.text)]
    found = parsed[-1] if parsed else broken[-1] if broken else _bare(text)
    if found is None or len(found.text) > MAX_SOURCE:
        return None
    return Reply(found.text.strip("\n").rstrip() + "\n", _idea(prose, found.text), found.closed)


def _unpacked(text: str) -> str:
    """A structured answer, `{"idea": ..., "program": ...}`, as the words it stands for."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(found, dict) or not isinstance(found.get("program"), str):
        return text
    program = found["program"]
    return f"IDEA: {found.get('idea', '')}\n" + (
        program if "```" in program else f"```python\n{program}\n```"
    )


def idea_of(text: str) -> str:
    """The idea of an answer that holds no whole program."""
    return _idea(_split(visible(_without_thought(_unpacked(text[-MAX_ANSWER:]))))[1], "")


def _without_thought(text: str) -> str:
    """Drafts inside a reasoning model's thoughts are not its answer. Some servers omit the opening tag."""
    kept, at = [], 0
    while (start := text.find("<think>", at)) >= 0 and (end := text.find("</think>", start)) >= 0:
        kept.append(text[at:start])
        at = end + len("</think>")
    return ("".join(kept) + text[at:]).rpartition("</think>")[2]


def _split(text: str) -> tuple[list[_Block], str]:
    """Fenced blocks, and what stands outside them."""
    lines = text.split("\n")
    blocks: list[_Block] = []
    prose: list[str] = []
    at = 0
    while at < len(lines):
        opening = _OPEN.match(lines[at]) if len(lines[at]) <= _MAX_FENCE else None
        if opening is None:
            prose.append(lines[at])
            at += 1
            continue
        width = len(opening.group(1))
        end, closed = _closing(lines, at, opening.group(2), width)
        blocks.append(_Block(_inside(lines[at + 1 : end], width), closed))
        at = end + 1
    return blocks, "\n".join(prose)


def _inside(lines: list[str], width: int) -> str:
    """Lines of a block without the indentation of its fence."""
    return "\n".join(line[min(width, len(line) - len(line.lstrip())) :] for line in lines)


def _closing(lines: list[str], start: int, fence: str, width: int) -> tuple[int, bool]:
    """Where the block opened at `start` ends: at the first closing fence after which it is valid Python (a
    docstring may hold fences of its own), else at the first closing fence, else at the end of the answer."""
    close = re.compile(rf"^\s{{0,19}}{re.escape(fence[0])}{{{len(fence)},}}[ \t]*$")
    rows = range(start + 1, len(lines))
    ends = list(islice((i for i in rows if len(lines[i]) <= _MAX_FENCE and close.match(lines[i])), 8))
    if not ends:
        return len(lines), False
    for end in ends:
        if _parse(_inside(lines[start + 1 : end], width)) is not None:
            return end, True
    return ends[0], True


def _bare(text: str) -> _Block | None:
    """A program without a fence: from its first line that looks like one, less the prose after it."""
    lines = text.split("\n")
    start = next((i for i, row in enumerate(lines) if _PROGRAM_START.match(row)), None)
    if start is None or not _FLOW.search(text) or len(text) > MAX_SOURCE:
        return None
    for end in range(len(lines), max(start, len(lines) - _MAX_TRAILING_PROSE), -1):
        candidate = "\n".join(lines[start:end])
        if _flow_class(candidate) is not None:
            return _Block(candidate, True)
        if lines[end - 1][:1].isspace():
            break  # indented: part of a program that does not parse, not prose after it
    return _Block("\n".join(lines[start:]), True)


def _parse(source: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as an invalid escape in a docstring
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def _flow_class(source: str) -> ast.ClassDef | None:
    """The first class that derives from `vFlow`, however it was imported."""
    tree = _parse(source)
    for node in tree.body if tree else ():
        if isinstance(node, ast.ClassDef) and any(_last_name(base) == "vFlow" for base in node.bases):
            return node
    return None


def _last_name(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _idea(prose: str, source: str) -> str:
    """The line marked IDEA, else the first line of the docstring, else of the prose."""
    for row in prose.split("\n"):
        if marked := _IDEA.match(row[:1_000]):
            return line(marked.group(1).strip("*_ "))
    flow = _flow_class(source)
    if flow is not None and (doc := ast.get_docstring(flow)):
        return line(doc.split("\n", 1)[0])
    return line(next((row for row in prose.split("\n") if row.strip()), ""))

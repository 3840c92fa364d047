"""What the tracer and its parent say to each other, and what the parent believes of it.

A program that took over its tracer can answer anything. The parent takes a program and knobs, each verified from
nothing; it keeps its own copy of the source, looks up lines there, checks the name, and computes the canonical form,
the warnings and a dialect's vFlow source itself. An answer of any other form is the candidate's fault (`VF009`).
"""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from vortex_core.errors import Location, Replacement, VortexError
from vortex_core.flow.emit import emit
from vortex_core.flow.mending import MAX_FURTHER
from vortex_core.flow.source_text import source_lines
from vortex_core.flow.trace import Traced
from vortex_core.flow.vflow import check_name
from vortex_core.ir import mistakes
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.lint import lint
from vortex_core.ir.params import Values
from vortex_core.ir.program import Program
from vortex_core.text import MAX_DOC, MAX_MESSAGE, is_visible, visible, visible_lines

MAX_VALUE_BYTES = 32 << 20  # of all learned values of a flow
# What a program can be told is wrong with it. Of the machine, and of files, only the parent speaks.
_SPEAKABLE = frozenset(
    m.code for m in mistakes.CATALOGUE.values() if m.level == "error" and m not in mistakes.OF_THE_MACHINE
)


# ---- the child's side -------------------------------------------------------------------------------------


def of_program(traced: Traced) -> tuple[dict[str, Any], bytes]:
    """The last line for a program, and the bytes of its learned values, which follow it."""
    program = traced.original.to_json(values=False)
    for graph in (program["cache"], program["index"]):
        for node in graph["nodes"]:
            if "at" in node:
                node["at"] = node["at"][1]  # the parent knows file and text
    found = {
        "name": traced.name,
        "doc": traced.doc,
        "program": program,
        "knobs": traced.knobs.to_json(),
        "places": {name: at.line for name, at in traced.places.items()},
    }
    return {"traced": found}, b"".join(p.values.data for p in traced.original.params)


def of_error(error: VortexError) -> dict[str, Any]:
    """The last line for a mistake."""
    return {"error": {**_one_error(error), "further": [_one_error(e) for e in error.further]}}


def _one_error(error: VortexError) -> dict[str, Any]:
    return {
        "code": error.code,
        "message": visible(error.message, MAX_MESSAGE),
        "remedy": visible(error.remedy, MAX_MESSAGE),
        "line": None if error.location is None else error.location.line,
        "replacement": None if error.replacement is None else asdict(error.replacement),
    }


def unpack(declared: list[dict[str, Any]], data: bytes) -> dict[str, Values]:
    """Learned values from the bytes of a request."""
    found, at = {}, 0
    for item in declared:
        size = 4 * math.prod(item["shape"])
        found[item["name"]] = Values(tuple(item["shape"]), data[at : at + size])
        at += size
    return found


# ---- the parent's side ------------------------------------------------------------------------------------


def request(
    source: str, file: str, options: Mapping[str, Any] | None, params: Mapping[str, Values], unfiltered: bool
) -> bytes:
    """The child's standard input.

    Raises:
        VortexError: `VF065` for too many learned values.
    """
    data = b"".join(values.data for values in params.values())
    if len(data) > MAX_VALUE_BYTES:
        why = f"{len(data)} bytes of learned values, at most {MAX_VALUE_BYTES}"
        raise mistakes.BAD_PARAM.error(name=next(iter(params)), why=why)
    head = {
        "source": source,
        "file": file,
        "options": None if options is None else dict(options),
        "params": [{"name": name, "shape": list(values.shape)} for name, values in params.items()],
        "bytes": len(data),
        "parent": os.getpid(),
        "unfiltered": unfiltered,
    }
    return json.dumps(head).encode() + b"\n" + data


def value_bytes(line: bytes) -> int:
    """Bytes of learned values that the last line declares, 0 if it is none that declares any."""
    try:
        params = json.loads(line)["traced"]["program"]["params"]
        sizes = [math.prod(_whole(n, MAX_VALUE_BYTES) for n in p["shape"]) for p in params[:64]]
    except (ValueError, TypeError, LookupError, RecursionError):
        return 0
    return min(4 * sum(sizes), MAX_VALUE_BYTES)


class Heard:
    """A complete answer.

    Args:
        source: the parent's own copy.
        file: as the parent names it.
    """

    def __init__(self, source: str, file: str) -> None:
        self.source = source
        self.file = os.path.basename(file) if os.path.isabs(file) else file
        self._lines = source_lines(source)

    def read(self, line: bytes, values: bytes, dialect: str | None) -> Traced:
        """The program of a last line.

        Raises:
            VortexError: the author's mistake, `VF009` for an answer that is neither that nor a program.
        """
        try:
            answer = _fields(json.loads(line), "traced", "error", either=True)
            if "error" in answer:
                error = self._error(answer["error"])
            else:
                return self._traced(answer["traced"], values, dialect)
        except VortexError as error_found:
            raise mistakes.TRACER_DIED.error(
                why=f"an answer that is no program: {error_found.code} {error_found.message}"
            ) from None
        except RecursionError:
            raise mistakes.TRACER_DIED.error(why="a malformed answer") from None
        except Exception as error_found:  # noqa: BLE001  whatever it is made of, it is the program's answer
            why = f"a malformed answer ({type(error_found).__name__})"
            raise mistakes.TRACER_DIED.error(why=why) from None
        raise error

    def _error(self, found: Any) -> VortexError:
        fields = dict(_fields(found, "code", "message", "remedy", "line", "replacement", "further"))
        further = fields.pop("further")
        if not isinstance(further, list) or len(further) > MAX_FURTHER:
            raise ValueError("further")
        source = self.source
        error, source = self._one_error(fields, source)
        errors = []
        for item in further:  # each belongs to the source that those before it mended
            one, source = self._one_error(item, source)
            errors.append(one)
        error.further = tuple(errors)
        return error

    def _one_error(self, found: Any, source: str) -> tuple[VortexError, str]:
        """One mistake of `source`, and the source as it is once mended."""
        fields = _fields(found, "code", "message", "remedy", "line", "replacement")
        code, message, remedy = (_text(fields[n], MAX_MESSAGE) for n in ("code", "message", "remedy"))
        if code not in _SPEAKABLE:
            raise ValueError(code)
        lines = source_lines(source)
        error = VortexError(code, message, remedy, self._place(fields["line"], lines))
        if (mended := fields["replacement"]) is not None:
            told = _fields(mended, "first", "last", "text")
            last = _whole(told["last"], len(lines))
            text = told["text"]
            if not isinstance(text, str) or not is_visible(text.replace("\n", ""), MAX_DOC):
                return error, source  # not fit to show: the error stands without it
            error.replacement = Replacement(_whole(told["first"], last), last, text)
            source = error.replacement.apply(source)
        return error, source

    def _traced(self, found: Any, values: bytes, dialect: str | None) -> Traced:
        fields = _fields(found, "name", "doc", "program", "knobs", "places")
        name = check_name(fields["name"])
        doc = _text(fields["doc"], None)
        original = Program.from_json(self._program(fields["program"], values))
        knobs = Knobs.from_json(fields["knobs"])
        declared = {s.name for s in original.states}
        if not isinstance(fields["places"], dict) or not declared >= fields["places"].keys():
            raise ValueError("places")
        places = {n: at for n, line in fields["places"].items() if (at := self._place(line)) is not None}
        canonical = original.canonical()
        warnings = tuple(w.to_json() for w in lint(original, canonical, knobs, places))
        doc = visible_lines(doc)
        source = self.source if dialect is None else emit(canonical, knobs, name, doc)
        return Traced(
            name, canonical, knobs, doc, self.file,
            source=source, original=original, warnings=warnings, places=places,
        )  # fmt: skip

    def _program(self, found: Any, values: bytes) -> dict[str, Any]:
        program = dict(found)
        for stage in ("cache", "index"):
            graph = dict(program[stage])
            graph["nodes"] = [self._node(node) for node in graph["nodes"]]
            program[stage] = graph
        at, params = 0, []
        for item in program.get("params", ()):
            size = 4 * math.prod(_whole(n, MAX_VALUE_BYTES) for n in item["shape"])
            data = base64.b64encode(values[at : at + size]).decode()
            params.append({**item, "data": data})
            at += size
        if at != len(values):
            raise ValueError("learned values that nothing declares")
        if params:
            program["params"] = params
        return program

    def _node(self, node: Any) -> dict[str, Any]:
        found = dict(node)
        at = self._place(found.pop("at", None))
        return found if at is None else {**found, "at": [at.file, at.line, at.text]}

    def _place(self, line: Any, lines: list[str] | None = None) -> Location | None:
        lines = self._lines if lines is None else lines
        if line is None:
            return None
        number = _whole(line, len(lines))
        return Location(self.file, number, visible(lines[number - 1].strip(), 200))


def _fields(found: Any, *names: str, either: bool = False) -> dict[str, Any]:
    """An object with exactly these fields, or with exactly one of them."""
    if (
        not isinstance(found, dict)
        or not set(found) <= set(names)
        or len(found) != (1 if either else len(names))
    ):
        raise TypeError("fields")
    return found


def _text(value: Any, limit: int | None) -> str:
    if not isinstance(value, str):
        raise TypeError("text")
    return value if limit is None else visible(value, limit)


def _whole(value: Any, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ValueError("number")
    return value

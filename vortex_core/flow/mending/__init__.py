"""From an error to the author's own line, mended: found in the syntax tree, spliced into the text, tried again.

What to write stands beside, by kind of error. Here is how: the node that ran when the error was raised, the words
that take its place, and the tracing that goes on with them, so that one answer names every mistake.
"""

from __future__ import annotations

import ast
import time
from collections.abc import Callable
from typing import TypeVar

from vortex_core.errors import Replacement, VortexError
from vortex_core.flow.mending import source as sources
from vortex_core.flow.mending import states, values
from vortex_core.flow.mending.place import Edit, Place
from vortex_core.ir import mistakes

MAX_FURTHER = 8  # errors reported beside the first
MAX_SECONDS = 3.0  # of computing, for all of them: a slow trace is not repeated
MENDS: dict[str, Callable[[Place], Edit | None]] = {
    mistakes.FORBIDDEN.code: sources.forbidden,
    mistakes.MISSING_METHOD.code: sources.missing_method,
    mistakes.USER_EXCEPTION.code: sources.raised,
    mistakes.UNKNOWN_DIM.code: values.no_such_dim,
    mistakes.NOT_BOOL.code: values.wrong_kind,
    mistakes.BAD_EXTENT.code: values.bad_extent,
    mistakes.BAD_ATTRIBUTE.code: values.bad_argument,
    mistakes.DATA_DEPENDENT.code: values.no_value,
    mistakes.BAD_CONST.code: values.infinite,
    mistakes.UNKNOWN_METHOD.code: values.no_method,
    mistakes.UNKNOWN_OP.code: values.no_operator,
    mistakes.BAD_FLOW_NAME.code: values.bad_flow_name,
    mistakes.UNKNOWN_STATE.code: states.no_state,
    mistakes.STATE_TYPE.code: states.state_type,
    mistakes.STATE_NOT_WRITTEN.code: sources.nobody_writes,
    mistakes.CARRIED_ONLY.code: states.not_carried,
    mistakes.BAD_STATE.code: states.bad_state,
    mistakes.NO_SELECTION.code: states.no_selection,
    mistakes.BAD_SCORE.code: states.bad_score,
    mistakes.BAD_UNION.code: states.bad_union,
    mistakes.BAD_BUDGET.code: states.bad_budget,
    mistakes.BAD_KNOB.code: states.bad_knob,
    mistakes.BUDGET_BELOW_KEPT.code: states.small_budget,
    mistakes.NO_DENSE_LAYER.code: states.no_dense_layer,
    mistakes.BAD_PARAM.code: values.no_values,
}
T = TypeVar("T")


def replacement(error: VortexError, source: str, file: str) -> Replacement | None:
    """The lines that mend `error`, or None where no script can name them.

    Args:
        error: as raised, with its traceback and facts.
        source: the author's text, which parses.
        file: its name in tracebacks.
    """
    if error.code not in MENDS:
        return None
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            child.parent, child.source = node, source  # type: ignore[attr-defined]  # what `place` reads
    line = error.location.line if error.location is not None else 0
    place = Place(tree, _running(error, tree, file), line, error.facts)
    edit = MENDS[error.code](place)
    return None if edit is None else _spliced(edit, source)


def follow(run: Callable[[str], T], error: VortexError, source: str, file: str) -> None:
    """Give `error` its replacement, and what is wrong beyond it: the source is tried again with each mended.

    Args:
        run: traces a source; raises its first error.
        error: the first error of `source`.
    """
    started = time.process_time()
    found: list[VortexError] = []
    beside = list(error.further)  # of another method: known without mending anything
    seen = {source}
    last = error
    while True:
        last.replacement = replacement(last, source, file)
        if last.replacement is None:
            break
        source = last.replacement.apply(source)
        if source in seen or len(found) == MAX_FURTHER or time.process_time() - started > MAX_SECONDS:
            break
        seen.add(source)
        try:
            run(source)
        except VortexError as following:
            if _same(following, last, file):
                last.replacement = None  # it mended nothing
                break
            found.append(following)
            beside = list(following.further)
            following.further = ()
            last = following
        else:
            beside = []
            break
    error.further = tuple([*found, *beside][:MAX_FURTHER])


def _same(one: VortexError, other: VortexError, file: str) -> bool:
    """Whether it is the error that was to be mended, at its place."""
    at = _position(one, file), one.location.line if one.location else 0
    before = _position(other, file), other.location.line if other.location else 0
    return (one.code, one.message) == (other.code, other.message) and at == before


def _position(error: VortexError, file: str) -> tuple[int | None, ...] | None:
    """First and last line, first and last column of what the author's innermost frame was computing."""
    at = None
    frame = error.__traceback__
    while frame is not None:
        code = frame.tb_frame.f_code
        if code.co_filename == file:
            at = list(code.co_positions())[frame.tb_lasti // 2]
        frame = frame.tb_next
    return at


def _running(error: VortexError, tree: ast.AST, file: str) -> ast.AST | None:
    """The expression the author's innermost frame was computing when the error was raised."""
    at = _position(error, file)
    if at is None or None in at:
        return None
    first, last, start, stop = at
    matches = [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.expr | ast.stmt)
        and (n.lineno, n.end_lineno, n.col_offset, n.end_col_offset) == (first, last, start, stop)
    ]
    return matches[-1] if matches else None


def _spliced(edit: Edit, source: str) -> Replacement:
    node, text = edit.node, edit.text
    lines = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    first, last = node.lineno, node.end_lineno or node.lineno
    before = lines[first - 1].encode()[: node.col_offset].decode()
    after = lines[last - 1].encode()[node.end_col_offset :].decode()
    return Replacement(first, last, before + text + after)

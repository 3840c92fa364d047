"""Rows of dense attention that a process keeps for the next program: as many as fit a bound, whoever asked for them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from evaluators.screen.dense import DenseRows

MOST_BYTES = 1 << 30
"""Of all that are kept beside the ones in use. What a program makes of them comes on top."""

_Key = tuple[object, ...]
_held: OrderedDict[_Key, DenseRows] = OrderedDict()


def rows_held(key: _Key, make: Callable[[], DenseRows]) -> DenseRows:
    """The rows of a key, made where they are not kept; others make room for them, the longest unused first."""
    if key not in _held:
        made = make()
        left = MOST_BYTES - made.nbytes
        while _held and sum(rows.nbytes for rows in _held.values()) > left:
            _held.popitem(last=False)
        _held[key] = made
    _held.move_to_end(key)
    return _held[key]


def free_rows() -> None:
    """Keep none."""
    _held.clear()

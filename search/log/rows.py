"""Events as a log's tables hold them: a row each, or consecutive ones compressed together."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from search.errors import bad_log
from vortex_core.files import parse_json

_MOST_PACKED = 64 << 20  # bytes of one unpacked segment: a forged one does not fill the memory
_YEAR_10000 = 253_402_300_800  # Unix time at which calendars end


def row(
    path: Path, seq: Any, when: Any, kind: Any, version: Any, body: Any, link: Any
) -> tuple[int, float, str, int, str, str]:
    """A row whose columns are an event's.

    Raises:
        VortexError: `VS005`, if they are not.
    """
    if (type(seq), type(kind), type(version), type(body)) != (int, str, int, str):
        raise bad_log(str(path), "a row of other types than an event's")
    if type(when) not in (int, float) or not 0 <= when < _YEAR_10000:
        raise bad_log(str(path), "an event without a time that a calendar has")
    return seq, when, kind, version, body, str(link)


def pack(rows: Sequence[tuple[float, str, int, str]]) -> bytes:
    """Times, kinds, versions and bodies of consecutive events as one compressed blob."""
    return zlib.compress(json.dumps(rows, separators=(",", ":")).encode(), 6)


def unpack(blob: bytes, path: str = "") -> list[Any]:
    """Inverse of `pack`.

    Raises:
        VortexError: `VS005`.
    """
    try:
        inflater = zlib.decompressobj()
        text = inflater.decompress(blob, _MOST_PACKED)
        if not inflater.eof:
            raise ValueError("a packed segment that does not end")
        lines = parse_json(text)
        if not isinstance(lines, list) or not lines:
            raise ValueError("a packed segment of another shape")
        for line in lines:
            if not (isinstance(line, list) and len(line) == 4):
                raise ValueError("a packed segment of another shape")
            when, kind, version, body = line
            row(Path(path), 0, when, kind, version, body, "")
    except (zlib.error, ValueError, TypeError) as error:
        raise bad_log(path, f"packed events cannot be read: {error}") from error
    return lines

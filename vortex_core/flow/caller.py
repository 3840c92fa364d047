"""Whose line asked for an operation: errors and nodes name the author's, never one of this package."""

from __future__ import annotations

import os
import sys

from vortex_core.errors import Location

_HERE = os.path.dirname(os.path.abspath(__file__))
# Frames that are never the author's: this package, and the stand-ins of foreign languages.
_DIALECTS = os.path.join(os.path.dirname(_HERE), "dialects")
_OURS = (_HERE, _DIALECTS, "<frozen")
# Beyond these lies who asked for the tracing, not the author.
_TRACERS = (os.path.join(_HERE, "trace.py"), os.path.join(_DIALECTS, "vortex_torch", "__init__.py"))


def caller() -> Location | None:
    """The nearest line outside this package: the author's. None where no line of theirs asked for anything."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_OURS):
            return Location(os.path.basename(file) if os.path.isabs(file) else file, frame.f_lineno)
        if frame.f_back is None or file in _TRACERS:
            return None
        frame = frame.f_back
    return None

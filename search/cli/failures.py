"""Whatever ends a command, as one coded error."""

from __future__ import annotations

import os
import tempfile
import traceback

from search.errors import broke, out_of_memory, unusable_file
from vortex_core.device_errors import translate
from vortex_core.errors import VortexError
from vortex_core.text import visible


def as_coded(error: Exception) -> VortexError:
    """The coded error for an exception: its own, that of a file or of memory, or `VS091`, with a log to report."""
    if isinstance(error, VortexError):
        return error
    if (found := translate(error, "this command", flow=False)) is not None:
        return found
    if isinstance(error, MemoryError) or "can't allocate memory" in str(
        error
    ):  # torch says it in a RuntimeError
        return out_of_memory(visible(error, 200) or "no message")
    if isinstance(error, OSError) and error.errno:
        return unusable_file(_named(error), error.strerror or type(error).__name__)
    return broke(error, _log(error))


def _named(error: OSError) -> str:
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return " -> ".join(names) or "standard output"


def _log(error: Exception) -> str:
    """Write a traceback to a file of this user's; its path, or empty if there is no place for one."""
    try:
        number, path = tempfile.mkstemp(prefix="vortex-search-", suffix=".log")
        with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
            traceback.print_exception(error, file=file)
    except OSError:
        return ""
    return path

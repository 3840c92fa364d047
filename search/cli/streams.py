"""Standard streams as commands find them: closed, full, or in an encoding that lacks letters."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TextIO


def open_all() -> None:
    """Have all three standard streams open, and let no letter end a command.

    A stream that is closed leaves its number to the next file opened: what is printed later, or by a child, would go
    there. What an encoding cannot say is written as an escape.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(
                os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY
            )  # the lowest free number
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def abandon(stream: TextIO | None) -> None:
    """Send what a stream still holds nowhere: it cannot be written, and Python would say so once more at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        assert stream is not None
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)

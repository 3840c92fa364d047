"""How commands speak: results on stdout, progress and errors on stderr, one JSON document under `--json`."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from search.cli.streams import abandon
from search.errors import bad_value
from vortex_core.errors import VortexError

# Piped output is read by programs or in wide editors: 80 columns would fold every table.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 180)
err = Console(stderr=True, highlight=False)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for programs.")]


def emit(value: Any) -> None:
    """Print a JSON document, in ASCII: a terminal or pipe of any encoding takes it."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def exit_status(error: VortexError) -> int:
    """2 for what the user can correct in the command or its input, 1 for what failed around it."""
    return 2 if error.fault in ("user", "candidate") else 1


def fail(error: VortexError, *, as_json: bool) -> NoReturn:
    """Print an error once, in the form asked for, and exit."""
    try:
        if as_json:
            emit({"error": error.to_json()})
            sys.stdout.flush()
        else:
            sys.stderr.write(f"{error}\n")
    except OSError:  # where it was to go is full or gone
        abandon(sys.stdout)
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{error}\n")
    raise SystemExit(exit_status(error))


def duration(text: str, option: str = "--time-budget") -> float:
    """Seconds of a duration such as `90`, `90s`, `10m` or `1.5h`.

    Raises:
        VortexError: `VS010`, if it is not one.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if not found or float(found[1]) <= 0:
        raise bad_value(option, text, "a duration such as 90s, 10m or 1.5h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]

"""How commands speak: results on stdout, progress and errors on stderr, one JSON document under `--json`."""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from search.cli.streams import abandon
from search.errors import bad_value
from search.tables import fit_name
from vortex_core.errors import VortexError
from vortex_core.text import MAX_SOURCE, visible_lines


class VisibleConsole(Console):
    """Escapes what could steer a terminal in every text that is printed: whoever wrote it, it was not rich."""

    def render_str(self, text: str, **options: Any) -> Text:
        """See the base."""
        return super().render_str(visible_lines(text, MAX_SOURCE), **options)


# Piped output is read by programs or in wide editors: 80 columns would fold every table.
out = VisibleConsole(highlight=False, width=None if sys.stdout.isatty() else 180)
err = VisibleConsole(stderr=True, highlight=False)

_NARROWEST = 10  # columns that a name is folded to, before a table is given up

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for programs.")]


def show_table(table: Table) -> None:
    """Print a table whose numbers are never cut: names fold first; where that is not enough, a row is a paragraph."""
    widths = [max(_width(cell) for cell in (c.header, *c.cells)) for c in table.columns]
    numbers = [column.justify == "right" for column in table.columns]
    least = sum(w if number else min(w, _NARROWEST) for w, number in zip(widths, numbers, strict=True))
    if least + 3 * len(widths) <= out.width:
        for column, width, number in zip(table.columns, widths, numbers, strict=True):
            column.overflow = "fold"
            column.min_width = width if number else min(width, _NARROWEST)
        out.print(table)
        return
    for row in zip(*(column.cells for column in table.columns), strict=True):
        for column, cell in zip(table.columns, row, strict=True):
            if _width(cell):
                out.print(f"{column.header}: {cell}" if column.header else cell, soft_wrap=True)
        out.print()


def _width(cell: RenderableType) -> int:
    """Columns of a terminal that a cell takes."""
    return Measurement.get(out, out.options.update(width=1_000), cell).maximum


def print_table(table: Table, *, wide: bool) -> None:
    """A ranking: in 80 columns, or in as many as it takes, a row a line."""
    if wide:
        VisibleConsole(highlight=False, width=10_000).print(table)
        return
    width = min(out.width, 80)
    if fit_name(table, width):
        out.print(table, width=width)
    else:
        show_table(table)


def emit(value: Any) -> None:
    """Print a JSON document, in ASCII: a terminal or pipe of any encoding takes it."""
    try:
        text = json.dumps(value, indent=2, default=str, allow_nan=False)
    except ValueError:  # JSON has no infinity and no NaN; what is none is null
        text = json.dumps(_finite(value), indent=2, default=str, allow_nan=False)
    sys.stdout.write(text + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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

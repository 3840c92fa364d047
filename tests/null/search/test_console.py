"""What commands print: tables at any width, streams in any state."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich import box
from rich.console import Console
from rich.table import Table

from search.cli import console

ROOT = Path(__file__).resolve().parents[3]
NUMBERS = ("0.912 [0.855, 0.950]", "1.234 [1.111, 1.333] (modelled)", "-0.001 [-0.100, 0.100]")


@pytest.mark.parametrize("width", [200, 120, 100, 80, 60, 40, 20, 5])
def test_numbers_are_never_cut(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("id", "name"):
        table.add_column(name)
    for name in ("accuracy", "speed", "decode"):
        table.add_column(name, justify="right")
    for row in range(3):
        table.add_row(f"c{row:03}", "a_rather_long_name_of_a_program", *NUMBERS)
    shown = io.StringIO()
    monkeypatch.setattr(console, "out", Console(file=shown, width=width))
    console.show_table(table)
    text = shown.getvalue()
    assert "…" not in text
    assert all(text.count(number) == 3 for number in NUMBERS)


def _flows(redirect: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = f'"{sys.executable}" -m search.cli check nope {redirect}'
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, check=False, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
    )  # fmt: skip


@pytest.mark.parametrize("redirect", [">&-", "2>&-", "<&-", ">&- 2>&-", ">/dev/full", "--json >/dev/full"])
def test_streams_in_any_state(redirect: str) -> None:
    done = _flows(redirect)
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_reader_that_goes_away_is_no_error() -> None:
    done = _flows("--json | true")
    assert "Traceback" not in done.stderr
    assert "Broken" not in done.stderr


def test_a_terminal_without_letters() -> None:
    done = _flows("--json", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert json.loads(done.stdout)["error"]["code"] == "VF070"

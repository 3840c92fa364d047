"""Tests side by side: what takes long is handed out first, and files stay whole."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.order import ALONE, APART, group_of, longest_first


class Item:
    """As much of a test as is asked."""

    def __init__(self, nodeid: str, *, slow: bool = False) -> None:
        self.nodeid, self.slow = nodeid, slow

    def get_closest_marker(self, name: str) -> Any:
        return pytest.mark.slow.mark if self.slow and name == "slow" else None


def test_what_takes_long_is_handed_out_first() -> None:
    items: list[Any] = [
        Item("tests/null/test_few.py::test_a"),
        Item("tests/null/test_many.py::test_b"),
        Item("tests/cpu/test_mixed.py::test_quick"),
        Item("tests/null/test_many.py::test_a[::x]"),
        Item("tests/interp/test_x.py::test_cases[one]", slow=True),
        Item("tests/cpu/test_mixed.py::test_slow", slow=True),
        Item("tests/cpu/search/test_cluster.py::test_it"),
        Item("tests/interp/test_x.py::test_cases[two]"),
        Item("tests/e2e/test_campaign.py::test_it", slow=True),
    ]
    want = [6, 8, 2, 5, 4, 7, 1, 3, 0]
    given = list(items)
    longest_first(items)
    assert [given.index(item) for item in items] == want
    groups = list(dict.fromkeys(group_of(item.nodeid) for item in items))
    assert groups[:2] == ["alone", "tests/cpu/test_mixed.py"]
    assert len(groups) == 6, "cases under the interpreter are groups of their own"


def test_what_runs_alone_or_apart_is_there(root: Path) -> None:
    assert all((root / name).exists() for name in (*ALONE, APART))


def test_a_file_is_run_by_one_process(tmp_path: Path, root: Path) -> None:
    pytest.importorskip("xdist")
    for name in ("one", "two", "three"):
        text = "".join(f"def test_{n}(): pass\n" for n in range(6))
        (tmp_path / f"test_{name}.py").write_text(text)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.conftest",
        "-p",
        "no:cacheprovider",
        "-n",
        "2",
        "-v",
    ]
    done = subprocess.run(
        [*command, "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=tmp_path, env=environment | {"PYTHONPATH": str(root)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    ran = defaultdict(list)
    for line in done.stdout.splitlines():
        if line.startswith("[gw"):
            ran[line.split("::")[0].split()[-1]].append(line.split("]")[0])
    assert [len(of) for of in ran.values()] == [6, 6, 6]
    assert all(len(set(of)) == 1 for of in ran.values()), ran

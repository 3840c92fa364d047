"""Cases that run in a process of their own, because kernels are interpreted or compiled for a whole process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(("cases", "count"), [("row", 17), ("refinement", 25)])
def test_cases_pass_under_the_interpreter(cases: str, count: int) -> None:
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": "."}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-W", "ignore", "-p", "no:cacheprovider"]
    command.append(f"tests/interp/compiler/{cases}_cases.py")
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"{count} passed" in done.stdout

"""Runs the stages' Triton path under the interpreter, in a process of its own (see tests/interp/kernels)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(600)  # under a minute on an idle machine; a busy one must not fail it
def test_under_the_interpreter(root: Path) -> None:
    path = Path(__file__).parent / "worker_cases.py"
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-p", "no:cacheprovider", str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=env, cwd=root, timeout=580, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]

"""Runs the kernels' property tests under the Triton interpreter.

In a process of their own, because kernels are interpreted or compiled for a whole process. Alone:
`TRITON_INTERPRET=1 pytest tests/interp/kernels/decode_cases.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = ("decode_cases", "latent_cases", "select_cases", "write_cases")


@pytest.mark.slow
@pytest.mark.timeout(600)  # half a minute on an idle machine; a busy one must not fail it
@pytest.mark.parametrize("cases", CASES)
def test_under_the_interpreter(cases: str, root: Path) -> None:
    path = Path(__file__).parent / f"{cases}.py"
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-p", "no:cacheprovider", str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=env, cwd=root, timeout=580, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]

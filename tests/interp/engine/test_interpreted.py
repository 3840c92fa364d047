"""Runs the engine's Triton path under the interpreter, in a process of its own (see tests/interp/kernels)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# The interpreter uses one core: two halves, which may run side by side.
HALF = "latent or transformers or scheduled or fused"


@pytest.mark.slow
@pytest.mark.timeout(600)  # under a minute on an idle machine; a busy one must not fail it
@pytest.mark.parametrize("half", [HALF, f"not ({HALF})"], ids=["first", "second"])
def test_under_the_interpreter(half: str, root: Path) -> None:
    path = Path(__file__).parent / "engine_cases.py"
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    options = ["-q", "-W", "ignore", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, str(path), "-k", half]
    done = subprocess.run(
        command, capture_output=True, text=True, env=env, cwd=root, timeout=580, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]

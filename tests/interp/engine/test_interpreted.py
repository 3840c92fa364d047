"""Runs the engine's Triton path under the interpreter, in a process of its own (see tests/interp/kernels)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(600)  # under a minute on an idle machine; a busy one must not fail it
def test_under_the_interpreter(root: Path) -> None:
    path = Path(__file__).parent / "engine_cases.py"
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-W",
        "ignore",
        "-p",
        "no:cacheprovider",
        str(path),
        "-k",
    ]
    # The interpreter uses one core: two halves side by side.
    half = "latent or transformers or scheduled or fused"
    running = [
        subprocess.Popen(
            [*command, chosen],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, cwd=root,
        )
        for chosen in (half, f"not ({half})")
    ]  # fmt: skip
    try:
        for done in running:
            said, _ = done.communicate(timeout=580)
            assert done.returncode == 0, said[-4000:]
    finally:
        for process in running:
            process.kill()

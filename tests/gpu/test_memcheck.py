"""No kernel reads or writes outside its tensors, as NVIDIA's compute-sanitizer sees it on small cases."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = "tests/gpu/kernels/test_kernels.py::"
FLOWS = "tests/gpu/compiler/test_triton_backend.py::test_triton_selects_what_the_oracle_selects"
CASES = (
    "test_decode_ragged[96-3]",
    "test_decode_page_mass",
    "test_lists_cut_evenly[96-5-8-8]",
    "test_one_request_of_any_length[16-4097]",
    "test_latent_decode[lens0-dtype0-16-20]",
    "test_latent_decode[lens1-dtype0-16-20]",
    "test_selection[2048-128-dtype0-special]",
    "test_selection[9000-128-dtype1-normal]",
    "test_limits_end_the_choice[ties-2048]",
    "test_a_union_lists_every_page_once[2048]",
    "test_write_rounds_and_saturates_as_torch[5-dtype1]",
)


@pytest.mark.slow
@pytest.mark.timeout(600)  # every load and store is watched: some tens of times slower
def test_no_access_outside_of_tensors(root: Path) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer (of the CUDA toolkit) is not installed")
    flows = [f"{FLOWS}[7-2-96-{name}]" for name in ("block_topk", "quest", "twilight")]
    command = [
        sanitizer, "--tool", "memcheck", "--error-exitcode", "99", "--target-processes", "application-only",
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(KERNELS + case for case in CASES), *flows,
    ]  # fmt: skip
    # Torch's allocator hands out parts of larger blocks, within which nothing would be noticed.
    env = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=env, cwd=root, timeout=580, check=False
    )
    words = done.stdout[-4000:] + done.stderr[-1000:]
    assert done.returncode == 0, words
    assert "ERROR SUMMARY: 0 errors" in words
    assert f"{len(CASES) + len(flows)} passed" in words

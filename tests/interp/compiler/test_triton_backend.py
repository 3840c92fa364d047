"""Generated kernels select what the oracle selects, under the Triton interpreter."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests import sample_flows

CHECK = """
import sys, torch
import tests.interp.quick
from tests.cpu.compiler import test_backends as shared
from tests import sample_flows
from vortex_core.compiler import backends
from vortex_core.compiler.triton import backend as triton_flow
from vortex_core.geometry import Geometry
shared.LENGTHS[:] = [1, 7, 8, 9, 40, 65]
for name in sys.argv[1:]:
    traced = shared.small(sample_flows.load(name))
    shapes = [(3, 2, 16, 0), (1, 1, 24, 0)]
    if name in ("block_topk", "quest"):  # matrix products over 160 channels: of 64, 64 and 32, and of 128 and 32
        shapes += [(4, 1, 160, 0), (4, 1, 160, 10**6)]
    for group, kv_heads, dim, triton_flow.SHORT_PROGRAMS in shapes:
        geometry = Geometry(1, kv_heads, group, dim, dim, dim, sample_flows.turned(dim))
        triton_flow.score_blocks = lambda programs, device: 2 if group == 1 else 1
        data = shared.inputs(group, group, kv_heads, dim)
        want = shared.steps(backends.get("oracle").compile(traced.original, traced.knobs, geometry), *data)
        got = shared.steps(backends.get("triton").compile(traced.program, traced.knobs, geometry), *data)
        for a, b in zip(want, got):
            assert a.counts.tolist() == b.counts.tolist(), (name, group, a.counts, b.counts)
            assert a.lengths.tolist() == b.lengths.tolist(), (name, group)
            assert shared.rows(a) == shared.rows(b), (name, group, dim)
    print("same", name, flush=True)
"""


@pytest.mark.parametrize("part", range(4))
def test_triton_selects_what_the_oracle_selects(part: int) -> None:
    """In a subprocess, because kernels are interpreted or compiled for a whole process."""
    names = (
        sorted(sample_flows.SOURCES)[part::4] + ["block_topk", "quest", "streaming", "dense"][part : part + 1]
    )
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": "."}
    done = subprocess.run(
        [sys.executable, "-c", CHECK, *names], capture_output=True, text=True, env=env, timeout=170
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [w for n in names for w in ("same", n)]


@pytest.mark.parametrize(
    ("cases", "passed"), [("residual_cases", "12 passed"), ("request_cases", "27 passed")]
)
def test_cases_hold_in_a_process_of_their_own(cases: str, passed: str) -> None:
    """Residuals merged, and states of requests carried, as the oracle does."""
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": "."}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-W", "ignore", "-p", "no:cacheprovider"]
    command.append(f"tests/interp/compiler/{cases}.py")
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=170)
    assert done.returncode == 0, done.stdout[-3000:]
    assert passed in done.stdout

"""The residual kernel under the Triton interpreter: merged as the oracle merges."""

from __future__ import annotations

import pytest
import torch

from tests.cpu.compiler import test_residual as shared
from vortex_core.compiler import backends
from vortex_core.geometry import Geometry

shared.LENGTHS[:] = [1, 7, 8, 9, 65, 570, 0]


@pytest.mark.parametrize("shape", [(2, 1, 16), (1, 3, 24), (1, 16, 32)])
@pytest.mark.parametrize("name", ["retroinfer", "per_head", "union", "wild"])
def test_triton_merges_what_the_oracle_merges(name: str, shape: tuple[int, int, int]) -> None:
    heads, group, dim = shape
    geometry = Geometry(1, heads, group, dim, dim, dim)
    traced, case = shared.flow(name), shared.Case(geometry, group)
    want, theirs = case.attend(backends.get("oracle").compile(traced.original, traced.knobs, geometry))
    found, ours = case.attend(backends.get("triton").compile(traced.program, traced.knobs, geometry))
    real = torch.tensor(shared.LENGTHS) > 0
    assert ours.lengths.tolist() == theirs.lengths.tolist()
    torch.testing.assert_close(found[real], want[real], atol=1e-5, rtol=1e-4)

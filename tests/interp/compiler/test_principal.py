"""Principal directions in generated kernels, under the Triton interpreter: rows, ranks, odd channels, packed states."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FLOW = """
from vortex_core import ops, vFlow

class B(vFlow):
    def create_cache(self, page):
        return {{
            "basis": page.state(rank={rank}, dim=page.head_dim, dtype="{dtype}"),
            "at": page.state(row=page.size, rank={rank}, dtype="{at}"),
        }}

    def forward_cache(self, page):
        rest = (page.k - page.k.mean("token")).rename(token="row")
        basis = rest.principal("row", "dim", rank={rank})
        return {{"basis": basis, "at": rest.dot(basis, "dim")}}

    def forward_indexer(self, q, cache):
        return ops.topk(q.dot(cache["basis"], "dim").dot(cache["at"], "rank").logsumexp("row").max("head"))
"""
# Rows, channels, rank and the two dtypes; small sums everywhere, or matrix products for the directions.
CASES = [
    "8,24,5,fp32,fp32",
    "8,16,3,int4,int8",
    "16,32,8,int4,int8",
    "16,20,1,bf16,int4",
    "32,64,6,bits,fp16",
]
CHECK = """
import sys, torch
import tests.interp.quick
from tests.interp.compiler.test_principal import CASES, FLOW
from vortex_core.compiler import backends
from vortex_core.compiler.interface import LayerKV
from vortex_core.compiler.triton import decomposition
from vortex_core.geometry import Geometry
from vortex_core.sandbox.jail import run
decomposition._SUM_LANES = int(sys.argv[1])
for case in CASES:
    size, dim, rank, dtype, at = case.split(",")
    size, dim, rank = int(size), int(dim), int(rank)
    traced = run(FLOW.format(rank=rank, dtype=dtype, at=at), "b.py").with_knobs(page_size=size)
    k = torch.randn(2, 3, size, dim, generator=torch.Generator().manual_seed(0))
    k[0, 1, :, 2:] = 0  # of rank two
    found = {}
    for backend in ("torch", "triton"):
        flow = backends.get(backend).compile(traced.program, traced.knobs, Geometry(1, 2, 2, dim, dim, dim))
        states = flow.new_states(3, torch.device("cpu"))
        flow.update(states, LayerKV(k, k), torch.arange(3), 0)
        found[backend] = [f.read(slice(None), slice(None), torch.float32)[:, :3] for f in states.fields.values()]
    for a, b in zip(*found.values(), strict=True):
        # Rounding to a state may move a number by a step, now and then; a rounding apart, they are the same.
        far = ((a - b).abs() > 2e-4 * a.abs().amax()).float().mean().item()
        assert far <= (0.0 if "fp32" in case else 0.02), (case, far)
        assert a.abs().max() > 0.1
print("checked")
"""


@pytest.mark.parametrize("lanes", ["16384", "128"])
def test_states_are_the_torch_backends(lanes: str) -> None:
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", CHECK, lanes]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "checked" in done.stdout, done.stderr[-3000:]


def test_too_large_a_page_is_refused_with_the_limit() -> None:
    from vortex_core.compiler.triton.generate import generate
    from vortex_core.errors import VortexError
    from vortex_core.geometry import Geometry
    from vortex_core.sandbox.jail import run

    traced = run(FLOW.format(rank=8, dtype="int4", at="int8"), "b.py")
    latent = Geometry(1, 1, 16, 576, 64, 512)
    assert "principal_weights" in generate(traced.program.canonical(), latent, 16).text
    with pytest.raises(VortexError) as caught:
        generate(traced.program.canonical(), latent, 64)
    assert caught.value.code == "VE050" and "16384" in str(caught.value)

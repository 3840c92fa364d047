"""Learned parameters in generated kernels: they select what the oracle selects, under the Triton interpreter."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FLOWS = {
    # A gate per layer and kv head on both sides, one without either, and a bias.
    "gate": """
    params = {wk}
    def create_cache(self, page):
        return {{"z": page.state(rank=4, dtype="fp32")}}
    def forward_cache(self, page):
        return {{"z": (page.k.mean("token") * ops.param("wk", layer=2, kv_head=2, rank=4, dim="D")).sum("dim")}}
    def forward_indexer(self, q, cache):
        z = (q * ops.param("wq", head="G", rank=4, dim="D")).sum("head", "dim") + ops.param("bias", kv_head=2)
        return ops.topk((z * cache["z"]).sum("rank") * ops.param("scale", layer=2))
""",
    # Product quantisation: whole-row comparisons packed to bits, chunked matrix products.
    "codes": """
    params = {wk}
    def create_cache(self, page):
        return {{"codes": page.state(row=page.size, part=2, code=16, dtype="bits")}}
    def forward_cache(self, page):
        parts = page.k.rename(token="row").split("dim", part=2)
        closeness = (parts * self.c()).sum("dim") - (self.c() * self.c()).sum("dim") / 2
        return {{"codes": ops.where(closeness.largest(1, "code"), 1.0, -1.0)}}
    def forward_indexer(self, q, cache):
        dots = (q.split("dim", part=2) * self.c()).sum("dim")
        logits = ((cache["codes"] + 1) / 2 * dots).sum("part", "code")
        return ops.topk(logits.exp().sum("row").mean("head"))
    def c(self):
        return ops.param("c", layer=2, kv_head=2, part=2, code=16, dim="D/2")
""",
    # Two layers of a network per token, its signs kept as bits.
    "hash": """
    params = {wk}
    def create_cache(self, page):
        return {{"s": page.state(row=page.size, bit=12, dtype="bits")}}
    def forward_cache(self, page):
        return {{"s": self.net(page.k.rename(token="row"))}}
    def forward_indexer(self, q, cache):
        return ops.topk((self.net(q).sign() * cache["s"]).sum("bit").max("row").mean("head"))
    def net(self, x):
        first = ops.param("h1", layer=2, kv_head=2, hidden=8, dim="D")
        return ((x * first).sum("dim").silu() * ops.param("h2", kv_head=2, bit=12, hidden=8)).sum("hidden")
""",
}
CHECK = """
import sys, torch
import tests.interp.quick
from tests.cpu.compiler import test_backends as shared
from tests.interp.compiler.test_learned import FLOWS
from vortex_core.compiler import backends
from vortex_core.compiler.interface import BatchView
from vortex_core.geometry import Geometry
from vortex_core.sandbox.jail import run
shared.LENGTHS[:] = [1, 7, 8, 9, 40, 65]
SHAPES = {"gate": {"wk": (2, 2, 4, 16), "wq": (3, 4, 16), "bias": (2,), "scale": (2,)},
          "codes": {"c": (2, 2, 2, 16, 8)}, "hash": {"h1": (2, 2, 8, 16), "h2": (2, 12, 8)}}
name = sys.argv[1]
g = torch.Generator().manual_seed(0)
values = {n: (torch.randn(s, generator=g) + (2 if n == "scale" else 0)).tolist() for n, s in SHAPES[name].items()}
head = "from vortex_core import Knobs, ops, vFlow\\n\\nclass W(vFlow):\\n    knobs = Knobs(page_size=8, budget='32')"
traced = run(head + FLOWS[name].format(wk=values), "learned.py")
geometry = Geometry(2, 2, 3, 16, 16, 16)
kv, table, q, pages = shared.inputs(3, 3, 2, 16)
complete = torch.cat([table[b, : n // 8] for b, n in enumerate(shared.LENGTHS)])
budgets = torch.tensor([traced.knobs.pages(n) for n in shared.LENGTHS])
view = BatchView(table, torch.tensor(shared.LENGTHS), budgets, max(shared.LENGTHS))
seen = []
for layer in range(2):
    found = []
    for backend, program in (("oracle", traced.original), ("triton", traced.program)):
        flow = backends.get(backend).compile(program, traced.knobs, geometry)
        states = flow.new_states(pages, torch.device("cpu"))
        flow.update(states, kv, complete, layer)
        found.append(shared.rows(flow.select(q, states, view, layer)))
    assert found[0] == found[1], (layer, found)
    seen.append(found[0])
assert seen[0] != seen[1], "the layers' values do not matter"
"""


@pytest.mark.parametrize("name", sorted(FLOWS))
def test_learned_parameters_select_what_the_oracle_selects(name: str) -> None:
    """In a subprocess, because kernels are interpreted or compiled for a whole process."""
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": "."}
    done = subprocess.run(
        [sys.executable, "-c", CHECK, name], capture_output=True, text=True, env=env, timeout=170
    )
    assert done.returncode == 0, done.stderr[-3000:]


LIBRARY = """
import sys, torch
import tests.interp.quick
from tests.cpu.compiler import test_backends as shared
from tests.null.library import weights as w
from vortex_core.compiler import backends
from vortex_core.geometry import Geometry
shared.LENGTHS[:] = [1, 7, 8, 9, 40, 65]
for name in sys.argv[1:]:
    traced = shared.small(w.load(name))
    geometry = Geometry(w.LAYERS, w.KV_HEADS, w.GROUP, w.DIM, w.DIM, w.DIM)
    data = shared.inputs(3, w.GROUP, w.KV_HEADS, w.DIM)
    want = shared.steps(backends.get("oracle").compile(traced.original, traced.knobs, geometry), *data)
    got = shared.steps(backends.get("triton").compile(traced.program, traced.knobs, geometry), *data)
    for a, b in zip(want, got):
        assert shared.rows(a) == shared.rows(b), name
    print("same", name, flush=True)
"""


def test_library_flows_with_learned_values_select_what_the_oracle_selects() -> None:
    """Their products are as wide as tensor cores take, which the small ones above are not."""
    names = ["double_sparsity", "loki", "seerattention"]
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": "."}
    done = subprocess.run(
        [sys.executable, "-c", LIBRARY, *names], capture_output=True, text=True, env=env, timeout=170
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [w for n in names for w in ("same", n)]

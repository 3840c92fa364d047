"""Generated kernels on a real GPU select what the oracle selects."""

from __future__ import annotations

import pytest
import torch

from tests import sample_flows
from tests.cpu.compiler import test_backends as shared
from tests.null.library import weights
from vortex_core import library
from vortex_core.compiler import backends
from vortex_core.compiler.interface import BatchView, LayerKV
from vortex_core.flow.trace import Traced
from vortex_core.geometry import Geometry

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", sample_flows.names())
@pytest.mark.parametrize(("group", "kv_heads", "dim"), [(7, 2, 96), (4, 1, 128)])
def test_triton_selects_what_the_oracle_selects(name: str, group: int, kv_heads: int, dim: int) -> None:
    geometry = Geometry(1, kv_heads, group, dim, dim, dim, sample_flows.turned(dim))
    agree(shared.small(sample_flows.load(name)), geometry, layer=0)


@pytest.mark.parametrize("layer", [0, 29])
@pytest.mark.parametrize("name", library.untrained_names())
def test_learned_values_of_each_layer_and_head(name: str, layer: int) -> None:
    w = weights
    agree(shared.small(w.load(name)), Geometry(w.LAYERS, w.KV_HEADS, w.GROUP, w.DIM, w.DIM, w.DIM), layer)


def agree(traced: Traced, geometry: Geometry, layer: int) -> None:
    group, kv_heads, dim = geometry.group, geometry.kv_heads, geometry.head_dim
    kv, table, q, pages = shared.inputs(group * 100 + dim, group, kv_heads, dim)
    lengths = torch.tensor(shared.LENGTHS)
    budgets = torch.tensor([traced.knobs.pages(n) for n in shared.LENGTHS])
    complete = torch.cat([table[b, : n // shared.SIZE] for b, n in enumerate(shared.LENGTHS)])
    oracle = backends.get("oracle").compile(traced.program, traced.knobs, geometry)
    flow = backends.get("triton").compile(traced.program, traced.knobs, geometry)
    reference = oracle.new_states(pages, torch.device("cpu"), len(lengths))
    states = flow.new_states(pages, torch.device("cuda"), len(lengths))
    oracle.update(reference, kv, complete, layer)
    flow.update(states, LayerKV(kv.k.cuda(), kv.v.cuda()), complete.cuda(), layer)
    dense = shared.dense_mass(q, table)
    view = BatchView(table, lengths, budgets, max(shared.LENGTHS), dense_mass=dense)
    on_gpu = BatchView(
        table.cuda(), lengths.cuda(), budgets.cuda(), max(shared.LENGTHS), dense_mass=dense.cuda()
    )
    different = 0
    for step in range(3):
        want = oracle.select(q + 0.3 * step, reference, view, layer)
        got = flow.select((q + 0.3 * step).cuda(), states, on_gpu, layer)
        if traced.program.needs_mass:
            for target, chosen, device in ((oracle, want, "cpu"), (flow, got, "cuda")):
                mass = torch.rand(*q.shape[:2], 64, generator=torch.Generator().manual_seed(step))
                mass = mass[..., : chosen.page_ids.shape[-1]].to(device)
                target.observe(reference if device == "cpu" else states, chosen, mass, layer)
        assert want.counts.tolist() == got.counts.tolist()
        assert want.lengths.tolist() == got.lengths.tolist()
        pairs = zip(shared.rows(want), shared.rows(got), strict=True)
        different += sum(len(set(a) ^ set(b)) for a, b in pairs)
    # Sums in another order may swap pages whose scores agree to the last bits: at most one pair in the whole batch.
    assert different <= 2, different

"""A residual: pages left out are one entry each, merged by log-sum-exp. Backends agree, and where the entries are exact
so is attention."""

from __future__ import annotations

import pytest
import torch

from vortex_core import library
from vortex_core.compiler import backends
from vortex_core.compiler.interface import BatchView, CompiledFlow, LayerKV
from vortex_core.compiler.states import TorchStates
from vortex_core.errors import VortexError
from vortex_core.flow.trace import Traced
from vortex_core.geometry import Geometry
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.layers import check_reuse
from vortex_core.page_list import PageList
from vortex_core.runtime.torch_attention import sparse_decode
from vortex_core.sandbox.jail import run

SIZE = 8
LENGTHS = [1, 7, 8, 9, 40, 64, 65, 1130]
PER_HEAD = """
from vortex_core import Knobs, ops, register, vFlow

@register("per_head")
class PerHead(vFlow):
    def create_cache(self, page):
        return {"c": page.state(dim=page.head_dim, dtype="fp32"), "v": page.state(dim=page.head_dim, dtype="fp32")}

    def forward_cache(self, page):
        return {"c": page.k.mean("token"), "v": page.v.mean("token")}

    def forward_indexer(self, q, cache):
        logit = (q * cache["c"]).sum("dim") / ops.size("D").sqrt()
        return ops.topk(logit).residual(logit + ops.size("S").log(), cache["v"])
"""
SHARED = PER_HEAD.replace("ops.topk(logit)", 'ops.topk(logit.max("head"), share="mean")')
SOFTMAX = PER_HEAD.replace("ops.topk(logit)", '(ops.topk(logit.softmax("page").mean("head"), fraction=0.5)'
                           ' | ops.topp(logit.max("head"), 0.6, fraction=0.5))')  # fmt: skip
# Negative logits weigh NaN, which is nothing, and large ones infinity, which is the largest number.
WILD = PER_HEAD.replace("logit + ops.size(", "ops.where(logit > 2, 1 / (0 * logit), logit.log()) + ops.size(")
SOURCES = {"per_head": PER_HEAD, "shared": SHARED, "union": SOFTMAX, "wild": WILD}


def flow(name: str, **knobs: object) -> Traced:
    traced = run(SOURCES[name], "residual.py") if name in SOURCES else library.load(name)
    return traced.with_knobs(**{"page_size": SIZE, "budget": "32", "keep_last": 1, **knobs})


class Case:
    """Ragged sequences on pages in random order; `constant`: all tokens of a page have one key."""

    def __init__(self, geometry: Geometry, seed: int = 0, *, constant: bool = False) -> None:
        g = torch.Generator().manual_seed(seed)
        width = -(-max(LENGTHS) // SIZE)
        self.geometry, self.pages = geometry, len(LENGTHS) * width + 3
        order = torch.randperm(self.pages, generator=g)[: len(LENGTHS) * width]
        self.table = order.view(len(LENGTHS), width)
        shape = (geometry.kv_heads, self.pages, 1 if constant else SIZE, geometry.head_dim)
        k = torch.randn(shape, generator=g).expand(-1, -1, SIZE, -1).contiguous()
        self.kv = LayerKV(k, torch.randn(*k.shape[:3], geometry.value_dim, generator=g))
        self.q = torch.randn(len(LENGTHS), geometry.q_heads, geometry.head_dim, generator=g)

    def attend(self, compiled: CompiledFlow) -> tuple[torch.Tensor, PageList]:
        """Select, attend, merge."""
        states = compiled.new_states(self.pages, torch.device("cpu"))
        assert isinstance(states, TorchStates)
        complete = torch.cat([self.table[b, : n // SIZE] for b, n in enumerate(LENGTHS)])
        compiled.update(states, self.kv, complete, 0)
        budgets = torch.tensor([compiled.knobs.pages(n) for n in LENGTHS])
        view = BatchView(self.table, torch.tensor(LENGTHS), budgets, max(LENGTHS))
        selected = compiled.select(self.q, states, view, 0)
        lse = torch.empty(self.q.shape[:2])
        scale = self.geometry.head_dim**-0.5
        out, _ = sparse_decode(self.q, self.kv, selected, scale, lse=lse)
        return compiled.merge_residual(out, lse, selected, states, view), selected

    def dense(self) -> torch.Tensor:
        """Attention over everything, in fp64."""
        rows = []
        for b, n in enumerate(LENGTHS):
            k, v = (x[:, self.table[b]].flatten(1, 2)[:, :n].double() for x in (self.kv.k, self.kv.v))
            q = self.q[b].double().unflatten(0, (len(k), -1))
            weights = torch.softmax(q @ k.transpose(-1, -2) * self.geometry.head_dim**-0.5, -1)
            rows.append((weights @ v).flatten(0, 1))
        return torch.stack(rows)


GEOMETRIES = [Geometry(1, h, g, d, d, d) for h, g, d in ((2, 1, 16), (1, 3, 24), (2, 7, 16), (1, 16, 32))]


@pytest.mark.usefixtures("single_thread")
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: f"group{g.group}")
@pytest.mark.parametrize("name", ["retroinfer", *SOURCES])
def test_torch_merges_what_the_oracle_merges(name: str, geometry: Geometry) -> None:
    traced, case = flow(name), Case(geometry, geometry.group)
    want, theirs = case.attend(backends.get("oracle").compile(traced.original, traced.knobs, geometry))
    found, ours = case.attend(backends.get("torch").compile(traced.program, traced.knobs, geometry))
    assert ours.lengths.tolist() == theirs.lengths.tolist()
    assert found.isfinite().all()
    torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("single_thread")
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: f"group{g.group}")
@pytest.mark.parametrize("name", ["per_head", "shared", "union"])
def test_where_a_page_is_one_key_attention_is_dense_at_any_budget(name: str, geometry: Geometry) -> None:
    case, knobs = Case(geometry, constant=True), {"budget": "16", "keep_first": 0}
    traced = flow(name, **knobs)
    found, selected = case.attend(backends.get("torch").compile(traced.program, traced.knobs, geometry))
    assert int(selected.counts.max()) < -(-max(LENGTHS) // SIZE) / 4
    torch.testing.assert_close(found.double(), case.dense(), atol=1e-5, rtol=1e-4)


def test_the_estimate_is_nearer_to_dense_attention_than_leaving_pages_out() -> None:
    geometry = GEOMETRIES[0]
    case, traced = Case(geometry), flow("retroinfer")
    with_residual, _ = case.attend(backends.get("torch").compile(traced.program, traced.knobs, geometry))
    compiled = backends.get("torch").compile(traced.program, traced.knobs, geometry)
    compiled.merge_residual = lambda out, *rest: out  # type: ignore[method-assign]
    without, _ = case.attend(compiled)
    dense = case.dense()
    assert (with_residual - dense).square().sum() < 0.5 * (without - dense).square().sum()


@pytest.mark.parametrize("name", ["reuse_steps", "reuse_layers"])
def test_a_selection_that_is_used_again_has_no_residual(name: str) -> None:
    with pytest.raises(VortexError) as refused:
        check_reuse(flow("retroinfer").program, Knobs(**{name: 2}))
    assert refused.value.code == "VF068"


def test_latent_attention_has_no_residual() -> None:
    with pytest.raises(VortexError) as refused:
        backends.get("torch").compile(flow("retroinfer").program, Knobs(), Geometry(1, 1, 4, 48, 16, 32))
    assert refused.value.code == "VF069"

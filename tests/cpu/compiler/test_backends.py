"""The torch backend selects what the oracle selects: ragged batches, permuted pages, every sample flow."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest
import torch

from tests import sample_flows
from vortex_core import registry
from vortex_core.compiler import backends
from vortex_core.compiler.interface import BatchView, CapturedFlow, CompiledFlow, LayerKV
from vortex_core.compiler.torch_backend import TorchBackend
from vortex_core.errors import VortexError
from vortex_core.flow.trace import Traced
from vortex_core.geometry import Geometry
from vortex_core.page_list import PageList
from vortex_core.runtime.eager_flow import EagerFlow

SIZE = 8
LENGTHS = [1, 7, 8, 9, 40, 64, 65, 130]


def inputs(seed: int, group: int, kv_heads: int, dim: int) -> tuple[LayerKV, torch.Tensor, torch.Tensor, int]:
    g = torch.Generator().manual_seed(seed)
    width = -(-max(LENGTHS) // SIZE)
    pages = len(LENGTHS) * width + 3
    table = torch.randperm(pages, generator=g)[: len(LENGTHS) * width].view(len(LENGTHS), width)
    k = torch.randn(kv_heads, pages, SIZE, dim, generator=g)
    v = torch.randn(kv_heads, pages, SIZE, dim, generator=g)
    q = torch.randn(len(LENGTHS), kv_heads * group, dim, generator=g)
    return LayerKV(k, v), table, q, pages


def dense_mass(q: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """What a dense layer may have attended to."""
    found = torch.rand(*q.shape[:2], table.shape[1] + 5, generator=torch.Generator().manual_seed(9))
    found[:, :, -3:] = float("nan")  # nobody reads past a row's complete pages
    return found


def steps(
    flow: CompiledFlow, kv: LayerKV, table: torch.Tensor, q: torch.Tensor, pages: int
) -> list[PageList]:
    """Three decode steps over the same pages, with attention mass fed back."""
    states = flow.new_states(pages, torch.device("cpu"), len(LENGTHS))
    complete = torch.cat([table[b, : n // SIZE] for b, n in enumerate(LENGTHS)])
    flow.update(states, kv, complete, 0)
    budgets = torch.tensor([flow.knobs.pages(n) for n in LENGTHS])
    dense = dense_mass(q, table)
    view = BatchView(table, torch.tensor(LENGTHS), budgets, max(LENGTHS), dense_mass=dense)
    found = []
    for step in range(3):
        g = torch.Generator().manual_seed(step)
        chosen = flow.select(q + 0.3 * step, states, view, 0)
        if flow.program.needs_mass:
            flow.observe(states, chosen, torch.rand(*q.shape[:2], chosen.page_ids.shape[-1], generator=g), 0)
        found.append(chosen)
    return found


DIVIDES = {"adamas": 16}  # what the channels of a head must be a multiple of


def rows(found: PageList) -> list[list[int]]:
    return [
        found.page_ids[b, r, : int(found.counts[b, r])].tolist()
        for b in range(len(LENGTHS))
        for r in range(found.heads)
    ]


def small(traced: Traced) -> Traced:
    return traced if traced.knobs.page_size == SIZE else traced.with_knobs(page_size=SIZE, budget="40")


@pytest.mark.parametrize("name", sample_flows.names())
@pytest.mark.parametrize(("group", "kv_heads", "dim"), [(3, 2, 16), (1, 1, 16), (7, 2, 24), (16, 1, 8)])
def test_torch_selects_what_the_oracle_selects(name: str, group: int, kv_heads: int, dim: int) -> None:
    traced = small(sample_flows.load(name))
    dim = -(-dim // DIVIDES.get(name, 1)) * DIVIDES.get(name, 1)
    geometry = Geometry(1, kv_heads, group, dim, dim, dim, sample_flows.turned(dim))
    data = inputs(group * 100 + dim, group, kv_heads, dim)
    oracle = steps(backends.get("oracle").compile(traced.original, traced.knobs, geometry), *data)
    torch_ = steps(backends.get("torch").compile(traced.program, traced.knobs, geometry), *data)
    for a, b in zip(oracle, torch_, strict=True):
        assert a.heads == b.heads
        assert rows(a) == rows(b)
        assert torch.equal(a.counts, b.counts)
        assert torch.equal(a.lengths, b.lengths)


@pytest.mark.parametrize("name", sample_flows.names())
def test_selection_keeps_the_rules(name: str) -> None:
    """Within budget, last page last, lengths right, kept pages present."""
    traced = small(sample_flows.load(name))
    kv, table, q, pages = inputs(5, 3, 2, 16)
    flow = backends.get("torch").compile(
        traced.program, traced.knobs, Geometry(1, 2, 3, 16, 16, 16, sample_flows.turned(16))
    )
    (first, *_) = steps(flow, kv, table, q, pages)
    for b, length in enumerate(LENGTHS):
        total = -(-length // SIZE)
        budget = total if traced.program.selects_everything else traced.knobs.pages(length)
        if traced.program.result.op == "union":
            budget = 2 * budget
        for r in range(first.heads):
            chosen = first.page_ids[b, r, : int(first.counts[b, r])].tolist()
            logical = [table[b].tolist().index(p) for p in chosen]
            assert logical == sorted(set(logical))
            assert logical[-1] == total - 1
            assert len(chosen) <= budget
            kept = {
                p for p in range(total) if p < traced.knobs.keep_first or p >= total - traced.knobs.keep_last
            }
            assert kept <= set(logical)
            assert int(first.lengths[b, r]) == (len(chosen) - 1) * SIZE + length - (total - 1) * SIZE


def test_a_program_that_does_not_fit_the_model_says_so() -> None:
    traced = sample_flows.load("dtypes_and_union")
    with pytest.raises(VortexError) as caught:
        backends.get("torch").compile(traced.program, traced.knobs, Geometry(1, 1, 2, 15, 15, 15))
    assert caught.value.code == "VF013"


def test_unknown_backend_lists_the_known() -> None:
    with pytest.raises(VortexError, match="VE001"):
        backends.get("cuda")


@pytest.mark.parametrize("name", ["oracle", "torch", "triton"])
def test_a_backend_that_captures_gives_flows_that_can_be_captured(name: str) -> None:
    traced = sample_flows.load("quest")
    backend = backends.get(name)
    flow = backend.compile(
        traced.program, traced.knobs, Geometry(2, 2, 2, 16, 16, 16, sample_flows.turned(16))
    )
    assert backend.name == name
    assert isinstance(flow, CompiledFlow)
    assert isinstance(flow, CapturedFlow) == backend.captures
    assert isinstance(EagerFlow(flow), CapturedFlow)


def test_another_distribution_adds_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("acme", "vortex_core.compiler.torch_backend:TorchBackend", "vortex_core.backends")

    def installed(group: str, name: str | None = None) -> list[EntryPoint]:
        return [point] if group == point.group and name in (None, "acme") else []

    monkeypatch.setattr(registry, "entry_points", installed)
    assert backends.REGISTRY.names() == ("oracle", "torch", "triton", "acme")
    assert isinstance(backends.get("acme"), TorchBackend)
    with pytest.raises(VortexError, match="VE001") as caught:
        backends.get("torhc")
    assert "did you mean torch" in caught.value.remedy

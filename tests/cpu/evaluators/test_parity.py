from __future__ import annotations

from typing import Any

import pytest
import torch

from evaluators.parity import _is_tie, _RaggedBatch, compare
from vortex_core import library
from vortex_core.compiler.torch_backend import TorchFlow
from vortex_core.errors import VortexError
from vortex_core.geometry import Geometry
from vortex_core.ir.program import SCALED
from vortex_core.sandbox.load import trace_source

GQA = Geometry(layers=2, kv_heads=2, group=3, head_dim=16, rope_dim=16, value_dim=16)
MLA = Geometry(layers=2, kv_heads=1, group=4, head_dim=48, rope_dim=16, value_dim=32)
SETTINGS: dict[str, Any] = {
    "backend": "torch",
    "pages": (0.1, 1, 2.4, 9.5, 17),
    "seeds": (0, 1),
    "tie_tolerance": 1e-4,
}


def flow(states: str, score: str, cache: str) -> Any:
    return trace_source(
        "from vortex_core import ops, register, vFlow\n"
        "class Test(vFlow):\n"
        "    def create_cache(self, page):\n"
        f"        return {states}\n"
        "    def forward_cache(self, page):\n"
        f"        return {cache}\n"
        "    def forward_indexer(self, q, cache):\n"
        f"        return {score}\n"
    )


@pytest.mark.parametrize("geometry", [GQA, MLA], ids=["gqa", "mla"])
@pytest.mark.parametrize("name", library.names())
def test_library_flows_agree(name: str, geometry: Geometry) -> None:
    traced = library.load(name)
    if geometry.is_mla and traced.program.residual is not None:
        with pytest.raises(VortexError, match="VF069"):
            compare(traced.program, traced.knobs, geometry, **SETTINGS)
        return
    found = compare(traced.program, traced.knobs, geometry, **SETTINGS)
    assert found.holds, found
    assert found.rows >= 2 * 2 * 5  # seeds x steps x sequences, and heads


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "fp8_e4m3", *SCALED, "bits"])
def test_rounding_of_states_is_no_difference(dtype: str) -> None:
    traced = flow(
        f'{{"c": page.state(dim=page.head_dim, dtype="{dtype}")}}',
        'ops.topk((q.mean("head") * cache["c"]).sum("dim"))',
        '{"c": page.k.mean("token")}',
    )
    found = compare(traced.program, traced.knobs, GQA, **SETTINGS)
    assert found.holds, found


@pytest.mark.parametrize("dtype", ["bf16", "int8", "fp8_e4m3"])
def test_states_with_rows_and_part_of_the_channels_are_compared(dtype: str) -> None:
    """Their values lie in memory in another order on either side."""
    traced = flow(
        f'{{"c": page.state(row=page.size, ch="D/2", dtype="{dtype}")}}',
        'ops.topk((q.mean("head").slice("dim", "D/2", "D").rename(dim="ch") * cache["c"]).sum("ch").max("row"))',
        '{"c": page.k.rename(token="row").slice("dim", "D/2", "D").rename(dim="ch")}',
    )
    found = compare(traced.program, traced.knobs, GQA, **SETTINGS)
    assert found.holds, found


def test_equal_scores_are_ties_whatever_the_backend_picks(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = flow(
        '{"c": page.state(dim=page.head_dim)}',
        'ops.topk(ops.minimum((cache["c"] * cache["c"]).sum("dim"), 0.0))',
        '{"c": page.k.mean("token")}',
    )
    assert compare(traced.program, traced.knobs, GQA, **SETTINGS).holds
    _replace_selection(monkeypatch, lambda scores: torch.arange(scores.shape[-1]).expand_as(scores) * 1.0)
    found = compare(traced.program, traced.knobs, GQA, **SETTINGS)
    assert found.holds
    assert found.tied > 0


def test_a_backend_that_selects_the_worst_pages_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = library.load("quest")
    _replace_selection(monkeypatch, lambda scores: -scores)
    found = compare(traced.program, traced.knobs, GQA, **SETTINGS)
    assert not found.holds
    assert found.differing > found.rows / 4
    assert "instead of" in found.example


def test_a_backend_with_a_small_error_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = library.load("block_topk")
    noise = torch.Generator().manual_seed(0)
    _replace_selection(monkeypatch, lambda s: s + 0.2 * s.std() * torch.randn(s.shape, generator=noise))
    assert not compare(traced.program, traced.knobs, GQA, **SETTINGS).holds


def test_a_wrong_state_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    update = TorchFlow.update

    def forgets_the_last_page(self: TorchFlow, states: Any, kv: Any, pages: Any, layer: int) -> None:
        update(self, states, kv, pages[:-1], layer)

    monkeypatch.setattr(TorchFlow, "update", forgets_the_last_page)
    traced = library.load("quest")
    found = compare(traced.program, traced.knobs, GQA, **SETTINGS)
    assert set(found.states) == {s.name for s in traced.program.states}
    assert not found.holds


def _replace_selection(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Make the torch backend, not the oracle, select by changed scores."""
    import vortex_core.compiler.torch_backend as backend

    select = backend.evaluate_selection

    def changed(graph: Any, scores: dict[int, torch.Tensor], *rest: Any) -> torch.Tensor:
        values = {i: change(s) if s.dim() > 2 else s for i, s in scores.items()}
        return select(graph, values, *rest)

    monkeypatch.setattr(backend, "evaluate_selection", changed)


@pytest.mark.parametrize("budget", ["64", "512", "length"])
def test_no_row_may_attend_more_than_its_budget_for_which_alone_backends_have_room(budget: str) -> None:
    knobs = library.load("block_topk").with_knobs(page_size=64, budget=budget).knobs
    lengths = (40, 1324, 4000)
    view = _RaggedBatch(knobs, GQA, lengths, 0, torch.float32).view(1)
    for budget_pages, length in zip(view.budgets.tolist(), lengths, strict=True):
        assert 1 <= budget_pages <= knobs.pages(length + 1, 0, GQA.layers)
        assert budget_pages <= max(1, -(-(length + 1) // 64) // 2), (
            "half of the pages, so that there is a cut"
        )


@pytest.mark.parametrize(
    ("coarse", "fine", "tie"),
    [
        # Pages 3 and 4 are as good by the coarse score: either may be the fourth candidate, and 4 is the best of all.
        ((9.0, 8.0, 7.0, 5.0, 5.0, 1.0), (3.0, 2.0, 1.0, 0.0, 9.0, 8.0), True),
        # No coarse score is like another: page 4 was no candidate.
        ((9.0, 8.0, 7.0, 5.0, 4.0, 1.0), (3.0, 2.0, 1.0, 0.0, 9.0, 8.0), False),
        # It might have been one, but is not better than page 1, which it replaced.
        ((9.0, 8.0, 7.0, 5.0, 5.0, 1.0), (3.0, 2.0, 1.0, 0.0, 0.5, 8.0), False),
        # As good by the fine score as what it replaced.
        ((9.0, 8.0, 7.0, 5.0, 6.0, 1.0), (3.0, 2.0, 1.0, 0.0, 2.0, 8.0), True),
        # That page 1 is as good as another by the coarse score alone excuses nothing.
        ((9.0, 8.0, 8.0, 5.0, 6.0, 1.0), (3.0, 2.0, 1.0, 0.0, 9.0, 8.0), False),
    ],
)
def test_ties_of_two_stages(coarse: tuple[float, ...], fine: tuple[float, ...], tie: bool) -> None:
    program = library.load("hisa").program.canonical()
    refined = program.index.refinement
    assert refined is not None
    scores = {refined.coarse: torch.tensor([coarse]), refined.fine: torch.tensor([fine])}
    assert _is_tie(program, scores, {0, 4}, {0, 1}, 0, 1e-4) == tie

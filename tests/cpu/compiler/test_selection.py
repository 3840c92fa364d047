"""Selection against a naive reading of its rules: order, ties, forced pages, budgets, adaptive counts, scopes."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vortex_core.compiler.interface import BatchView
from vortex_core.compiler.oracle import choose
from vortex_core.compiler.selection import evaluate_selection, page_list
from vortex_core.ir.graph import GraphBuilder
from vortex_core.ir.knobs import Knobs

SIZE = 8
LENGTHS = (0, 1, SIZE - 1, SIZE, SIZE + 1, 40, 95, 96, 97)
SCORES = st.sampled_from([0.0, 1.0, -1.0, 0.5, 2.25, -3.5, math.nan, math.inf, -math.inf, 1e30])


def naive(
    op: str, attrs: dict[str, float], scores: list[float], length: int, budget: int, knobs: Knobs
) -> set[int]:
    """One row's pages, straight from the documentation."""
    total = -(-length // SIZE)
    kept = {p for p in range(total) if p < knobs.keep_first or p >= total - knobs.keep_last}
    value = {p: -1e308 if math.isnan(s) else max(-1e308, min(1e308, s)) for p, s in enumerate(scores)}
    ranked = sorted((p for p in value if p not in kept), key=lambda p: (-value[p], p))
    share = Fraction(round(attrs.get("fraction", 1.0) * 10_000), 10_000)
    room = math.ceil(max(0, budget - len(kept)) * share)
    if op == "threshold":
        ranked = [p for p in ranked if value[p] >= attrs["at"]]
    if op == "topp" and ranked:
        top = value[ranked[0]]
        weight = {p: math.exp(max(-745.0, value[p] - top)) if value[p] - top > -745 else 0.0 for p in ranked}
        total_weight = math.fsum(weight.values())
        reached, short = 0.0, []
        for p in ranked:
            if reached >= attrs["p"]:
                break
            short.append(p)
            reached += weight[p] / total_weight
        ranked = short
    return kept | set(ranked[:room])


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, dict[str, float], Knobs, dict[int, list[float]]]:
    op = draw(st.sampled_from(["topk", "topp", "threshold"]))
    attrs: dict[str, float] = {"fraction": draw(st.sampled_from([1.0, 0.5, 0.55, 0.1, 1e-4]))}
    if op == "topp":
        attrs["p"] = draw(st.sampled_from([0.1, 0.5, 0.9, 1.0]))
    if op == "threshold":
        attrs["at"] = draw(st.sampled_from([0.0, 1.0, -3.5, 1e29, -1e30]))
    knobs = Knobs(
        page_size=SIZE,
        budget=draw(st.sampled_from(["16", "40", "64", "length / 2", "length"])),
        keep_first=draw(st.integers(0, 2)),
        keep_last=draw(st.integers(1, 2)),
    )
    scores = {n: draw(st.lists(SCORES, min_size=n // SIZE, max_size=n // SIZE)) for n in LENGTHS}
    return op, attrs, knobs, scores


@given(cases())
def test_vectorised_and_oracle_selection_follow_the_rules(case) -> None:  # type: ignore[no-untyped-def]
    op, attrs, knobs, scores = case
    builder = GraphBuilder("index")
    score = builder.emit("load", name="s", dims=())
    graph = builder.graph({}, builder.emit(op, [score], **attrs))
    width = max(LENGTHS) // SIZE
    padded = torch.full((len(LENGTHS), 1, width), 7.0, dtype=torch.float64)
    for b, n in enumerate(LENGTHS):
        padded[b, 0, : n // SIZE] = torch.tensor(scores[n], dtype=torch.float64)
    lengths = torch.tensor(LENGTHS)
    budgets = torch.tensor([knobs.pages(n) for n in LENGTHS])
    table = torch.randperm(len(LENGTHS) * (width + 1)).view(len(LENGTHS), -1)
    view = BatchView(table, lengths, budgets, max(LENGTHS))
    mask = evaluate_selection(graph, {score: padded}, view, knobs, lengths // SIZE, 1)
    found = page_list(mask, view, SIZE)
    for b, n in enumerate(LENGTHS):
        expected = naive(op, attrs, scores[n], n, knobs.pages(n), knobs)
        chosen = found.page_ids[b, 0, : int(found.counts[b, 0])].tolist()
        assert [table[b].tolist().index(p) for p in chosen] == sorted(expected)
        assert int(found.lengths[b, 0]) == sum(min(SIZE, n - p * SIZE) for p in expected)
        total = -(-n // SIZE)
        forced = {p for p in range(total) if p < knobs.keep_first or p >= total - knobs.keep_last}
        parts = round(attrs["fraction"] * 10_000)
        room = -(-max(0, knobs.pages(n) - len(forced)) * parts // 10_000)
        assert forced | choose(op, attrs, scores[n], forced, room) == expected


@pytest.mark.parametrize(
    ("fraction", "room", "pages"), [(0.55, 100, 55), (0.1, 10, 1), (0.1, 11, 2), (0.7, 10, 7), (1, 7, 7)]
)
def test_a_fraction_of_the_budget_is_exact(fraction: float, room: int, pages: int) -> None:
    from vortex_core.compiler.selection import share_of

    assert share_of(torch.tensor([room]), fraction).item() == pages


@given(st.lists(SCORES, min_size=12, max_size=12), st.lists(SCORES, min_size=12, max_size=12))
@pytest.mark.parametrize("share", ["max", "mean"])
def test_shared_selection_pools_over_kv_heads(share: str, one: list[float], other: list[float]) -> None:
    builder = GraphBuilder("index")
    score = builder.emit("load", name="s", dims=())
    graph = builder.graph({}, builder.emit("topk", [score], share=share))
    knobs = Knobs(page_size=SIZE, budget="40", keep_first=1, keep_last=1)
    view = BatchView(torch.arange(12).view(1, 12), torch.tensor([96]), torch.tensor([5]), 96)
    scores = torch.tensor([[one, other]], dtype=torch.float64)
    mask = evaluate_selection(graph, {score: scores}, view, knobs, torch.tensor([12]), 2)
    pooled = [
        math.nan if math.isnan(a + b) and share == "mean" else max(a, b) if share == "max" else (a + b) / 2
        for a, b in zip(one, other, strict=True)
    ]
    if share == "max":
        pooled = [
            math.nan if math.isnan(a) or math.isnan(b) else max(a, b) for a, b in zip(one, other, strict=True)
        ]
    expected = naive("topk", {}, pooled, 96, 5, knobs)
    for head in range(2):
        assert set(mask[0, head].nonzero().flatten().tolist()) == expected

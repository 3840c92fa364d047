"""Selection equals its definition: total order, ties by page, always-kept pages, every length of row."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.interp.kernels import inputs
from vortex_core.kernels import select_pages, threshold_budget, top_p_budget
from vortex_core.kernels.reference import select_reference, threshold_reference, top_p_reference
from vortex_core.kernels.select import SelectPlan, SelectWorkspace, select_plan

PAGE = 8
UNTOUCHED = -7


def run(
    case: inputs.Scores, budget: torch.Tensor, heads: int, plan: SelectPlan, capacity: int, **options: object
) -> tuple[list[list[int]], list[int]]:
    rows = case.scores.shape[0]
    ids = torch.full((rows, capacity), UNTOUCHED, dtype=torch.int32)
    lens = torch.full((rows,), UNTOUCHED, dtype=torch.int32)
    workspace = SelectWorkspace(
        torch.full((rows, plan.candidates), UNTOUCHED, dtype=torch.int32),
        torch.full((rows, plan.candidates), UNTOUCHED, dtype=torch.int32),
        torch.zeros(rows, dtype=torch.int32),
    )
    pages = select_pages(
        case.scores, case.n_tokens, budget, case.table, heads=heads, page_size=PAGE, page_ids=ids,
        kv_lens=lens, workspace=workspace, plan=plan, **options,
    )  # fmt: skip
    assert not workspace.finished.any()
    assert pages.page_ids.shape == (rows // heads, heads, capacity)
    found = []
    for row in range(rows):
        count = -(-int(lens[row]) // PAGE)
        found.append(ids[row, :count].tolist())
        assert (ids[row, count:] == UNTOUCHED).all(), "nothing is written past the list"
    return found, lens.tolist()


@settings(max_examples=40)
@given(
    tokens=st.lists(st.one_of(st.sampled_from([0, 1, 7, 8, 9]), st.integers(0, 240)), min_size=1, max_size=2),
    heads=st.just(1),
    kind=st.sampled_from(["normal", "ties", "special"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    budget=st.integers(0, 60),
    keep=st.sampled_from([(0, 0), (0, 1), (1, 2)]),
    segment=st.sampled_from([None, 16]),
    final=st.sampled_from([None, 16]),
    seed=st.integers(0, 99),
)
def test_equals_the_definition(
    tokens: list[int],
    heads: int,
    kind: str,
    dtype: torch.dtype,
    budget: int,
    keep: tuple[int, int],
    segment: int | None,
    final: int | None,
    seed: int,
) -> None:
    case = inputs.scores(tokens, heads=heads, page_size=PAGE, kind=kind, dtype=dtype, seed=seed)
    capacity = max(1, budget, sum(keep))
    max_pages = case.scores.shape[1]
    plan = select_plan(max_pages, capacity, segment, segment) if segment else select_plan(max_pages, capacity)
    if final and plan.segments > 1:
        plan = dataclasses.replace(plan, final_block=final)  # force the histogram over candidates
    k = torch.tensor([budget], dtype=torch.int32)
    found, lens = run(case, k, heads, plan, capacity, keep_first=keep[0], keep_last=keep[1])
    _, want, want_lens = select_reference(
        case.scores,
        case.n_tokens,
        k,
        case.table,
        heads=heads,
        page_size=PAGE,
        keep_first=keep[0],
        keep_last=keep[1],
    )
    assert found == want
    assert lens == want_lens


def test_budget_per_row_and_per_request_and_capacity() -> None:
    case = inputs.scores([300, 200], heads=2, page_size=PAGE)
    plan = select_plan(case.scores.shape[1], 6)
    for values in ([3, 5, 4, 2], [3, 5], [9]):
        k = torch.tensor(values, dtype=torch.int32)
        found, _ = run(case, k, 2, plan, 6)
        capped = k.clamp(max=6)
        want = select_reference(case.scores, case.n_tokens, capped, case.table, heads=2, page_size=PAGE)[1]
        assert found == want


@settings(max_examples=10)
@given(
    tolerance=st.sampled_from([0.1, 0.5, 1.0]),
    seed=st.integers(0, 50),
    kind=st.sampled_from(["normal", "ties"]),
    segment=st.sampled_from([None, 16]),
)
def test_stochastic_selection_keeps_its_recall(
    tolerance: float, seed: int, kind: str, segment: int | None
) -> None:
    case = inputs.scores([200], heads=2, page_size=PAGE, kind=kind, seed=seed)
    plan = select_plan(case.scores.shape[1], 12, *([segment] * 2 if segment else []))
    k = torch.tensor([12], dtype=torch.int32)
    options = {"tolerance": tolerance, "seed": seed, "keep_last": 1}
    found, lens = run(case, k, 2, plan, 12, **options)
    assert (found, lens) == run(case, k, 2, plan, 12, **options), "the same seed draws the same pages"
    logical, _, _ = select_reference(case.scores, case.n_tokens, k, case.table, heads=2, page_size=PAGE)
    for row, pages in enumerate(found):
        order = {int(p): i for i, p in enumerate(case.table[row // 2])}
        positions = [order[p] for p in pages]
        assert positions == sorted(set(positions)), "distinct, ascending"
        assert len(pages) == 12
        # Equal scores are interchangeable: recall is counted on scores.
        worst = min(float(case.scores[row, p]) for p in logical[row])
        n_pages = -(-int(case.n_tokens[row // 2]) // PAGE)
        right = sum(float(case.scores[row, p]) >= worst or p == n_pages - 1 for p in positions)
        assert right >= math.ceil((1 - tolerance) * 12)


def test_seeds_differ_where_the_bin_is_open() -> None:
    case = inputs.scores([399], heads=1, page_size=PAGE)
    plan = select_plan(50, 12)
    k = torch.tensor([12], dtype=torch.int32)
    drawn = {tuple(run(case, k, 1, plan, 12, tolerance=1.0, seed=s)[0][0]) for s in range(6)}
    assert len(drawn) > 1


@settings(max_examples=8)
@given(
    st.sampled_from([0.1, 0.5, 0.9, 0.99]),
    st.booleans(),
    st.sampled_from(["normal", "ties"]),
    st.integers(0, 50),
)
def test_top_p_takes_the_shortest_prefix(mass: float, logits: bool, kind: str, seed: int) -> None:
    case = inputs.scores([200, 100], heads=1, page_size=PAGE, kind=kind, seed=seed)
    budget = torch.full((2,), UNTOUCHED, dtype=torch.int32)
    top_p_budget(
        case.scores, case.n_tokens, torch.tensor([mass]), heads=1, page_size=PAGE, budget=budget,
        keep_first=1, logits=logits,
    )  # fmt: skip
    weights = case.scores.double().exp() if logits else case.scores
    for row, n_pages in enumerate([25, 13]):
        # fp32 sums may stop one page to either side where the mass is met within rounding.
        wanted = {top_p_reference(weights[row], n_pages, mass * e, 1, 1) for e in (1 - 1e-6, 1, 1 + 1e-6)}
        assert int(budget[row]) in wanted


def test_threshold_counts_pages_at_or_above() -> None:
    for kind in ("ties", "special"):
        case = inputs.scores([399, 0, 9], heads=1, page_size=PAGE, kind=kind)
        budget = torch.full((3,), UNTOUCHED, dtype=torch.int32)
        level = torch.tensor([0.5, 0.5, -1.0])
        threshold_budget(case.scores, case.n_tokens, level, heads=1, page_size=PAGE, budget=budget)
        want = [
            threshold_reference(case.scores[r], n, float(level[r]), 0, 1) for r, n in enumerate([50, 0, 2])
        ]
        assert budget.tolist() == want


def test_long_rows_need_their_workspace() -> None:
    from vortex_core.kernels import KernelInputError

    case = inputs.scores([399], heads=1, page_size=PAGE)
    ids, lens = torch.empty(1, 4, dtype=torch.int32), torch.empty(1, dtype=torch.int32)
    with pytest.raises(KernelInputError, match="select_workspace"):
        select_pages(
            case.scores, case.n_tokens, torch.tensor([4], dtype=torch.int32), case.table, heads=1,
            page_size=PAGE, page_ids=ids, kv_lens=lens, plan=select_plan(50, 4, 16, 16),
        )  # fmt: skip

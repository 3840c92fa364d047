"""Selection equals its definition: total order, ties by page, always-kept pages, every length of row."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.interp.kernels import inputs
from vortex_core.ir.crossover import EVERYTHING
from vortex_core.kernels import Limit, Marks, select_pages
from vortex_core.kernels.reference import select_reference
from vortex_core.kernels.select.api import SelectPlan, SelectWorkspace, select_plan

PAGE = 8
UNTOUCHED = -7


def scratch(rows: int, plan: SelectPlan) -> SelectWorkspace:
    return SelectWorkspace(
        torch.full((rows, plan.candidates), UNTOUCHED, dtype=torch.int32),
        torch.full((rows, plan.candidates), UNTOUCHED, dtype=torch.int32),
        torch.full((rows, 2 * plan.segments), float("nan")),
        torch.zeros(rows, dtype=torch.int32),
        *(torch.full((rows, plan.segments * plan.sift), UNTOUCHED, dtype=torch.int32) for _ in range(2)),
    )


def run(
    case: inputs.Scores, budget: torch.Tensor, heads: int, plan: SelectPlan, capacity: int, **options: object
) -> tuple[list[list[int]], list[int]]:
    rows = case.scores.shape[0]
    ids = torch.full((rows, capacity), UNTOUCHED, dtype=torch.int32)
    lens = torch.full((rows,), UNTOUCHED, dtype=torch.int32)
    workspace = scratch(rows, plan)
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
    tiers=st.sampled_from([1, 2, 3]),
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
    tiers: int,
    seed: int,
) -> None:
    case = inputs.scores(tokens, heads=heads, page_size=PAGE, kind=kind, dtype=dtype, seed=seed)
    capacity = max(1, budget, sum(keep))
    max_pages = case.scores.shape[1]
    plan = plan_of(max_pages, capacity, segment, final, tiers)
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


@settings(max_examples=8)
@given(
    pages=st.sampled_from([2048, 2049, 4096, 5000, 8192, 8193, 13000]),
    kind=st.sampled_from(["normal", "ties", "special", "equal"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    budget=st.sampled_from([3, 64, 128, 256, 257]),
    at=st.sampled_from([None, 1.0, 2.5, -math.inf]),
    seed=st.integers(0, 99),
)
def test_long_rows_are_sifted_to_the_same_pages(
    pages: int, kind: str, dtype: torch.dtype, budget: int, at: float | None, seed: int
) -> None:
    """One row as long as the table, and one half as long, which is searched in a shorter block."""
    tokens = [pages * PAGE - 3, pages * PAGE // 2]
    case = inputs.scores(tokens, heads=1, page_size=PAGE, kind=kind, dtype=dtype, seed=seed)
    k = torch.tensor([budget], dtype=torch.int32)
    rules = {"keep_first": 1, "keep_last": 2}
    limit = None if at is None else Limit("threshold", at)
    found, lens = run(case, k, 1, select_plan(pages, budget, sifts=True), budget, limit=limit, **rules)
    _, want, want_lens = select_reference(
        case.scores, case.n_tokens, k, case.table, heads=1, page_size=PAGE, threshold=at, **rules
    )
    assert found == want
    assert lens == want_lens


@settings(max_examples=6)
@given(
    pages=st.sampled_from([2049, 8192, 9000]),
    kind=st.sampled_from(["normal", "ties"]),
    p=st.sampled_from([0.0, 0.05, 0.3, 0.95]),
    seed=st.integers(0, 99),
)
def test_the_mass_of_long_rows_is_that_of_all_their_pages(pages: int, kind: str, p: float, seed: int) -> None:
    case = inputs.scores([pages * PAGE - 3], heads=1, page_size=PAGE, kind=kind, seed=seed)
    k, rules = torch.tensor([128], dtype=torch.int32), {"keep_first": 1, "keep_last": 2}
    (found,), _ = run(case, k, 1, select_plan(pages, 128, sifts=True), 128, limit=Limit("top-p", p), **rules)
    least, most = (
        select_reference(
            case.scores, case.n_tokens, k, case.table, heads=1, page_size=PAGE, top_p=p * (1 + e), **rules
        )[1][0]
        for e in (-2e-6, 2e-6)  # as `Limit` says
    )
    assert set(least) <= set(found) <= set(most)


def test_rows_are_sifted_where_few_pages_reach_the_bound_and_else_searched_whole() -> None:
    for kind, budget, sifted in (("normal", 128, True), ("normal", 257, False), ("equal", 128, False)):
        case = inputs.scores([3000 * PAGE], heads=1, page_size=PAGE, kind=kind)
        plan = select_plan(3000, budget, sifts=True)
        space = scratch(1, plan)
        ids, lens = torch.zeros(1, budget, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        select_pages(
            case.scores, case.n_tokens, torch.tensor([budget], dtype=torch.int32), case.table, heads=1,
            page_size=PAGE, page_ids=ids, kv_lens=lens, workspace=space, plan=plan,
        )  # fmt: skip
        assert space.sifted_pages is not None
        left = int((space.sifted_pages != UNTOUCHED).sum())
        assert (left > 0) == sifted
        assert not sifted or budget <= left < 200, "of 3,000 random scores about 128 / (1 - 128 / 1024)"


@pytest.mark.parametrize(
    ("pages", "kind"), [(2050, "normal"), (8192, "ties"), (9000, "normal"), (2050, "equal")]
)
def test_unions_of_long_rows_are_sifted_to_the_same_pages(pages: int, kind: str) -> None:
    cases = [inputs.scores([pages * PAGE - 3], heads=1, page_size=PAGE, kind=kind, seed=n) for n in range(3)]
    table, k, plan = cases[0].table, torch.tensor([64], dtype=torch.int32), select_plan(pages, 64, sifts=True)
    marks = torch.full((1, pages), 255, dtype=torch.uint8)
    union: set[int] = set()
    for case, stage in zip(cases, ("begin", "add", "list"), strict=True):
        case, rules = dataclasses.replace(case, table=table), {"keep_first": 1, "keep_last": 2}
        if stage == "list":
            found, lens = run(case, k, 1, plan, 192, marks=Marks(marks, stage, 64), **rules)
        else:
            silent(case, k, plan, Marks(marks, stage, 64), 192, None, rules)
        union |= set(
            select_reference(case.scores, case.n_tokens, k, table, heads=1, page_size=PAGE, **rules)[0][0]
        )
    assert found == [[int(table[0, p]) for p in sorted(union)]]
    assert lens == [len(union) * PAGE - 3]


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


def plan_of(
    max_pages: int, capacity: int, segment: int | None, final: int | None, tiers: int = 1
) -> SelectPlan:
    """A plan with segments as short as asked; `final` forces the histogram over candidates."""
    plan = select_plan(max_pages, capacity, segment, segment) if segment else select_plan(max_pages, capacity)
    plan = dataclasses.replace(plan, tiers=min(tiers, plan.block.bit_length() - 3))  # of 8 pages at least
    return dataclasses.replace(plan, final_block=final) if final and plan.segments > 1 else plan


LENGTHS = st.lists(st.one_of(st.sampled_from([0, 1, 7, 8, 9]), st.integers(0, 240)), min_size=1, max_size=2)
KINDS = st.sampled_from(["normal", "ties", "equal", "special"])
ROWS = {
    "tokens": LENGTHS, "kind": KINDS, "budget": st.sampled_from([0, 1, 2, 7, 30]),
    "keep": st.sampled_from([(0, 0), (0, 1), (1, 2)]), "segment": st.sampled_from([None, 16]),
    "final": st.sampled_from([None, 16]), "tiers": st.sampled_from([1, 3]),
    "fraction": st.sampled_from([1.0, 0.55, 0.1]), "seed": st.integers(0, 99),
}  # fmt: skip


@settings(max_examples=25)
@given(at=st.sampled_from([0.0, 0.5, -1.0, -math.inf, math.inf]), **ROWS)
def test_a_threshold_takes_what_reaches_it_up_to_the_budget(
    at: float, tokens: list[int], kind: str, budget: int, keep: tuple[int, int], segment: int | None,
    final: int | None, tiers: int, fraction: float, seed: int,
) -> None:  # fmt: skip
    case = inputs.scores(tokens, heads=1, page_size=PAGE, kind=kind, seed=seed)
    capacity = max(1, budget, sum(keep))
    plan = plan_of(case.scores.shape[1], capacity, segment, final, tiers)
    k = torch.tensor([budget], dtype=torch.int32)
    rules = {"keep_first": keep[0], "keep_last": keep[1], "fraction": fraction}
    found, lens = run(case, k, 1, plan, capacity, limit=Limit("threshold", at), **rules)
    _, want, want_lens = select_reference(
        case.scores, case.n_tokens, k, case.table, heads=1, page_size=PAGE, threshold=at, **rules
    )
    assert found == want
    assert lens == want_lens


@settings(max_examples=25)
@given(
    p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    **ROWS,
)
def test_top_p_takes_the_shortest_prefix_up_to_the_budget(
    p: float, dtype: torch.dtype, tokens: list[int], kind: str, budget: int, keep: tuple[int, int],
    segment: int | None, final: int | None, tiers: int, fraction: float, seed: int,
) -> None:  # fmt: skip
    case = inputs.scores(tokens, heads=1, page_size=PAGE, kind=kind, seed=seed, dtype=dtype)
    capacity = max(1, budget, sum(keep))
    plan = plan_of(case.scores.shape[1], capacity, segment, final, tiers)
    k = torch.tensor([budget], dtype=torch.int32)
    rules = {"keep_first": keep[0], "keep_last": keep[1], "fraction": fraction}
    found, lens = run(case, k, 1, plan, capacity, limit=Limit("top-p", p), **rules)
    wanted = [
        select_reference(
            case.scores, case.n_tokens, k, case.table, heads=1, page_size=PAGE, top_p=p * (1 + e), **rules
        )
        for e in (-2e-6, 0.0, 2e-6)  # as `Limit` says
    ]
    for row, pages in enumerate(found):
        matching = [i for i, (_, want, _) in enumerate(wanted) if want[row] == pages]
        if not matching:  # several pages within the tolerance: a prefix between the outermost two
            least, most = set(wanted[0][1][row]), set(wanted[2][1][row])
            assert least <= set(pages) <= most and len(most) > len(least)
            assert p == 1.0 or kind != "normal"
        else:
            assert lens[row] == wanted[matching[0]][2][row]


@settings(max_examples=25)
@given(
    streams=st.lists(st.sampled_from(["top-k", "threshold", "top-p", "everything"]), min_size=2, max_size=3),
    keep=st.sampled_from([(0, 0), (1, 2)]),
    tokens=LENGTHS,
    kind=KINDS,
    budget=st.sampled_from([0, 1, 5]),
    segment=st.sampled_from([None, 16]),
    final=st.sampled_from([None, 16]),
    seed=st.integers(0, 99),
)
def test_a_union_lists_the_pages_of_every_stream_once(
    streams: list[str], keep: tuple[int, int], tokens: list[int], kind: str, budget: int, segment: int | None,
    final: int | None, seed: int,
) -> None:  # fmt: skip
    capacity = max(1, budget, sum(keep))
    rules: dict[str, int] = {"keep_first": keep[0], "keep_last": keep[1]}
    limits = {
        "threshold": (Limit("threshold", 0.5), {"threshold": 0.5}),
        "top-p": (Limit("top-p", 0.4), {"top_p": 0.4}),
    }
    cases = [
        inputs.scores(tokens, heads=1, page_size=PAGE, kind=kind, seed=seed + n) for n in range(len(streams))
    ]
    table, rows, width = cases[0].table, *cases[0].scores.shape
    marks = torch.full((rows, width), 255, dtype=torch.uint8)
    unions: list[set[int]] = [set() for _ in range(rows)]
    for n, (stream, case) in enumerate(zip(streams, cases, strict=True)):
        case = dataclasses.replace(case, table=table)
        most = width if stream == "everything" else capacity
        k = torch.tensor([width if stream == "everything" else budget], dtype=torch.int32)
        stage = "list" if n == len(streams) - 1 else "add" if n else "begin"
        limit, plain = limits.get(stream, (None, {}))
        plan = plan_of(width, most, segment, final, 3)
        found, lens = run(
            case, k, 1, plan, width + 2, marks=Marks(marks, stage, most), limit=limit, **rules
        ) if stage == "list" else silent(case, k, plan, Marks(marks, stage, most), width + 2, limit, rules)  # fmt: skip
        logical = select_reference(
            case.scores, case.n_tokens, k, table, heads=1, page_size=PAGE, **rules, **plain
        )[0]
        unions = [union | set(pages) for union, pages in zip(unions, logical, strict=True)]
    for row, union in enumerate(unions):
        pages = sorted(union)
        assert found[row] == [int(table[row, p]) for p in pages]
        assert lens[row] == sum(min(PAGE, tokens[row] - p * PAGE) for p in pages)


def silent(
    case: inputs.Scores, k: torch.Tensor, plan: SelectPlan, marks: Marks, capacity: int, limit: Limit | None,
    rules: dict[str, int],
) -> tuple[list[list[int]], list[int]]:  # fmt: skip
    """A stage that only marks leaves the list alone."""
    rows = case.scores.shape[0]
    ids = torch.full((rows, capacity), UNTOUCHED, dtype=torch.int32)
    lens = torch.full((rows,), UNTOUCHED, dtype=torch.int32)
    select_pages(
        case.scores, case.n_tokens, k, case.table, heads=1, page_size=PAGE, page_ids=ids, kv_lens=lens,
        workspace=scratch(rows, plan), plan=plan, marks=marks, limit=limit, **rules,
    )  # fmt: skip
    assert (ids == UNTOUCHED).all() and (lens == UNTOUCHED).all()
    return [], []


def test_a_list_too_short_for_a_union_holds_its_first_pages() -> None:
    case = inputs.scores([160], heads=1, page_size=PAGE)
    marks = torch.ones(1, 20, dtype=torch.uint8)
    plan = select_plan(20, 4)
    found, lens = run(case, torch.tensor([4], dtype=torch.int32), 1, plan, 6, marks=Marks(marks, "list", 4))
    assert found == [case.table[0, :6].tolist()] and lens == [48]


def test_long_rows_need_their_workspace() -> None:
    from vortex_core.kernels import KernelInputError

    case = inputs.scores([399], heads=1, page_size=PAGE)
    ids, lens = torch.empty(1, 4, dtype=torch.int32), torch.empty(1, dtype=torch.int32)
    with pytest.raises(KernelInputError, match="select_workspace"):
        select_pages(
            case.scores, case.n_tokens, torch.tensor([4], dtype=torch.int32), case.table, heads=1,
            page_size=PAGE, page_ids=ids, kv_lens=lens, plan=select_plan(50, 4, 16, 16),
        )  # fmt: skip


@settings(max_examples=15)
@given(
    tokens=LENGTHS,
    limit=st.sampled_from([None, Limit("threshold", 0.5), Limit("top-p", 0.4)]),
    fraction=st.sampled_from([1.0, 0.1]),
    segment=st.sampled_from([None, 16]),
    seed=st.integers(0, 99),
)
def test_a_row_given_everything_lists_all_its_pages_without_a_score(
    tokens: list[int], limit: Limit | None, fraction: float, segment: int | None, seed: int
) -> None:
    """Rows beside it choose as ever, however long its list is."""
    tokens = [*tokens, 203]
    case = inputs.scores(tokens, heads=2, page_size=PAGE, seed=seed)
    width, most = case.scores.shape[1], 4
    plan = plan_of(width, most, segment, None)
    whole = [b % 2 == 0 for b in range(len(tokens))]
    k = torch.tensor([EVERYTHING if w else 3 for w in whole], dtype=torch.int32)
    untouched = case.scores.clone()
    for row in range(len(case.scores)):
        if whole[row // 2]:
            untouched[row] = float("nan")  # as its scores were never written
    found, lens = run(
        dataclasses.replace(case, scores=untouched),
        k,
        2,
        plan,
        width,
        most=most,
        limit=limit,
        fraction=fraction,
    )
    alone, alone_lens = run(
        case,
        torch.full_like(k, 3),
        2,
        plan_of(width, most, segment, None),
        most,
        limit=limit,
        fraction=fraction,
    )
    for row in range(len(case.scores)):
        b = row // 2
        if whole[b]:
            count = -(-tokens[b] // PAGE)
            assert found[row] == case.table[b, :count].tolist() and lens[row] == tokens[b]
        else:
            assert (found[row], lens[row]) == (alone[row], alone_lens[row])

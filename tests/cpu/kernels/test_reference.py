"""The oracle itself, against PyTorch's own attention and sorting, and the errors that launches raise."""

from __future__ import annotations

import math

import pytest
import torch

from vortex_core.kernels import (
    DecodeConfig,
    KernelInputError,
    Limit,
    paged_decode,
    paged_decode_workspace,
    select_pages,
    split_workspace_shapes,
    write_kv,
)
from vortex_core.kernels.pages import check_page_list
from vortex_core.kernels.reference import (
    paged_decode_reference,
    ranked_pages,
    select_reference,
    top_p_count,
)
from vortex_core.kernels.runtime import split_dim
from vortex_core.page_list import PageList, one_list_a_head, one_list_a_sequence


def test_dense_attention_equals_torch() -> None:
    torch.manual_seed(0)
    k, v = torch.randn(5, 8, 2, 16).double(), torch.randn(5, 8, 2, 16).double()
    q = torch.randn(1, 6, 16).double()
    table = torch.tensor([[3, 0, 4]], dtype=torch.int32)
    out, lse, mass = paged_decode_reference(
        q, k, v, one_list_a_sequence(table, torch.tensor([21], dtype=torch.int32), 8).shared_by(2)
    )
    keys = k[table[0].long()].reshape(24, 2, 16)[:21].transpose(0, 1)
    values = v[table[0].long()].reshape(24, 2, 16)[:21].transpose(0, 1)
    want = torch.nn.functional.scaled_dot_product_attention(
        q.view(2, 3, 16), keys, values
    )  # three query heads a kv head
    assert torch.allclose(out.view(2, 3, 16), want)
    scores = torch.einsum("hgd,htd->hgt", q.view(2, 3, 16), keys) / 4
    assert torch.allclose(lse.view(2, 3), torch.logsumexp(scores, -1))
    assert torch.allclose(mass.sum(1), torch.full((2,), 3.0).double())


def test_an_empty_row_attends_to_nothing() -> None:
    pool = torch.full((1, 8, 1, 16), float("nan"))
    pages = one_list_a_head(torch.zeros(1, 1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32), 1, 8)
    out, lse, mass = paged_decode_reference(torch.randn(1, 2, 16), pool, pool, pages)
    assert not out.any()
    assert not mass.any()
    assert (lse == -math.inf).all()


def test_order_of_selection() -> None:
    scores = torch.tensor([1.0, float("nan"), 3.0, 3.0, -math.inf, 0.0])
    assert ranked_pages(scores, 6, 0, 0) == [2, 3, 0, 5, 1, 4]  # NaN ranks as -inf
    assert ranked_pages(scores, 6, 1, 1) == [0, 5, 2, 3, 1, 4]


def test_selection_agrees_with_topk_where_scores_differ() -> None:
    scores = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    table = torch.arange(40, dtype=torch.int32).expand(3, 40)
    n = torch.full((3,), 320, dtype=torch.int32)
    logical, physical, lens = select_reference(
        scores, n, torch.tensor([7]), table, heads=1, page_size=8, keep_last=0
    )
    want = [sorted(row) for row in torch.topk(scores, 7).indices.tolist()]
    assert logical == physical == want
    assert lens == [56, 56, 56]


def test_top_p_counts() -> None:
    values = [math.log(w) for w in (0.5, 0.25, 0.125, 0.125)]
    assert [top_p_count(values, p) for p in (0.0, 0.4, 0.6, 0.8, 0.9)] == [0, 1, 2, 3, 4]
    assert top_p_count([], 0.5) == 0


@pytest.mark.parametrize(
    ("limit", "want"),
    [
        ({"threshold": 0.5}, [0, 2, 5]),
        ({"threshold": -math.inf}, [0, 1, 2, 3, 4, 5]),
        ({"threshold": math.inf}, [0, 5]),
        ({"top_p": 0.0}, [0, 5]),
        ({"top_p": 0.5}, [0, 2, 5]),
        ({"top_p": 0.99}, [0, 2, 3, 5]),
        ({"fraction": 0.5}, [0, 2, 3, 5]),
    ],
)
def test_limits_end_the_choice_and_spare_kept_pages(limit: dict[str, float], want: list[int]) -> None:
    scores = torch.tensor([[-9.0, float("nan"), 2.0, 0.0, -math.inf, -9.0]])
    table = torch.arange(6, dtype=torch.int32).view(1, 6)
    found = select_reference(
        scores, torch.tensor([48]), torch.tensor([6]), table, heads=1, page_size=8, keep_first=1, **limit
    )
    assert found[0] == [want]


def test_a_limit_is_checked() -> None:
    for kind, value in (("top-p", 1.5), ("top-p", -0.1), ("threshold", math.nan)):
        with pytest.raises(KernelInputError, match=kind):
            Limit(kind, value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dim", "blocks"),
    [
        (8, (16, 0)), (64, (64, 0)), (72, (128, 0)), (96, (64, 32)), (128, (128, 0)), (192, (128, 64)),
        (576, (512, 64)),
    ],
)  # fmt: skip
def test_head_dims_are_cut_into_two_blocks_or_padded(dim: int, blocks: tuple[int, int]) -> None:
    assert split_dim(dim) == blocks


def decode_arguments() -> dict[str, torch.Tensor]:
    return {
        "q": torch.zeros(1, 4, 16),
        "k_cache": torch.zeros(3, 8, 2, 16),
        "v_cache": torch.zeros(3, 8, 2, 16),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(1, 4, 24)}, "24 channels"),
        ({"k_cache": torch.zeros(3, 12, 2, 16), "v_cache": torch.zeros(3, 12, 2, 16)}, "no power of two"),
        ({"k_cache": torch.zeros(3, 8, 2, 16, dtype=torch.int8)}, "dtype"),
        ({"v_cache": torch.zeros(3, 8, 1, 16)}, "differ"),
        ({"q": torch.zeros(1, 5, 16)}, "do not divide"),
        ({"q": torch.zeros(2, 4, 16)}, "1 requests"),
        ({"k_cache": torch.zeros(3, 8, 16, 2).transpose(2, 3)}, "contiguous"),
    ],
)
def test_wrong_inputs_are_named(change: dict[str, torch.Tensor], message: str) -> None:
    arguments = decode_arguments() | change
    pages = one_list_a_head(torch.zeros(2, 3, dtype=torch.int32), torch.zeros(2, dtype=torch.int32), 2, 8)
    config = DecodeConfig(16, 4, 1, 1)
    workspace = paged_decode_workspace(1, 2, 2, 16, torch.device("cpu"), config)
    with pytest.raises(KernelInputError, match=message) as caught:
        paged_decode(**arguments, pages=pages, workspace=workspace, config=config)
    assert caught.value.code == "VK001"


def test_a_small_workspace_is_refused() -> None:
    config = DecodeConfig(16, 4, 1, 1)
    pages = one_list_a_head(torch.zeros(2, 3, dtype=torch.int32), torch.zeros(2, dtype=torch.int32), 2, 8)
    workspace = paged_decode_workspace(1, 1, 2, 16, torch.device("cpu"), config)
    with pytest.raises(KernelInputError, match="too small"):
        paged_decode(**decode_arguments(), pages=pages, workspace=workspace, config=config)


def test_workspace_reports_its_bytes() -> None:
    shapes = split_workspace_shapes(rows=16, workers=264, group=4, dim=128)
    assert shapes["part_out"] == ((528, 4, 128), torch.float32)
    nbytes = sum(math.prod(s) * torch.empty(0, dtype=t).element_size() for s, t in shapes.values())
    config = DecodeConfig(64, 4, 3, 88)  # 3 stand-in multiprocessors x 88 = 264 workers
    assert paged_decode_workspace(2, 8, 4, 128, torch.device("cpu"), config).nbytes == nbytes


def test_page_lists_check_their_shape() -> None:
    ids, lens = torch.zeros(4, 3, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
    shared = one_list_a_sequence(ids, lens, 8).shared_by(2)
    assert shared.page_ids.stride(1) == 0
    assert (shared.batch, shared.heads, shared.columns) == (4, 2, 3)
    assert one_list_a_head(ids, lens, 2, 8).batch == 2
    check_page_list(shared)
    with pytest.raises(KernelInputError, match="int32"):
        check_page_list(PageList(ids.long().unsqueeze(1), lens.unsqueeze(1), 8))
    with pytest.raises(KernelInputError, match="lengths"):
        check_page_list(PageList(ids.unsqueeze(1), lens, 8))


def test_a_page_list_counts_its_pages() -> None:
    lengths = torch.tensor([[0, 1, 8], [9, 16, 17]], dtype=torch.int32)
    pages = PageList(torch.zeros(2, 3, 4, dtype=torch.int32), lengths, 8)
    assert pages.counts.tolist() == [[0, 1, 1], [2, 2, 3]]
    assert pages.rows(torch.tensor([1])).lengths.tolist() == [[9, 16, 17]]


def test_selection_and_write_name_wrong_inputs() -> None:
    ids, lens = torch.zeros(2, 4, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    table, n = torch.zeros(1, 9, dtype=torch.int32), torch.ones(1, dtype=torch.int32)
    budget = torch.ones(1, dtype=torch.int32)
    with pytest.raises(KernelInputError, match="rows of scores"):
        select_pages(torch.zeros(3, 9), n, budget, table, heads=2, page_size=8, page_ids=ids, kv_lens=lens)
    with pytest.raises(KernelInputError, match="tolerance"):
        select_pages(
            torch.zeros(2, 9),
            n,
            budget,
            table,
            heads=2,
            page_size=8,
            page_ids=ids,
            kv_lens=lens,
            tolerance=2.0,
        )
    with pytest.raises(KernelInputError, match="slots"):
        write_kv(
            torch.zeros(2, 1, 16), None, torch.zeros(3, 8, 1, 16), None, torch.zeros(3, dtype=torch.int32)
        )

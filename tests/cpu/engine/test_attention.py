"""The attention functions against softmax written out."""

from __future__ import annotations

import pytest
import torch

from vortex_core.compiler.interface import LayerKV
from vortex_core.page_list import PageList
from vortex_core.runtime.torch_attention import (
    attend_part,
    causal_prefill,
    dense_decode,
    merge_parts,
    sparse_decode,
)

KV_HEADS, DIM, SCALE = 2, 16, 0.3


def _pool(slots: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.randn(KV_HEADS, slots, DIM), torch.randn(KV_HEADS, slots, DIM)


def _reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """`q`: `[row, dim]`, `k, v`: `[token, dim]`, in float64."""
    return (torch.softmax(q.double() @ k.double().T * SCALE, -1) @ v.double()).float()


@pytest.mark.parametrize("group", [1, 3, 5])
@pytest.mark.parametrize("runs", [[(0, 40)], [(64, 30), (0, 1)], [(16, 16), (100, 28), (3, 5)]])
def test_dense_decode_over_runs(group: int, runs: list[tuple[int, int]]) -> None:
    k, v = _pool(128)
    q = torch.randn(KV_HEADS, group, DIM)
    slots = torch.cat([torch.arange(start, start + n) for start, n in runs])
    out = dense_decode(q, k, v, runs, SCALE)
    for h in range(KV_HEADS):
        torch.testing.assert_close(out[h], _reference(q[h], k[h, slots], v[h, slots]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("past", [[], [(0, 32)], [(40, 7), (0, 20)]])
def test_prefill_chunk_is_causal_to_itself_and_sees_all_its_past(past: list[tuple[int, int]]) -> None:
    group, chunk = 3, 9
    k, v = _pool(64)
    k_new, v_new = _pool(chunk, seed=1)
    q = torch.randn(KV_HEADS * group, chunk, DIM)
    out = causal_prefill(q, k_new, v_new, k, v, past, SCALE)
    slots = torch.cat([torch.arange(start, start + n) for start, n in past]) if past else torch.arange(0)
    for head in range(KV_HEADS * group):
        h = head // group
        for i in range(chunk):
            keys = torch.cat([k[h, slots], k_new[h, : i + 1]])
            values = torch.cat([v[h, slots], v_new[h, : i + 1]])
            expected = _reference(q[head, i : i + 1], keys, values)
            torch.testing.assert_close(out[head, i : i + 1], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("per_query_head", [False, True])
@pytest.mark.parametrize("want_mass", [False, True])
def test_sparse_decode_reads_the_selected_pages_only(per_query_head: bool, want_mass: bool) -> None:
    group, page, pages = 3, 8, 12
    k, v = _pool(pages * page)
    kv = LayerKV(k.unflatten(1, (pages, page)), v.unflatten(1, (pages, page)))
    batch, heads = 3, KV_HEADS * (group if per_query_head else 1)
    counts = torch.randint(1, 6, (batch, heads))
    last = torch.tensor([3, 8, 1])  # tokens in each sequence's newest page
    ids = torch.stack([torch.stack([torch.randperm(pages)[:5] for _ in range(heads)]) for _ in range(batch)])
    selected = PageList(ids.int(), ((counts - 1) * page + last[:, None]).int(), page)
    q = torch.randn(batch, KV_HEADS * group, DIM)
    out, mass = sparse_decode(q, kv, selected, SCALE, want_mass=want_mass)
    assert (mass is not None) == want_mass
    for b in range(batch):
        for head in range(KV_HEADS * group):
            row, h = (head if per_query_head else head // group), head // group
            slots = torch.cat([torch.arange(p * page, (p + 1) * page) for p in ids[b, row, : counts[b, row]]])
            slots = slots[: selected.lengths[b, row]]
            expected = _reference(q[b, head : head + 1], k[h, slots], v[h, slots])
            torch.testing.assert_close(out[b, head : head + 1], expected, atol=1e-5, rtol=1e-5)
            if mass is not None:
                weights = torch.softmax(k[h, slots] @ q[b, head] * SCALE, -1)
                by_page = [part.sum() for part in weights.split(page)]
                torch.testing.assert_close(
                    mass[b, head, : counts[b, row]], torch.stack(by_page), atol=1e-5, rtol=1e-5
                )
                assert mass[b, head, counts[b, row] :].eq(0).all()


def test_a_page_may_belong_to_two_sequences() -> None:
    k, v = _pool(32)
    kv = LayerKV(k.unflatten(1, (4, 8)), v.unflatten(1, (4, 8)))
    ids = torch.tensor([[[2, 1]] * KV_HEADS] * 2)
    full = torch.full((2, KV_HEADS), 2)
    q = torch.randn(1, 2, DIM).expand(2, -1, -1)
    out, _ = sparse_decode(q, kv, PageList(ids.int(), full.int() * 8, 8), SCALE)
    torch.testing.assert_close(out[0], out[1])


def test_merging_is_exact_where_scores_are_extreme() -> None:
    q = torch.ones(1, 1, 1, DIM) * 30
    k, v = torch.randn(1, 1, 20, DIM), torch.randn(1, 1, 20, DIM)
    parts = [attend_part(q, k[:, :, a:b], v[:, :, a:b], 1.0) for a, b in ((0, 3), (3, 20))]
    whole = torch.softmax((q.double() @ k.double().transpose(-1, -2)), -1) @ v.double()
    torch.testing.assert_close(merge_parts(parts), whole.float(), atol=1e-5, rtol=1e-5)

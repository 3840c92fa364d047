"""Decode attention equals its float64 definition, whatever the lengths, layout, split or page numbering."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.interp.kernels import inputs
from vortex_core.kernels import (
    DecodeConfig,
    mla_decode,
    mla_decode_workspace,
    paged_decode,
    paged_decode_workspace,
)
from vortex_core.kernels.reference import mla_decode_reference, paged_decode_reference
from vortex_core.page_list import PageList, one_list_a_head

CPU = torch.device("cpu")
# fp32 products and sums of at most a few hundred terms.
UNIT = 3e-6


def run(case: inputs.Attention, config: DecodeConfig, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
    batch, q_heads, _ = case.q.shape
    heads, dim_v = case.pages.heads, case.v.shape[3]
    workspace = paged_decode_workspace(batch, heads, q_heads // heads, dim_v, CPU, config)
    lse = torch.full((batch, q_heads), float("nan"))
    out = torch.full((batch, q_heads, dim_v), float("nan"))
    paged_decode(
        case.q, case.k, case.v, case.pages, workspace=workspace, config=config, out=out, lse=lse, **options
    )
    assert not workspace.finished.any(), "a launch leaves its counters at zero"
    return out, lse


@st.composite
def cases(draw: st.DrawFn) -> tuple[inputs.Attention, DecodeConfig]:
    page = draw(st.sampled_from([8, 16, 32]))
    heads = draw(st.sampled_from([1, 2]))
    edges = st.sampled_from([0, 1, page - 1, page, page + 1, 2 * page])
    length = st.one_of(edges, st.integers(0, 90))
    lens = draw(st.lists(length, min_size=heads, max_size=2 * heads).filter(lambda x: len(x) % heads == 0))
    case = inputs.attention(
        lens,
        heads=heads,
        group=draw(st.sampled_from([1, 3, 5, 7, 16])),
        dim=draw(st.sampled_from([16, 24, 48])),
        page_size=page,
        layout=draw(st.sampled_from(inputs.LAYOUTS)),
        seed=draw(st.integers(0, 99)),
    )
    config = DecodeConfig(
        block_n=draw(st.sampled_from([16, 32])),
        num_warps=4,
        num_stages=1,
        workers_per_sm=draw(st.sampled_from([1, 3])),
        min_tiles=draw(st.sampled_from([1, 2])),
        fused_merge=draw(st.booleans()),
        even=draw(st.booleans()),
        late_sums=draw(st.booleans()),
    )
    return case, config


@settings(max_examples=25)
@given(cases())
def test_equals_the_definition(made: tuple[inputs.Attention, DecodeConfig]) -> None:
    case, config = made
    out, lse = run(case, config)
    want, want_lse, _ = paged_decode_reference(case.q, case.k, case.v, case.pages)
    assert inputs.close(out, want, UNIT)
    assert inputs.close(lse, want_lse, UNIT)


@pytest.mark.parametrize(("dim", "dim_v"), [(96, 96), (192, 128), (72, 40)])
def test_dims_of_two_blocks_and_masked_dims(dim: int, dim_v: int) -> None:
    case = inputs.attention([37, 5], heads=2, group=3, dim=dim, dim_v=dim_v, page_size=8)
    for even in (False, True):
        out, _ = run(case, DecodeConfig(16, 4, 1, 1, even=even))
        assert inputs.close(out, paged_decode_reference(case.q, case.k, case.v, case.pages)[0], UNIT)


@settings(max_examples=3)
@given(st.integers(0, 1000))
def test_renumbering_physical_pages_changes_nothing(seed: int) -> None:
    case = inputs.attention([33, 70, 0, 9], heads=2, group=3, dim=16, page_size=8, seed=seed)
    config = DecodeConfig(16, 4, 1, 2)
    order = torch.randperm(case.k.shape[0], generator=torch.Generator().manual_seed(seed))
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order))
    moved = inputs.Attention(
        case.q,
        case.k[order],
        case.v[order],
        PageList(
            inverse[case.pages.page_ids.long()].to(torch.int32), case.pages.lengths, case.pages.page_size
        ),
    )
    for a, b in zip(run(case, config), run(moved, config), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("lens", "short"), [([90, 33], 96), ([90, 33], 95), ([90], 95)])
def test_split_count_is_immaterial(lens: list[int], short: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Lists with room for 96 tokens are cut alike where they count as short, and where they are one request's.
    monkeypatch.setattr("vortex_core.kernels.decode.split_launch.EVEN_TOKENS", short)
    case = inputs.attention(lens, heads=1, group=5, dim=16, page_size=8)
    whole, _ = run(case, DecodeConfig(16, 4, 1, 1, min_tiles=64))
    for workers in (1, 2, 4):
        for fused in (True, False):
            for even in (False, True):
                for least in (1, 2):
                    config = DecodeConfig(16, 4, 1, workers, least, fused, even=even, late_sums=fused)
                    assert inputs.close(run(case, config)[0], whole, UNIT)


@pytest.mark.parametrize("last", [544, 20])
def test_rows_of_one_length_are_cut_alike(last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 rows of 34 tiles for 17 workers: 32 tiles each would cut every row, 34 cut none."""
    monkeypatch.setattr("vortex_core.kernels.runtime.INTERPRETER_MULTIPROCESSORS", 17)
    case = inputs.attention([544] * 15 + [last], heads=1, group=2, dim=16, page_size=16)
    config = DecodeConfig(16, 4, 1, 1, fused_merge=False)
    workspace = paged_decode_workspace(16, 1, 2, 16, CPU, config)
    out = paged_decode(case.q, case.k, case.v, case.pages, workspace=workspace, config=config)
    assert inputs.close(out, paged_decode_reference(case.q, case.k, case.v, case.pages)[0], UNIT)
    pieces = int((workspace.part_lse != 0).any(1).sum())
    assert pieces == 0 if last == 544 else pieces > 0


@pytest.mark.parametrize("layout", inputs.LAYOUTS)
def test_layouts_agree_bit_for_bit(layout: str) -> None:
    config = DecodeConfig(16, 4, 1, 1)
    plain = run(inputs.attention([40, 17], heads=2, group=2, dim=16, page_size=8), config)
    other = run(inputs.attention([40, 17], heads=2, group=2, dim=16, page_size=8, layout=layout), config)
    assert torch.equal(plain[0], other[0])


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8_cache_with_scales(dtype: torch.dtype) -> None:
    case = inputs.attention([40, 9], heads=1, group=4, dim=16, page_size=16, dtype=dtype)
    out, lse = run(case, DecodeConfig(16, 4, 1, 1), k_scale=0.5, v_scale=2.0)
    want, want_lse, _ = paged_decode_reference(case.q, case.k, case.v, case.pages, k_scale=0.5, v_scale=2.0)
    assert inputs.close(out, want, UNIT)
    assert inputs.close(lse, want_lse, UNIT)


def test_lists_finer_than_a_kv_head() -> None:
    case = inputs.attention([20, 33, 8, 1], heads=4, group=1, dim=16, page_size=8, kv_repeat=2)
    out, _ = run(case, DecodeConfig(16, 4, 1, 1), kv_repeat=2)
    want, _, _ = paged_decode_reference(case.q, case.k, case.v, case.pages, kv_repeat=2)
    assert inputs.close(out, want, UNIT)


@pytest.mark.parametrize(("page_size", "block_n", "even"), [(8, 32, False), (16, 16, True), (32, 16, False)])
def test_page_mass_is_the_attention_each_page_received(page_size: int, block_n: int, even: bool) -> None:
    case = inputs.attention([33, 0, 64, 5], heads=2, group=3, dim=16, page_size=page_size)
    rows, max_pages = 4, case.pages.columns
    mass = torch.full((rows, max_pages), float("nan"))
    scratch = torch.full((rows, 3, max_pages), float("nan"))
    run(case, DecodeConfig(block_n, 4, 1, 2, even=even, late_sums=even), page_mass=mass, page_lse=scratch)
    want = paged_decode_reference(case.q, case.k, case.v, case.pages)[2]
    assert inputs.close(mass, want, UNIT)
    assert torch.allclose(mass.sum(1), torch.tensor([3.0, 0.0, 3.0, 3.0]), atol=1e-5)


@settings(max_examples=6)
@given(
    st.sampled_from([1, 5, 16, 20, 64]),
    st.lists(st.sampled_from([0, 1, 15, 16, 17, 40]), min_size=1, max_size=2),
    st.sampled_from([8, 32]),
)
@example(40, [17, 3], 8)
def test_latent_attention_equals_the_definition(heads: int, lens: list[int], page_size: int) -> None:
    latent_dim, rope = 32, 16
    case = inputs.attention(lens, heads=1, group=heads, dim=latent_dim + rope, page_size=page_size)
    cache, ids, n = case.k[:, :, 0], case.pages.page_ids[:, 0], case.pages.lengths[:, 0]
    config = DecodeConfig(16, 4, 1, 1, fused_merge=False)
    workspace = mla_decode_workspace(len(lens), heads, CPU, config, latent_dim)
    lse = torch.empty(len(lens), heads)
    out = mla_decode(
        case.q,
        cache,
        ids,
        n,
        workspace=workspace,
        config=config,
        sm_scale=0.2,
        latent_dim=latent_dim,
        lse=lse,
    )
    want, want_lse = mla_decode_reference(case.q, cache, ids, n, sm_scale=0.2, latent_dim=latent_dim)
    assert inputs.close(out, want, UNIT)
    assert inputs.close(lse, want_lse, UNIT)


def test_many_rows_are_planned_in_several_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vortex_core.kernels.decode.split.PLAN_BLOCKS", (2,))
    case = inputs.attention([0, 40, 3, 0, 17, 1, 9], heads=1, group=1, dim=16, page_size=8)
    for fused in (True, False):
        out, _ = run(case, DecodeConfig(16, 4, 1, 2, 1, fused))
        assert inputs.close(out, paged_decode_reference(case.q, case.k, case.v, case.pages)[0], UNIT)


def test_empty_batch_is_no_launch() -> None:
    empty = one_list_a_head(torch.empty(0, 1, dtype=torch.int32), torch.empty(0, dtype=torch.int32), 1, 8)
    case = inputs.Attention(torch.empty(0, 2, 16), torch.zeros(1, 8, 1, 16), torch.zeros(1, 8, 1, 16), empty)
    out, _ = run(case, DecodeConfig(16, 4, 1, 1))
    assert out.shape == (0, 2, 16)

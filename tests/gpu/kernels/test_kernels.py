"""The kernels on a GPU: real shapes and dtypes, ragged batches, and captured graphs that outlive their lengths."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.interp.kernels import inputs
from vortex_core.kernels import (
    KernelInputError,
    Limit,
    Marks,
    decode_config,
    mla_config,
    mla_decode,
    mla_decode_workspace,
    paged_decode,
    paged_decode_workspace,
    select_pages,
    select_workspace,
    write_kv,
    write_latent,
)
from vortex_core.kernels.reference import (
    mla_decode_reference,
    paged_decode_reference,
    select_reference,
    write_kv_reference,
)

# bf16 rounds the weights once and the output once: two units of 2^-8. fp16 weights (fp8 caches) round finer,
# the bf16 output as before.
UNIT_BF16 = 2 * 2.0**-8
RAGGED = [0, 1, 15, 16, 17, 63, 64, 65, 1000, 2048, 4097, 333]


def decode(
    case: inputs.Attention,
    rows: int | None = None,
    even: bool = False,
    alone: bool = False,
    **options: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, q_heads, dim = case.q.shape
    heads, page_size = case.pages.heads, case.k.shape[1]
    config = decode_config(
        dim, q_heads // heads, case.k.dtype, page_size, rows or batch * heads, even=even, alone=alone
    )
    workspace = paged_decode_workspace(batch, heads, q_heads // heads, case.v.shape[3], case.q.device, config)
    out = torch.full((batch, q_heads, case.v.shape[3]), float("nan"), dtype=case.q.dtype, device="cuda")
    lse = torch.full((batch, q_heads), float("nan"), device="cuda")
    paged_decode(
        case.q, case.k, case.v, case.pages, workspace=workspace, config=config, out=out, lse=lse, **options
    )
    assert not workspace.finished.any()
    return out, lse


@pytest.mark.parametrize("group", [1, 3, 4, 5, 7, 8, 16])
@pytest.mark.parametrize("dim", [64, 96, 128, 192, 256])
def test_decode_ragged(group: int, dim: int) -> None:
    case = inputs.attention(
        RAGGED, heads=2, group=group, dim=dim, page_size=16, dtype=torch.bfloat16, q_dtype=torch.bfloat16, device="cuda"
    )  # fmt: skip
    out, lse = decode(case)
    want, want_lse, _ = paged_decode_reference(case.q, case.k, case.v, case.pages)
    assert inputs.close(out, want, UNIT_BF16)
    assert inputs.close(lse, want_lse, 1e-5)


@pytest.mark.parametrize("page_size", [8, 16, 32, 64, 128])
@pytest.mark.parametrize("layout", inputs.LAYOUTS)
@pytest.mark.parametrize("fused", [False, True])
def test_decode_pages_and_layouts(page_size: int, layout: str, fused: bool) -> None:
    case = inputs.attention(
        RAGGED, heads=4, group=4, dim=128, page_size=page_size, dtype=torch.bfloat16, q_dtype=torch.bfloat16,
        layout=layout, device="cuda",
    )  # fmt: skip
    out, lse = decode(case, rows=64 if fused else 1)
    want, want_lse, _ = paged_decode_reference(case.q, case.k, case.v, case.pages)
    assert inputs.close(out, want, UNIT_BF16)
    assert inputs.close(lse, want_lse, 1e-5)


@pytest.mark.parametrize("rows", [8, 64, 256])
@pytest.mark.parametrize(
    ("dim", "group", "page_size"), [(128, 4, 16), (128, 7, 64), (96, 5, 8), (64, 3, 16), (256, 2, 32)]
)
def test_lists_cut_evenly(rows: int, dim: int, group: int, page_size: int) -> None:
    lens = [min(n, 2048) for n in RAGGED]
    case = inputs.attention(
        lens, heads=2, group=group, dim=dim, page_size=page_size, dtype=torch.bfloat16, q_dtype=torch.bfloat16,
        device="cuda",
    )  # fmt: skip
    out, lse = decode(case, rows=rows, even=True)
    want, want_lse, _ = paged_decode_reference(case.q, case.k, case.v, case.pages)
    assert inputs.close(out, want, UNIT_BF16)
    assert inputs.close(lse, want_lse, 1e-5)


@pytest.mark.parametrize("tokens", [0, 1, 4097, 50000])
@pytest.mark.parametrize("group", [2, 16])
def test_one_request_of_any_length(group: int, tokens: int) -> None:
    case = inputs.attention(
        [tokens] * 4, heads=4, group=group, dim=128, page_size=16, dtype=torch.bfloat16, q_dtype=torch.bfloat16,
        device="cuda",
    )  # fmt: skip
    out, lse = decode(case, alone=True)
    want, want_lse, _ = paged_decode_reference(case.q, case.k, case.v, case.pages)
    assert inputs.close(out, want, UNIT_BF16)
    assert inputs.close(lse, want_lse, 1e-5)


@pytest.mark.parametrize("rows", [8, 64, 256])
def test_a_chain_that_starts_early_computes_the_same(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Selection, then attention over what it chose, six times into the same lists: a read too early would show."""
    pages, page, chosen = 512, 16, 128
    draw = torch.Generator(device="cuda").manual_seed(rows)
    scores = [torch.randn(rows, pages, device="cuda", generator=draw) for _ in range(6)]
    q = torch.randn(rows, 4, 128, device="cuda", dtype=torch.bfloat16, generator=draw)
    k, v = (
        torch.randn(pages, page, 1, 128, device="cuda", dtype=torch.bfloat16, generator=draw) for _ in "kv"
    )
    table = torch.arange(pages, device="cuda", dtype=torch.int32).expand(rows, pages).contiguous()
    lengths = torch.full((rows,), pages * page, device="cuda", dtype=torch.int32)
    budget = torch.full((1,), chosen, device="cuda", dtype=torch.int32)
    ids = torch.zeros(rows, chosen, device="cuda", dtype=torch.int32)
    lens = torch.zeros(rows, device="cuda", dtype=torch.int32)
    config = decode_config(128, 4, torch.bfloat16, page, rows, even=True)
    space = paged_decode_workspace(rows, 1, 4, 128, q.device, config)

    def chain(outs: list[torch.Tensor]) -> None:
        for x, out in zip(scores, outs, strict=True):
            chosen_pages = select_pages(
                x, lengths, budget, table, heads=1, page_size=page, page_ids=ids, kv_lens=lens
            )
            paged_decode(q, k, v, chosen_pages, workspace=space, config=config, out=out)

    want, got = ([torch.empty_like(q) for _ in scores] for _ in range(2))
    monkeypatch.setenv("VORTEX_PDL", "0")
    chain(want)
    monkeypatch.delenv("VORTEX_PDL")
    chain(got)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chain(got)
    for _ in range(20):
        for out in got:
            out.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.float32])
def test_decode_cache_dtypes(dtype: torch.dtype) -> None:
    q_dtype = torch.float32 if dtype == torch.float32 else torch.bfloat16
    case = inputs.attention(
        RAGGED, heads=2, group=4, dim=128, page_size=16, dtype=dtype, q_dtype=q_dtype, device="cuda"
    )
    out, _ = decode(case, k_scale=0.5, v_scale=2.0)
    want, _, _ = paged_decode_reference(case.q, case.k, case.v, case.pages, k_scale=0.5, v_scale=2.0)
    assert inputs.close(out, want, 1e-5 if dtype == torch.float32 else UNIT_BF16)


def test_decode_page_mass() -> None:
    case = inputs.attention(
        RAGGED, heads=2, group=7, dim=128, page_size=16, dtype=torch.bfloat16, q_dtype=torch.bfloat16, device="cuda"
    )  # fmt: skip
    rows, max_pages = len(RAGGED), case.pages.columns
    mass = torch.full((rows, max_pages), float("nan"), device="cuda")
    scratch = torch.full((rows, 7, max_pages), float("nan"), device="cuda")
    decode(case, page_mass=mass, page_lse=scratch)
    assert inputs.close(mass, paged_decode_reference(case.q, case.k, case.v, case.pages)[2], 1e-4)


@pytest.mark.parametrize("rows", [1200, 8192])
def test_decode_many_rows(rows: int) -> None:
    lens = [(37 * i) % 50 for i in range(rows)]
    case = inputs.attention(
        lens, heads=8, group=2, dim=64, page_size=16, dtype=torch.bfloat16, q_dtype=torch.bfloat16, device="cuda"
    )  # fmt: skip
    out, _ = decode(case)
    some = case.pages.rows(slice(-40, None))
    want, _, _ = paged_decode_reference(case.q[-40:], case.k, case.v, some)
    assert inputs.close(out[-40:], want, UNIT_BF16)


@pytest.mark.parametrize("heads", [16, 20, 32, 64, 128])
@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("lens", [RAGGED, RAGGED[:10]])  # the short lists are cut into even pieces on Hopper
def test_latent_decode(heads: int, page_size: int, dtype: torch.dtype, lens: list[int]) -> None:
    case = inputs.attention(
        lens, heads=1, group=heads, dim=576, page_size=page_size, dtype=dtype, q_dtype=torch.bfloat16, device="cuda"
    )  # fmt: skip
    cache, ids, n = case.k[:, :, 0], case.pages.page_ids[:, 0], case.pages.lengths[:, 0]
    config = mla_config(heads, dtype, page_size)
    workspace = mla_decode_workspace(len(lens), heads, case.q.device, config)
    lse = torch.empty(len(lens), heads, device="cuda")
    out = mla_decode(
        case.q, cache, ids, n, workspace=workspace, config=config, sm_scale=192**-0.5, kv_scale=0.5, lse=lse
    )
    want, want_lse = mla_decode_reference(case.q, cache, ids, n, sm_scale=192**-0.5, kv_scale=0.5)
    assert inputs.close(out, want, UNIT_BF16)
    assert inputs.close(lse, want_lse, 1e-5)


def test_a_captured_graph_replays_with_other_lengths() -> None:
    """Lengths, pages and budgets change under a graph that was captured once, and counters survive."""
    case = inputs.attention(
        RAGGED, heads=2, group=4, dim=128, page_size=16, dtype=torch.bfloat16, q_dtype=torch.bfloat16, device="cuda"
    )  # fmt: skip
    batch = case.q.shape[0]
    for rows in (1, 64):  # both ways of merging
        config = decode_config(128, 4, torch.bfloat16, 16, rows)
        workspace = paged_decode_workspace(batch, 2, 4, 128, case.q.device, config)
        out = torch.empty_like(case.q)
        paged_decode(case.q, case.k, case.v, case.pages, workspace=workspace, config=config, out=out)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            paged_decode(case.q, case.k, case.v, case.pages, workspace=workspace, config=config, out=out)
        lens = case.pages.lengths.clone()
        for step in range(4):
            case.pages.lengths.copy_((lens - 7 * step).clamp(min=0))
            out.fill_(float("nan"))
            graph.replay()
            want, _, _ = paged_decode_reference(case.q, case.k, case.v, case.pages)
            assert inputs.close(out, want, UNIT_BF16)
        case.pages.lengths.copy_(lens)
        assert not workspace.finished.any()


@pytest.mark.parametrize("kind", ["normal", "ties", "special"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("pages", "budget"), [(100, 7), (2048, 128), (4096, 300), (9000, 128), (70000, 600)])
def test_selection(kind: str, dtype: torch.dtype, pages: int, budget: int) -> None:
    case = inputs.scores(
        [pages * 16 - 3, 0, 17 * 16, pages * 8 + 1], heads=2, page_size=16, kind=kind, dtype=dtype, device="cuda"
    )  # fmt: skip
    rows = 8
    ids = torch.full((rows, budget), -7, dtype=torch.int32, device="cuda")
    lens = torch.full((rows,), -7, dtype=torch.int32, device="cuda")
    workspace = select_workspace(rows, case.scores.shape[1], budget, ids.device)
    k = torch.tensor([budget], dtype=torch.int32, device="cuda")
    for _ in range(2):  # the second launch finds the counters as the first left them
        select_pages(
            case.scores, case.n_tokens, k, case.table, heads=2, page_size=16, page_ids=ids, kv_lens=lens,
            keep_first=1, keep_last=2, workspace=workspace,
        )  # fmt: skip
    _, want, want_lens = select_reference(
        case.scores.cpu(), case.n_tokens.cpu(), k.cpu(), case.table.cpu(), heads=2, page_size=16, keep_first=1,
        keep_last=2,
    )  # fmt: skip
    assert lens.tolist() == want_lens
    for row in range(rows):
        assert ids[row, : len(want[row])].tolist() == want[row]
        assert (ids[row, len(want[row]) :] == -7).all()


@pytest.mark.parametrize("tolerance", [0.1, 0.5])
def test_stochastic_selection_keeps_its_recall(tolerance: float) -> None:
    case = inputs.scores([2048 * 16] * 8, heads=2, page_size=16, device="cuda")
    ids = torch.empty(16, 128, dtype=torch.int32, device="cuda")
    lens = torch.empty(16, dtype=torch.int32, device="cuda")
    k = torch.tensor([128], dtype=torch.int32, device="cuda")
    select_pages(
        case.scores, case.n_tokens, k, case.table, heads=2, page_size=16, page_ids=ids, kv_lens=lens,
        tolerance=tolerance, seed=5,
    )  # fmt: skip
    _, want, _ = select_reference(
        case.scores.cpu(), case.n_tokens.cpu(), k.cpu(), case.table.cpu(), heads=2, page_size=16
    )
    for row in range(16):
        got = set(ids[row].tolist())
        assert len(got) == 128
        assert len(got & set(want[row])) >= math.ceil((1 - tolerance) * 128)


LIMITS = [
    Limit("threshold", 1.5), Limit("threshold", -math.inf), Limit("threshold", math.inf), Limit("top-p", 0.0),
    Limit("top-p", 0.3), Limit("top-p", 0.95), Limit("top-p", 1.0),
]  # fmt: skip


@pytest.mark.parametrize("pages", [2048, 8192, 40000])
@pytest.mark.parametrize("kind", ["normal", "ties", "equal", "special"])
def test_limits_end_the_choice(kind: str, pages: int) -> None:
    case = inputs.scores(
        [pages * 16 - 5, 0, 16, 900, 15], heads=2, page_size=16, kind=kind, device="cuda"
    )  # fmt: skip
    case.scores.mul_(3.0)  # so that a small share of the pages holds most of the weight
    host = inputs.Scores(case.scores.cpu(), case.n_tokens.cpu(), case.table.cpu())
    for budget in (1, 100, 6000):
        k = torch.tensor([budget], dtype=torch.int32, device="cuda")
        ids = torch.full((10, max(3, budget)), -7, dtype=torch.int32, device="cuda")
        lens = torch.full((10,), -7, dtype=torch.int32, device="cuda")
        workspace = select_workspace(10, pages, ids.shape[1], ids.device)
        rules: dict[str, Any] = {
            "heads": 2, "page_size": 16, "keep_first": 1, "keep_last": 2, "fraction": 0.55
        }  # fmt: skip
        for limit in LIMITS:
            lists = []
            for _ in range(2):
                select_pages(
                    case.scores, case.n_tokens, k, case.table, page_ids=ids, kv_lens=lens, limit=limit,
                    workspace=workspace, **rules,
                )  # fmt: skip
                counts = [-(-n // 16) for n in lens.tolist()]
                lists.append([ids[row, :count].tolist() for row, count in enumerate(counts)])
            assert lists[0] == lists[1], "sums have one order"
            name = "top_p" if limit.kind == "top-p" else "threshold"
            spread = (-5e-6, 5e-6) if name == "top_p" else (0.0,)
            wanted = [
                select_reference(
                    host.scores, host.n_tokens, k.cpu(), host.table, **rules,
                    **{name: limit.value * (1 + e) if e else limit.value},
                )[1]
                for e in spread
            ]  # fmt: skip
            for row, got in enumerate(lists[0]):
                least, most = wanted[0][row], wanted[-1][row]
                assert set(least) <= set(got) <= set(most), (
                    limit,
                    budget,
                    row,
                    len(least),
                    len(got),
                    len(most),
                )


@pytest.mark.parametrize("pages", [2048, 8192, 40000])
def test_a_union_lists_every_page_once(pages: int) -> None:
    lengths = [pages * 16 - 5, 0, 16, 900, 15]
    cases = [inputs.scores(lengths, heads=2, page_size=16, seed=n, device="cuda") for n in range(3)]
    table, host = cases[0].table, cases[0].table.cpu()
    k = torch.tensor([100], dtype=torch.int32, device="cuda")
    ids = torch.full((10, 300), -7, dtype=torch.int32, device="cuda")
    lens = torch.full((10,), -7, dtype=torch.int32, device="cuda")
    marks = torch.full((10, pages), 255, dtype=torch.uint8, device="cuda")
    workspace = select_workspace(10, pages, 100, ids.device)
    rules: dict[str, Any] = {"heads": 2, "page_size": 16, "keep_first": 1, "keep_last": 2}
    unions: list[set[int]] = [set() for _ in range(10)]
    stages = ("begin", "add", "list")
    limits: tuple[dict[str, float], ...] = ({}, {"threshold": 2.0}, {"threshold": 1.0})
    for stage, case, plain in zip(stages, cases, limits, strict=True):
        select_pages(
            case.scores, case.n_tokens, k, table, page_ids=ids, kv_lens=lens, workspace=workspace,
            limit=Limit("threshold", plain["threshold"]) if plain else None, marks=Marks(marks, stage, 100), **rules,
        )  # fmt: skip
        logical = select_reference(case.scores.cpu(), case.n_tokens.cpu(), k.cpu(), host, **rules, **plain)[0]
        unions = [union | set(found) for union, found in zip(unions, logical, strict=True)]
    for row, union in enumerate(unions):
        found = sorted(union)
        assert ids[row, : len(found)].tolist() == [int(host[row // 2, p]) for p in found]
        assert (ids[row, len(found) :] == -7).all()
        assert int(lens[row]) == sum(min(16, lengths[row // 2] - p * 16) for p in found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("tokens", [5, 3000])
def test_write_rounds_and_saturates_as_torch(dtype: torch.dtype, tokens: int) -> None:
    torch.manual_seed(0)
    k = torch.randn(tokens, 4, 128, device="cuda", dtype=torch.bfloat16) * 300
    v = torch.randn(tokens, 4, 96, device="cuda", dtype=torch.bfloat16)
    pages = tokens // 16 + 3
    k_cache = torch.randn(pages, 16, 4, 128, device="cuda").to(dtype)
    v_cache = torch.randn(pages, 4, 16, 96, device="cuda").to(dtype).transpose(1, 2)
    slots = torch.randperm(pages * 16, device="cuda")[:tokens].to(torch.int32)
    slots[1] = -1
    want_k = write_kv_reference(k_cache.cpu(), k.cpu(), slots.cpu(), 0.5)
    want_v = write_kv_reference(v_cache.cpu(), v.cpu(), slots.cpu(), 2.0)
    write_kv(k, v, k_cache, v_cache, slots, k_scale=0.5, v_scale=2.0)
    assert torch.equal(k_cache.cpu().float(), want_k.float())
    assert torch.equal(v_cache.cpu().float(), want_v.float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize(("tokens", "heads"), [(1, 16), (33, 20), (64, 5)])
def test_latent_rows_and_queries_lie_side_by_side(tokens: int, heads: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    row = torch.randn(tokens, 1, 640, device="cuda", dtype=torch.bfloat16)
    latent, rope = row[:, 0, :512], row[:, 0, 512:576]
    q_latent = torch.randn(heads, tokens, 512, device="cuda", dtype=torch.bfloat16).transpose(0, 1)
    q_rope = torch.randn(tokens, heads, 256, device="cuda", dtype=torch.bfloat16)[..., 192:]
    cache = torch.randn(9, 64, 576, device="cuda").to(dtype)
    slots = torch.randperm(9 * 64, device="cuda")[:tokens]
    slots[-1] = -1
    want = cache.clone()
    kept = slots[:-1]
    want.view(torch.uint8 if cache.element_size() == 1 else dtype).view(-1, 576)[kept] = (
        row[:-1, 0, :576].to(dtype).view(torch.uint8 if cache.element_size() == 1 else dtype)
    )
    q = write_latent(latent, rope, cache, slots, q_latent, q_rope)
    assert torch.equal(q, torch.cat([q_latent, q_rope], -1))
    assert torch.equal(cache.float(), want.float())


def test_wrong_devices_do_not_launch() -> None:
    case = inputs.attention([20], heads=1, group=2, dim=64, page_size=16, dtype=torch.bfloat16, device="cuda")
    with pytest.raises(KernelInputError):
        decode(inputs.Attention(case.q[..., :32], case.k, case.v, case.pages))

"""Inputs of the kernel benchmarks: pools, page lists and launches of our kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vortex_core.kernels import (
    DecodeConfig,
    mla_config,
    mla_decode,
    mla_decode_workspace,
    paged_decode,
    paged_decode_workspace,
)
from vortex_core.kernels.reference import gather_row
from vortex_core.page_list import PageList, one_list_a_head, one_list_a_sequence

L2_FLUSH_BYTES = 2**30  # several times the 50-60 MB of a Hopper L2


def pool(pages: int, page_size: int, heads: int, dim: int) -> Tensor:
    """Random bf16 pool [page, token, head, dim]; filled in slices, as randn of the whole needs room twice."""
    out = torch.empty(pages, page_size, heads, dim, device="cuda", dtype=torch.bfloat16)
    for part in out.chunk(max(1, out.numel() // 2**28)):
        part.normal_()
    return out


def sets_for(nbytes: int, limit: int = 8) -> int:
    """Launches over different pages that together exceed the L2 many times."""
    return max(1, min(limit, L2_FLUSH_BYTES // max(nbytes, 1)))


@dataclass(frozen=True)
class DecodeCase:
    """One decode launch: its page lists, query and output."""

    q: Tensor
    pages: PageList
    out: Tensor
    launch: Callable[[], object]


def gqa_cases(
    k: Tensor,
    v: Tensor,
    *,
    batch: int,
    q_heads: int,
    tokens: int,
    shared: bool,
    config: DecodeConfig,
    count: int,
) -> list[DecodeCase]:
    """`count` launches over random pages of a pool [page, token, kv_head, dim].

    shared: one list a request (dense); otherwise each kv head of a request lists pages of its own.
    """
    pages_in_pool, page_size, kv_heads, dim = k.shape
    per_list = -(-tokens // page_size)
    lists = batch if shared else batch * kv_heads
    cases = []
    workspace = paged_decode_workspace(batch, kv_heads, q_heads // kv_heads, dim, k.device, config)
    for _ in range(count):
        if lists * per_list <= pages_in_pool:
            ids = torch.randperm(pages_in_pool, device="cuda")[: lists * per_list]
        else:
            ids = torch.randint(pages_in_pool, (lists * per_list,), device="cuda")
        ids = ids.to(torch.int32).view(lists, per_list)
        lens = torch.full((lists,), tokens, dtype=torch.int32, device="cuda")
        if shared:
            pages = one_list_a_sequence(ids, lens, page_size).shared_by(kv_heads)
        else:
            pages = one_list_a_head(ids, lens, kv_heads, page_size)
        q = torch.randn(batch, q_heads, dim, device="cuda", dtype=torch.bfloat16)
        out = torch.full_like(q, float("nan"))

        def launch(q: Tensor = q, pages: PageList = pages, out: Tensor = out) -> object:
            return paged_decode(q, k, v, pages, workspace=workspace, config=config, out=out)

        cases.append(DecodeCase(q, pages, out, launch))
    return cases


def gqa_reference(case: DecodeCase, k: Tensor, v: Tensor, request: int) -> Tensor:
    """float64 attention of one request [q_head, dim]."""
    heads = case.pages.heads
    group = case.q.shape[1] // heads
    outs = []
    for h in range(heads):
        n = int(case.pages.lengths[request, h])
        keys = gather_row(k, case.pages.page_ids[request, h], n, h)
        values = gather_row(v, case.pages.page_ids[request, h], n, h)
        q = case.q[request, h * group : (h + 1) * group].double()
        outs.append(torch.softmax(q @ keys.T * k.shape[3] ** -0.5, -1) @ values)
    return torch.cat(outs)


def mla_cases(
    latent: Tensor, *, batch: int, heads: int, tokens: int, count: int, config: DecodeConfig | None = None
) -> list[DecodeCase]:
    """`count` launches over random pages of a latent pool [page, token, 576]."""
    pages_in_pool, page_size, width = latent.shape
    per_list = -(-tokens // page_size)
    config = config or mla_config(heads, latent.dtype, page_size)
    workspace = mla_decode_workspace(batch, heads, latent.device, config)
    cases = []
    for _ in range(count):
        if batch * per_list <= pages_in_pool:
            ids = torch.randperm(pages_in_pool, device="cuda")[: batch * per_list]
        else:
            ids = torch.randint(pages_in_pool, (batch * per_list,), device="cuda")
        ids = ids.to(torch.int32).view(batch, per_list)
        lens = torch.full((batch,), tokens, dtype=torch.int32, device="cuda")
        # Absorbed queries are larger than head queries; this keeps the softmax away from uniform and one-hot.
        q = torch.randn(batch, heads, width, device="cuda", dtype=torch.bfloat16) * 0.5
        out = torch.full((batch, heads, 512), float("nan"), device="cuda", dtype=torch.bfloat16)

        def launch(q: Tensor = q, ids: Tensor = ids, lens: Tensor = lens, out: Tensor = out) -> object:
            return mla_decode(
                q, latent, ids, lens, workspace=workspace, config=config, sm_scale=192**-0.5, out=out
            )

        cases.append(DecodeCase(q, one_list_a_sequence(ids, lens, page_size), out, launch))
    return cases


def mla_reference(case: DecodeCase, latent: Tensor, request: int) -> Tensor:
    """float64 latent attention of one request [head, 512]."""
    n = int(case.pages.lengths[request, 0])
    rows = gather_row(latent.unsqueeze(2), case.pages.page_ids[request, 0], n, 0)
    return torch.softmax(case.q[request].double() @ rows.T * 192**-0.5, -1) @ rows[:, :512]

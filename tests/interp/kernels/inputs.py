"""Random inputs of the kernels, shared by the interpreter's and the GPU's tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vortex_core.page_list import PageList, one_list_a_head

LAYOUTS = ("NHD", "HND", "head-major")


def lay_out(pool: Tensor, layout: str) -> Tensor:
    """The same [page, token, head, dim] values stored in another order, seen through strides."""
    if layout == "HND":
        return pool.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "head-major":
        return pool.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
    return pool.contiguous()


@dataclass(frozen=True)
class Attention:
    """Inputs of one decode step; every token that no list names, and every one past a list's end, is NaN."""

    q: Tensor
    k: Tensor
    v: Tensor
    pages: PageList


def attention(
    lens: list[int],
    *,
    heads: int,
    group: int,
    dim: int,
    page_size: int,
    dim_v: int | None = None,
    kv_repeat: int = 1,
    dtype: torch.dtype = torch.float32,
    q_dtype: torch.dtype = torch.float32,
    layout: str = "NHD",
    seed: int = 0,
    device: str = "cpu",
) -> Attention:
    """One list a row: `lens` holds batch * heads lengths, heads = kv heads * kv_repeat."""
    draw = torch.Generator().manual_seed(seed)
    batch, kv_heads = len(lens) // heads, heads // kv_repeat
    max_pages = max(1, max(-(-n // page_size) for n in lens))
    pool = len(lens) * max_pages + 3
    ids = torch.randperm(pool, generator=draw)[: len(lens) * max_pages].view(len(lens), max_pages)
    k = torch.randn(pool, page_size, kv_heads, dim, generator=draw)
    v = torch.randn(pool, page_size, kv_heads, dim_v or dim, generator=draw)
    named = torch.zeros(pool, page_size, dtype=torch.bool)
    for row, n in enumerate(lens):
        for position in range(n):
            named[ids[row, position // page_size], position % page_size] = True
    k[~named] = float("nan")
    v[~named] = float("nan")
    q = torch.randn(batch, heads * group, dim, generator=draw).to(q_dtype)
    return Attention(
        q.to(device),
        lay_out(k.to(dtype), layout).to(device),
        lay_out(v.to(dtype), layout).to(device),
        one_list_a_head(
            ids.to(torch.int32).to(device), torch.tensor(lens, dtype=torch.int32).to(device), heads, page_size
        ),
    )


@dataclass(frozen=True)
class Scores:
    """Inputs of one selection."""

    scores: Tensor
    n_tokens: Tensor
    table: Tensor


def scores(
    n_tokens: list[int],
    *,
    heads: int,
    page_size: int,
    kind: str = "normal",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    device: str = "cpu",
) -> Scores:
    """Scores [batch * heads, max_pages]; kind: normal, ties (few values), equal, special (NaN, inf, zeros)."""
    draw = torch.Generator().manual_seed(seed)
    max_pages = max(1, max(-(-n // page_size) for n in n_tokens))
    values = torch.randn(len(n_tokens) * heads, max_pages, generator=draw)
    if kind == "ties":
        values = (values * 2).round() / 2
    if kind == "equal":
        values = torch.full_like(values, 0.5)
    if kind == "special":
        odd = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.0])
        values = odd[torch.randint(len(odd), values.shape, generator=draw)]
    table = torch.randperm(4 * values.numel(), generator=draw)[: len(n_tokens) * max_pages]
    return Scores(
        values.to(dtype).to(device),
        torch.tensor(n_tokens, dtype=torch.int32).to(device),
        table.view(len(n_tokens), max_pages).to(torch.int32).to(device),
    )


def close(got: Tensor, want: Tensor, unit: float) -> bool:
    """||got - want|| <= unit * ||want||, empty rows (zero or -inf) equal, no NaN."""
    got, want = got.double().cpu(), want.double().cpu()
    finite = torch.isfinite(want)
    if not torch.equal(torch.isfinite(got), finite) or not torch.equal(got[~finite], want[~finite]):
        return False
    return bool((got[finite] - want[finite]).norm() <= unit * want[finite].norm() + 1e-30)

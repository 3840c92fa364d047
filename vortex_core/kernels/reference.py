"""What every kernel here must compute, in float64 with one plain loop a row: the oracle of the tests.

Nothing below is fast, and nothing shares code with the kernels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vortex_core.page_list import PageList


def gather_row(cache: Tensor, page_ids: Tensor, kv_len: int, kv_head: int) -> Tensor:
    """The first `kv_len` tokens of one kv head along a list of pages, float64 [kv_len, dim]."""
    page_size = cache.shape[1]
    count = -(-kv_len // page_size)
    pages = cache[page_ids[:count].long(), :, kv_head]  # [count, page_size, dim]
    return pages.reshape(count * page_size, -1)[:kv_len].double()


def paged_decode_reference(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    pages: PageList,
    *,
    sm_scale: float | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    kv_repeat: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Decode attention over page lists.

    q [batch, q_head, dim]; caches [page, token, kv_head, dim]. Returns float64 out [batch, q_head, dim_v],
    lse [batch, q_head] (natural log, -inf for an empty row) and page_mass [rows, max_pages].
    """
    batch, q_heads, dim = q.shape
    heads = pages.heads
    group = q_heads // heads
    page_size, dim_v = k_cache.shape[1], v_cache.shape[3]
    scale = dim**-0.5 if sm_scale is None else sm_scale
    out = torch.zeros(batch, q_heads, dim_v, dtype=torch.float64, device=q.device)
    lse = torch.full((batch, q_heads), -math.inf, dtype=torch.float64, device=q.device)
    mass = torch.zeros(batch * heads, pages.columns, dtype=torch.float64, device=q.device)
    for b in range(batch):
        for h in range(heads):
            kv_len = int(pages.lengths[b, h])
            if kv_len == 0:
                continue
            ids = pages.page_ids[b, h]
            k = gather_row(k_cache, ids, kv_len, h // kv_repeat) * k_scale
            v = gather_row(v_cache, ids, kv_len, h // kv_repeat) * v_scale
            query = q[b, h * group : (h + 1) * group].double()  # [group, dim]
            scores = query @ k.T * scale  # [group, token]
            weights = torch.softmax(scores, dim=-1)
            out[b, h * group : (h + 1) * group] = weights @ v
            lse[b, h * group : (h + 1) * group] = torch.logsumexp(scores, dim=-1)
            page_of = torch.arange(kv_len, device=q.device) // page_size
            mass[b * heads + h].index_add_(0, page_of, weights.sum(0))
    return out, lse, mass


def mla_decode_reference(
    q: Tensor,
    latent_cache: Tensor,
    page_ids: Tensor,
    kv_lens: Tensor,
    *,
    sm_scale: float,
    latent_dim: int = 512,
    kv_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Absorbed latent attention over page lists, in plain torch.

    q [batch, head, 576], latent_cache [page, token, 576], page_ids [batch, max_pages], kv_lens [batch].
    Returns float64 out [batch, head, latent_dim] and lse [batch, head].
    """
    cache = latent_cache.unsqueeze(2)
    pages = PageList(page_ids.unsqueeze(1), kv_lens.unsqueeze(1), latent_cache.shape[1])
    out, lse, _ = paged_decode_reference(
        q, cache, cache[..., :latent_dim], pages, sm_scale=sm_scale, k_scale=kv_scale, v_scale=kv_scale
    )
    return out, lse


def ranked_pages(scores: Tensor, n_pages: int, keep_first: int, keep_last: int) -> list[int]:
    """Logical pages of one row in the order in which selection takes them.

    Always-kept pages come first, then higher scores, NaN as -inf; equal ones by lower page.
    """

    def rank(page: int) -> tuple[int, float, int]:
        value = float(scores[page])
        if page < keep_first or page >= n_pages - keep_last:
            return (0, 0.0, page)
        return (1, math.inf if math.isnan(value) else -value, page)

    return sorted(range(n_pages), key=rank)


def select_reference(
    scores: Tensor,
    n_tokens: Tensor,
    budget: Tensor,
    block_table: Tensor,
    *,
    heads: int,
    page_size: int,
    keep_first: int = 0,
    keep_last: int = 1,
    fraction: float = 1.0,
    threshold: float | None = None,
    top_p: float | None = None,
) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """Exact selection, as `select_pages` describes it, with weights and their sums in fp64.

    threshold, top_p: limits besides the budget.

    scores [batch * heads, max_pages], n_tokens [batch], budget [rows], [batch] or [1] in pages.
    Returns, a row: the logical pages in ascending order, their physical ids, and the valid tokens along them.
    The budget is raised to the number of always-kept pages.
    """
    logical_rows, physical_rows, lens = [], [], []
    for row in range(scores.shape[0]):
        b = row // heads
        tokens = int(n_tokens[b])
        n_pages = -(-tokens // page_size)
        kept = min(n_pages, keep_first + keep_last)
        k = int(budget[{scores.shape[0]: row, n_tokens.numel(): b}.get(budget.numel(), 0)])
        room = min(n_pages, max(k, kept)) - kept
        k = kept - (-room * round(fraction * 10_000) // 10_000)
        order = ranked_pages(scores[row], n_pages, keep_first, keep_last)
        values = [clean(float(scores[row, p])) for p in order[kept:]]
        if threshold is not None:
            k = min(k, kept + sum(x >= threshold for x in values))
        if top_p is not None:
            k = min(k, kept + top_p_count(values, top_p))
        chosen = sorted(order[:k])
        missing = n_pages * page_size - tokens if n_pages - 1 in chosen else 0
        logical_rows.append(chosen)
        physical_rows.append([int(block_table[b, p]) for p in chosen])
        lens.append(len(chosen) * page_size - missing)
    return logical_rows, physical_rows, lens


def clean(score: float) -> float:
    """A finite score: NaN as the lowest number, infinities as the outermost ones of fp32."""
    largest = torch.finfo(torch.float32).max
    return -largest if math.isnan(score) else min(max(score, -largest), largest)


def top_p_count(values: list[float], share: float) -> int:
    """Fewest of the finite `values`, which fall, that hold `share` of the weight exp(value) of all."""
    weights = [math.exp(x - values[0]) for x in values]
    total, before = math.fsum(weights), 0.0
    for count, weight in enumerate(weights):
        if before >= share * total:
            return count
        before += weight
    return len(values)


def write_kv_reference(cache: Tensor, values: Tensor, slots: Tensor, scale: float) -> Tensor:
    """A copy of `cache` [page, token, head, dim] with `values` [token, head, dim] / scale in flat `slots`.

    fp8 saturates at the largest finite value. Negative slots are skipped.
    """
    out = cache.clone()
    page_size = cache.shape[1]
    limit = torch.finfo(cache.dtype).max
    for t in range(values.shape[0]):
        slot = int(slots[t])
        if slot < 0:
            continue
        row = (values[t].double() / scale).clamp(-limit, limit).float()
        out[slot // page_size, slot % page_size] = row.to(cache.dtype)
    return out

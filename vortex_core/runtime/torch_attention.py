"""Attention over the paged pool in plain torch: dense over contiguous runs, sparse over selected pages.

Nothing here expands K and V to the query heads: the query heads of a kv head are rows of one small matrix.
Softmax runs in float32; K, V and the output keep the pool's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F

from vortex_core.compiler.interface import LayerKV
from vortex_core.geometry import Geometry
from vortex_core.kernels.decode.config import DecodeConfig
from vortex_core.kernels.decode.plan import PageMass
from vortex_core.page_list import PageList


def attend_part(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, *, causal: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention to one part of a sequence, with what is needed to merge it with other parts.

    Args:
        q: `[batch, head, row, dim]`.
        k, v: `[batch, head, token, dim]`, any strides with `dim` contiguous. Where V is narrower it is the first
            channels of K (MLA).
        causal: row `i` attends tokens `0..i` (as many rows as tokens).

    Returns:
        `[batch, head, row, value_dim]`, and float32 log-sum-exp of the scores, `[batch, head, row]`.
    """
    if q.device.type == "cpu":
        width = v.shape[-1]
        if width < k.shape[-1]:  # the CPU kernel wants equal widths
            v = k
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, scale=scale
        )
        return out[..., :width], lse
    if q.dtype != torch.float32 and q.shape[-1] == v.shape[-1] <= 256:
        flash = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)
        return flash[0], flash[1]
    out = torch.ops.aten._scaled_dot_product_efficient_attention(
        q, k, v, None, True, 0.0, causal, scale=scale
    )
    return out[0], out[1][..., : q.shape[2]]  # the kernel pads its rows to a multiple of 32


def merge_parts(parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Attention to the union of disjoint parts, from `attend_part` of each (as in arXiv 2112.05682)."""
    if len(parts) == 1:
        return parts[0][0]
    weights = torch.softmax(torch.stack([lse for _, lse in parts]), 0)
    total = (weights[..., None] * torch.stack([out for out, _ in parts])).sum(0)
    return total.to(parts[0][0].dtype)


def dense_decode(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, runs: Sequence[tuple[int, int]], scale: float
) -> torch.Tensor:
    """One sequence's step over all its tokens.

    Args:
        q: `[kv_head, group, dim]`.
        k, v: the layer's pool, `[kv_head, slot, dim]`.
        runs: `(first slot, tokens)` of the sequence's contiguous stretches.

    Returns:
        `[kv_head, group, value_dim]`.
    """
    q = q[None]
    parts = [
        attend_part(q, k[None, :, start : start + n], v[None, :, start : start + n], scale)
        for start, n in runs
    ]
    return merge_parts(parts)[0]


def dense_page_mass(
    q: torch.Tensor, k: torch.Tensor, runs: Sequence[tuple[int, int]], scale: float, page_size: int
) -> torch.Tensor:
    """The softmax probability that each page of one sequence receives from all its tokens' attention.

    Args:
        q, k, runs: as of `dense_decode`; the stretches are in the sequence's order.

    Returns:
        float32 `[kv_head, group, page]`, the partial last page included.
    """
    rows = q.float()
    scores = [rows @ k[:, start : start + n].float().transpose(-1, -2) for start, n in runs]
    probability = torch.softmax(torch.cat(scores, -1) * scale, -1)
    missing = -probability.shape[-1] % page_size
    return F.pad(probability, (0, missing)).unflatten(-1, (-1, page_size)).sum(-1)


def causal_prefill(
    q: torch.Tensor,
    k_new: torch.Tensor,
    v_new: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    runs: Sequence[tuple[int, int]],
    scale: float,
) -> torch.Tensor:
    """A chunk of a prompt: causal to itself, full to what precedes it.

    Args:
        q: `[q_head, chunk, dim]`.
        k_new, v_new: the chunk's own, `[kv_head, chunk, dim]`.
        k, v: the layer's pool, `[kv_head, slot, dim]`.
        runs: the preceding tokens' contiguous stretches, may be empty.

    Returns:
        `[q_head, chunk, value_dim]`.
    """
    kv_heads, chunk = k_new.shape[:2]
    grouped = q.unflatten(0, (kv_heads, -1))  # [kv_head, group, chunk, dim]
    group = grouped.shape[1]
    own = attend_part(
        grouped,
        k_new[:, None].expand(-1, group, -1, -1),
        v_new[:, None].expand(-1, group, -1, -1),
        scale,
        causal=True,
    )
    parts = [own]
    rows = grouped.reshape(1, kv_heads, group * chunk, -1)
    for start, n in runs:
        past_k, past_v = (x[None, :, start : start + n].to(q.dtype) for x in (k, v))  # a copy of fp8 alone
        out, lse = attend_part(rows, past_k, past_v, scale)
        parts.append((out[0].unflatten(1, (group, chunk)), lse[0].unflatten(1, (group, chunk))))
    return merge_parts(parts).flatten(0, 1)


def sparse_decode(
    q: torch.Tensor,
    kv: LayerKV,
    pages: PageList,
    scale: float,
    *,
    want_mass: bool = False,
    lse: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One step of a batch over selected pages.

    Args:
        q: `[batch, q_head, dim]`.
        kv: `[kv_head, page, token, dim]`, pages contiguous.
        pages: selected physical pages, per kv head or per query head.
        want_mass: also return the softmax probability that each selected page received.
        lse: filled with the natural log-sum-exp of each head's scores, float32 `[batch, q_head]`.

    Returns:
        Output `[batch, q_head, value_dim]` and float32 mass `[batch, q_head, max_selected]` or None.
    """
    batch, q_heads, _ = q.shape
    kv_heads, total, page_size = kv.k.shape[:3]
    heads, selected = pages.page_ids.shape[1:]
    tokens = selected * page_size
    head, first_row, position = _constants(heads, kv_heads, total, tokens, q.device)
    ids, rows = pages.page_ids, (pages.page_ids + first_row).flatten()
    k = _gather(kv.k, rows, head, ids, q.dtype).view(batch, heads, tokens, -1)
    value_dim = kv.v.shape[-1]
    if value_dim < kv.k.shape[-1]:  # MLA: V is the first channels of K
        v = k[..., :value_dim]
    else:
        v = _gather(kv.v, rows, head, ids, q.dtype).view(batch, heads, tokens, -1)
    grouped = q.view(batch, heads, q_heads // heads, -1)
    valid = position < pages.lengths[..., None]  # [batch, head, token]
    if not want_mass and lse is None:
        out = F.scaled_dot_product_attention(grouped, k, v, attn_mask=valid[:, :, None], scale=scale)
        return out.reshape(batch, q_heads, -1), None
    scores = (grouped @ k.transpose(-1, -2)).float() * scale
    scores = scores.masked_fill(~valid[:, :, None], float("-inf"))
    probability = torch.softmax(scores, -1)
    out = probability.to(v.dtype) @ v
    if lse is not None:
        lse.copy_(scores.logsumexp(-1).flatten(1))
    if not want_mass:
        return out.reshape(batch, q_heads, -1), None
    mass = probability.unflatten(-1, (selected, page_size)).sum(-1)
    return out.reshape(batch, q_heads, -1), mass.reshape(batch, q_heads, selected)


class TorchAttention:
    """`AttentionPlan` for machines without a GPU: gathers the listed pages, computes in float32."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry

    def run(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        pages: PageList,
        scale: float,
        *,
        config: DecodeConfig | None = None,
        out: torch.Tensor | None = None,
        mass: PageMass | None = None,
        lse: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `AttentionPlan.run`. `config` is of no use here."""
        longest = max(1, int(pages.counts.max()))
        lists = PageList(pages.page_ids[..., :longest], pages.lengths, pages.page_size)
        lists = lists.shared_by(max(pages.heads, self.geometry.kv_heads))
        kv = LayerKV(k.permute(2, 0, 1, 3), v.permute(2, 0, 1, 3))
        found, by_page = sparse_decode(q.float(), kv, lists, scale, want_mass=mass is not None, lse=lse)
        if mass is not None:
            assert by_page is not None
            mass.lse.zero_()
            mass.page_lse.view(len(q), q.shape[1], -1)[..., :longest] = by_page.log2()
        found = found.to(q.dtype)
        return found if out is None else out.copy_(found)

    def page_mass(self, batch: int, columns: int, device: torch.device, *, summed: bool = True) -> PageMass:
        """See `AttentionPlan.page_mass`; sums over query heads are not computed."""
        assert not summed, "the sums over query heads are not computed here"
        heads = self.geometry.q_heads
        return PageMass(
            torch.empty(batch, heads, device=device),
            torch.empty(batch * heads, 1, columns, device=device),
            None,
        )

    def sharing(self, page_size: int, *, even: bool) -> TorchAttention:
        """See `AttentionPlan.sharing`: lists of any page size do."""
        return self


@lru_cache(maxsize=256)
def _constants(
    heads: int, kv_heads: int, pages: int, tokens: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The kv head of each selecting head and its first row among `[kv_head * page]`, both `[head, 1]`, and
    `0..tokens`; the same every step.

    One head selects per kv head, or one per query head; then several read the same kv head.
    """
    head = (torch.arange(heads, device=device) // (heads // kv_heads))[:, None]
    return head, head * pages, torch.arange(tokens, device=device)


def _gather(
    pool: torch.Tensor, rows: torch.Tensor, head: torch.Tensor, pages: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Pages `[batch, head, selected]` of a pool, contiguous; also given as `rows` of `[kv_head * page]`."""
    if pool.is_contiguous():
        found = pool.view(pool.shape[0] * pool.shape[1], -1).index_select(0, rows)
    elif pool.element_size() == 1:  # fp8 as bytes: torch does not index it everywhere
        found = pool.view(torch.uint8)[head, pages].view(pool.dtype)
    else:
        found = pool[head, pages]
    return found if found.dtype == dtype else found.to(dtype)

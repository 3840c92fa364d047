"""Absorbed multi-head latent attention (DeepSeek-V2, arXiv 2405.04434) over page lists, in one pass.

The cache of a token is one row of 576 channels shared by all heads: 512 of latent, 64 of rotary key. The key
is the whole row and the value its first 512 channels, so a tile is read once and serves both products. One
kv head, any number of query heads up to 128 (GLM-4.7-Flash has 20).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vortex_core.kernels.decode.config import FP8_DTYPES, DecodeConfig, decode_workers
from vortex_core.kernels.decode.latent import on_hopper
from vortex_core.kernels.decode.paged import paged_decode
from vortex_core.kernels.decode.split import SplitWorkspace, split_workspace
from vortex_core.kernels.pages import require
from vortex_core.kernels.runtime import INTERPRETED
from vortex_core.page_list import one_list_a_sequence

# Query heads a worker holds: their accumulator of 512 channels must stay in registers. With 64, Hopper spills
# and Blackwell runs out of shared memory; more heads become more rows, which read the latent again.
MAX_HEADS_PER_ROW = 32


def mla_rows(heads: int) -> int:
    """Rows a request is cut into so that each holds at most 32 heads."""
    rows = -(-heads // MAX_HEADS_PER_ROW)
    require(heads % rows == 0, f"{heads} heads do not divide into {rows} equal rows")
    return rows


def mla_config(heads: int, kv_dtype: torch.dtype, page_size: int) -> DecodeConfig:
    """The tuned configuration for a number of query heads."""
    if INTERPRETED:
        return DecodeConfig(16, 4, 1, 1, 1, fused_merge=False)
    group = heads // mla_rows(heads)
    if kv_dtype in FP8_DTYPES:
        # The converted tile feeds both products from registers and is not pipelined: shorter tiles fit.
        return DecodeConfig(32, 8, 3, 1, 1, fused_merge=False)
    if kv_dtype == torch.float32:
        # Wider tiles, or two in flight, do not fit: 378 KB of shared memory with three of 64 tokens.
        return DecodeConfig(16, 8, 1, 1, 1, fused_merge=False)
    return DecodeConfig(64, 4 if group <= 16 else 8, 3, 1, 1, fused_merge=False, latent_kernel=on_hopper())


def mla_decode_workspace(
    batch: int, heads: int, device: torch.device, config: DecodeConfig, latent_dim: int = 512
) -> SplitWorkspace:
    """Scratch for launches of at most `batch` requests."""
    rows = mla_rows(heads)
    return split_workspace(batch * rows, decode_workers(device, config), heads // rows, latent_dim, device)


def mla_decode(
    q: Tensor,
    latent_cache: Tensor,
    page_ids: Tensor,
    kv_lens: Tensor,
    *,
    workspace: SplitWorkspace,
    config: DecodeConfig,
    sm_scale: float,
    latent_dim: int = 512,
    kv_scale: float = 1.0,
    out: Tensor | None = None,
    lse: Tensor | None = None,
    page_mass: Tensor | None = None,
    page_lse: Tensor | None = None,
) -> Tensor:
    """Attention of one absorbed query token a request.

    q [batch, head, 576] (query times the key up-projection, then the rotary part); latent_cache [page,
    token, 576], bf16 or fp8 with `kv_scale`; page_ids int32 [batch, max_pages]; kv_lens int32 [batch]; out
    [batch, head, 512], still to be multiplied by the value up-projection; lse fp32 [batch, head].
    `sm_scale` is that of the unabsorbed head (1 / sqrt(192) for 128 + 64). page_mass fp32 [batch * rows,
    max_pages] as in `paged_decode`.
    Raises KernelInputError.
    """
    require(
        latent_cache.dim() == 3, f"latent_cache must be [page, token, dim], got {tuple(latent_cache.shape)}"
    )
    rows = mla_rows(q.shape[1])
    cache = latent_cache.unsqueeze(2)
    pages = one_list_a_sequence(page_ids, kv_lens, cache.shape[1]).shared_by(rows)
    return paged_decode(
        q,
        cache,
        cache[..., :latent_dim],
        pages,
        workspace=workspace,
        config=config,
        sm_scale=sm_scale,
        k_scale=kv_scale,
        v_scale=kv_scale,
        kv_repeat=rows,
        out=out,
        lse=lse,
        page_mass=page_mass,
        page_lse=page_lse,
        value_in_key=True,
    )

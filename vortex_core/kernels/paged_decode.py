"""Decode attention of grouped-query heads over page lists (dense attention = a list of all pages)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vortex_core.kernels.decode_kernel import page_mass_kernel, paged_decode_kernel
from vortex_core.kernels.latent_decode import latent_kernel_fits, launch_latent
from vortex_core.kernels.pages import PageList, require
from vortex_core.kernels.runtime import INTERPRETED, multiprocessors, next_power_of_2, split_dim
from vortex_core.kernels.split import SplitWorkspace, merge_kernel, plan_block, plan_kernel, split_workspace

LOG2_E = math.log2(math.e)
FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
KV_DTYPES = (torch.bfloat16, torch.float16, torch.float32, *FP8_DTYPES)


@dataclass(frozen=True)
class DecodeConfig:
    """Tuning of one decode launch.

    block_n: tokens a tile (a power of two that divides or is divided by the page size).
    workers_per_sm: workers of the fixed grid for each multiprocessor.
    min_tiles: fewest tiles a worker takes. fused_merge: merge in the same launch (few pieces a row) or in a
    second. group_pad: rows of the products, 0 for the least that holds the group.
    latent_kernel: latent attention of 512 + 64 channels runs in `latent_kernel.py` (Hopper only), except where
    page masses are asked for.
    """

    block_n: int
    num_warps: int
    num_stages: int
    workers_per_sm: int
    min_tiles: int = 1
    fused_merge: bool = True
    group_pad: int = 0
    latent_kernel: bool = False


def decode_config(
    head_dim: int, group: int, kv_dtype: torch.dtype, page_size: int, rows: int
) -> DecodeConfig:
    """The tuned configuration for a shape. `rows` is the largest number of (request, kv head) rows."""
    if INTERPRETED:
        return DecodeConfig(16, 4, 1, 1, 1, rows >= 4)
    element = 1 if kv_dtype in FP8_DTYPES else 2 if kv_dtype != torch.float32 else 4
    # Measured on an H100: two blocks an SM with two 32 KiB tiles of K and V in flight each reach the
    # bandwidth of HBM. Wider heads take shorter tiles, for registers as much as for shared memory.
    block_n = 64 if head_dim * element <= 256 and head_dim <= 192 and group <= 16 else 32
    if head_dim <= 64 and element == 2 and group <= 16:
        block_n = 128
    # A row cut over many workers merges faster with a block a head than in its last worker.
    # fp8 tiles are half as large: three blocks keep as many bytes in flight.
    return DecodeConfig(block_n, 4, 3, 3 if element == 1 else 2, 1, fused_merge=rows >= 32)


def decode_workers(device: torch.device, config: DecodeConfig) -> int:
    """Size of the fixed grid: a function of the device alone, so that a captured graph fits every step."""
    return multiprocessors(device) * config.workers_per_sm


def paged_decode_workspace(
    batch: int,
    kv_heads: int,
    group: int,
    head_dim: int,
    device: torch.device,
    config: DecodeConfig,
) -> SplitWorkspace:
    """Scratch for launches of at most `batch` requests; `.nbytes` is its size.

    `head_dim` is that of the values. One workspace serves all layers, one launch at a time.
    """
    return split_workspace(batch * kv_heads, decode_workers(device, config), group, head_dim, device)


def operand_dtype(kv_dtype: torch.dtype) -> Any:
    """Type in which the products run: fp16 holds every fp8 value exactly and converts in one instruction."""
    if INTERPRETED or kv_dtype == torch.float32:
        return tl.float32  # the interpreter's bf16 product is wrong
    return tl.bfloat16 if kv_dtype == torch.bfloat16 else tl.float16


def decode_constants(
    *,
    heads: int,
    kv_repeat: int,
    group: int,
    page_size: int,
    dim: int,
    dim_v: int,
    kv_dtype: torch.dtype,
    stride_k_token: int,
    stride_v_token: int,
    config: DecodeConfig,
    rows: int,
    value_in_key: bool,
    has_lse: bool,
    has_page_lse: bool,
) -> dict[str, Any]:
    """Compile-time constants of `paged_decode_kernel` for a launch."""
    block_n = max(config.block_n, page_size) if has_page_lse else config.block_n
    dk0, dk1 = split_dim(dim)
    dv0, dv1 = split_dim(dim_v)
    plan = plan_block(rows)
    # A page id a tile is cheaper than one a token, but beside the largest accumulators ptxas spills with it.
    narrow = dim <= 192 or (value_in_key and kv_dtype not in FP8_DTYPES)
    scalar_page = page_size >= block_n and narrow
    return {
        "STRIDE_K_TOKEN": stride_k_token,
        "STRIDE_V_TOKEN": stride_v_token,
        "HEADS": heads,
        "KV_REPEAT": kv_repeat,
        "GROUP": group,
        # Sixteen rows are the least a matrix product takes; more heads fill 32, 64, ...
        "GROUP_PAD": config.group_pad or max(16, next_power_of_2(group)),
        "PAGE": page_size,
        "DK": dim,
        "DK0": dk0,
        "DK1": dk1,
        "DV": dim_v,
        "DV0": dv0,
        "DV1": dv1,
        "BLOCK_N": block_n,
        "PLAN": plan,
        "ONE_BLOCK": rows <= plan,
        "SCALAR_PAGE": scalar_page,
        "MIN_TILES": config.min_tiles,
        "OPERAND": operand_dtype(kv_dtype),
        "VALUE_IN_KEY": value_in_key,
        "FUSED_MERGE": config.fused_merge,
        "HAS_LSE": has_lse,
        "HAS_PAGE_LSE": has_page_lse,
    }


def check_decode_inputs(q: Tensor, k_cache: Tensor, v_cache: Tensor, pages: PageList, kv_repeat: int) -> None:
    """Raises `KernelInputError` for what the kernel cannot take."""
    require(
        q.dim() == 3 and q.stride(2) == 1,
        f"q must be [batch, q_head, dim] with dim contiguous, got {tuple(q.shape)}",
    )
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        require(
            cache.dim() == 4 and cache.stride(3) == 1,
            f"{name} must be [page, token, kv_head, dim] with dim contiguous, got {tuple(cache.shape)} "
            f"strides {cache.stride()}",
            "pass a permuted view of the pool",
        )
        require(cache.dtype in KV_DTYPES, f"{name} has dtype {cache.dtype}", "use bf16, fp16, fp32 or fp8")
    require(k_cache.shape[:3] == v_cache.shape[:3], "k_cache and v_cache differ in pages, tokens or heads")
    page_size = k_cache.shape[1]
    require(page_size & (page_size - 1) == 0, f"page size {page_size} is no power of two")
    require(q.shape[2] == k_cache.shape[3], f"q has {q.shape[2]} channels, the keys {k_cache.shape[3]}")
    require(pages.batch == q.shape[0], f"page list has {pages.batch} requests, q {q.shape[0]}")
    require(
        pages.kv_heads == k_cache.shape[2] * kv_repeat,
        f"page list has {pages.kv_heads} rows a request, expected {k_cache.shape[2]} kv heads x {kv_repeat}",
    )
    require(
        q.shape[1] % pages.kv_heads == 0, f"{q.shape[1]} query heads do not divide by {pages.kv_heads} rows"
    )


def paged_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    pages: PageList,
    *,
    workspace: SplitWorkspace,
    config: DecodeConfig,
    sm_scale: float | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    kv_repeat: int = 1,
    out: Tensor | None = None,
    lse: Tensor | None = None,
    page_mass: Tensor | None = None,
    page_lse: Tensor | None = None,
    value_in_key: bool = False,
) -> Tensor:
    """Attention of one query token a request over its listed pages.

    q [batch, q_head, dim]; k_cache, v_cache [page, token, kv_head, dim] (any strides, dim contiguous; bf16,
    fp16, fp32 or fp8 with `k_scale`, `v_scale`: stored value * scale = true value); out [batch, q_head,
    dim_v] in q's dtype; lse fp32 [batch, q_head], natural log, -inf for an empty row.

    kv_repeat: lists a kv head, for selections finer than a kv head (query head h reads list
        h // (q_heads / lists), which reads kv head list // kv_repeat).
    page_mass fp32 [rows, max_pages]: attention mass of each listed page, summed over the row's query heads
        (needs `lse`, and `page_lse` fp32 [rows, group, max_pages] as scratch). Costs one more launch.
    value_in_key: the values are the first channels of the keys (latent attention); v_cache is then not read.

    Pass `out` (and `lse`) inside a captured graph. Raises KernelInputError.
    """
    check_decode_inputs(q, k_cache, v_cache, pages, kv_repeat)
    batch, q_heads, dim = q.shape
    heads = pages.kv_heads
    group = q_heads // heads
    page_size, dim_v = k_cache.shape[1], v_cache.shape[3]
    rows = batch * heads
    workers = decode_workers(q.device, config)
    constants = decode_constants(
        heads=heads,
        kv_repeat=kv_repeat,
        group=group,
        page_size=page_size,
        dim=dim,
        dim_v=dim_v,
        kv_dtype=k_cache.dtype,
        stride_k_token=k_cache.stride(1),
        stride_v_token=v_cache.stride(1),
        config=config,
        rows=rows,
        value_in_key=value_in_key,
        has_lse=lse is not None,
        has_page_lse=page_mass is not None,
    )
    require(
        not value_in_key or (constants["DV0"] == constants["DK0"] and constants["DV1"] == 0),
        f"values of {dim_v} channels are no block of the key's {dim}",
    )
    require(
        workspace.fits(rows, workers, group, dim_v),
        f"workspace of {workspace.nbytes} bytes is too small for {rows} rows x {group} heads x {dim_v}",
        "allocate it with paged_decode_workspace(...) for the largest batch",
    )
    if out is None:
        out = torch.empty(batch, q_heads, dim_v, dtype=q.dtype, device=q.device)
    require(out.stride(2) == 1, "out must be contiguous along dim")
    if page_mass is not None:
        require(lse is not None and page_lse is not None, "page_mass needs lse and page_lse")
        assert page_lse is not None
        require(
            page_lse.shape == (rows, group, pages.max_pages),
            f"page_lse must be {(rows, group, pages.max_pages)}",
        )
    require(lse is None or lse.is_contiguous(), "lse must be contiguous")
    if rows == 0:
        return out
    scale = dim**-0.5 if sm_scale is None else sm_scale
    if (
        config.latent_kernel
        and page_mass is None
        and latent_kernel_fits(q, k_cache, v_cache, pages, value_in_key)
    ):
        score_scale = scale * k_scale * LOG2_E
        launch_latent(q, k_cache, pages, out, lse, workspace, workers, score_scale, v_scale)
        return out
    ids, lens = pages.page_ids, pages.kv_lens
    if not constants["ONE_BLOCK"]:
        plan_kernel[(workers,)](
            lens, workspace.plan, lens.stride(0), lens.stride(1), rows, workers,
            HEADS=heads, BLOCK_N=constants["BLOCK_N"], PLAN=constants["PLAN"], MIN_TILES=config.min_tiles,
            num_warps=4,
        )  # fmt: skip
    paged_decode_kernel[(workers,)](
        q, k_cache, v_cache, out, lse, page_lse if page_mass is not None else None, ids, lens,
        workspace.part_out, workspace.part_lse, workspace.finished, workspace.plan,
        q.stride(0), q.stride(1), k_cache.stride(0), k_cache.stride(2),
        v_cache.stride(0), v_cache.stride(2), out.stride(0), out.stride(1),
        ids.stride(0), ids.stride(1), lens.stride(0), lens.stride(1), pages.max_pages,
        scale * k_scale * LOG2_E, v_scale, rows, workers,
        **constants,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    if not config.fused_merge:
        # Few rows: spread their channels over more programs. Many: fewer programs, and as many pieces at
        # once as a row is cut into when all rows are alike.
        dim_block = next_power_of_2(dim_v) if rows * group >= 512 else min(128, next_power_of_2(dim_v))
        pieces = min(4096 // dim_block, max(4, next_power_of_2(workers // rows + 1)))
        merge_kernel[(rows, group, triton.cdiv(dim_v, dim_block))](
            out, lse, workspace.part_out, workspace.part_lse, lens,
            out.stride(0), out.stride(1), lens.stride(0), lens.stride(1), rows, workers,
            HEADS=heads, GROUP=group, DIM=dim_v, DIM_BLOCK=dim_block,
            BLOCK_N=constants["BLOCK_N"], PLAN=constants["PLAN"],
            MIN_TILES=config.min_tiles, PIECES=pieces, HAS_LSE=lse is not None,
            num_warps=4,
        )  # fmt: skip
    if page_mass is not None:
        assert lse is not None and page_lse is not None
        block = min(1024, next_power_of_2(pages.max_pages))
        page_mass_kernel[(rows, triton.cdiv(pages.max_pages, block))](
            page_lse, lse, lens, page_mass, pages.max_pages, lens.stride(0), lens.stride(1),
            page_mass.stride(0), pages.max_pages,
            HEADS=heads, GROUP=group, PAGE=page_size, BLOCK=block, num_warps=4,
        )  # fmt: skip
    return out

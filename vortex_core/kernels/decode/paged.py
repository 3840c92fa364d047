"""Decode attention of grouped-query heads over page lists (dense attention = a list of all pages)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vortex_core.kernels.decode.config import FP8_DTYPES, DecodeConfig, decode_workers
from vortex_core.kernels.decode.latent import latent_kernel_fits, launch_latent
from vortex_core.kernels.decode.list_kernel import list_decode_kernel
from vortex_core.kernels.decode.paged_kernel import page_mass_kernel, paged_decode_kernel
from vortex_core.kernels.decode.split import EVEN_TOKENS, SplitWorkspace, plan_block, split_workspace
from vortex_core.kernels.decode.split_launch import (
    Rows,
    even_splits,
    launch_even_merge,
    launch_plan,
    launch_planned_merge,
)
from vortex_core.kernels.pages import check_page_list, require
from vortex_core.kernels.runtime import (
    INTERPRETED,
    dependent_launch,
    next_power_of_2,
    split_dim,
)
from vortex_core.page_list import PageList

LOG2_E = math.log2(math.e)
TILE_BYTES = (
    192 * 1024
)  # of K and V in flight: what shared memory of a Hopper or Blackwell GPU holds beside the rest
KV_DTYPES = (torch.bfloat16, torch.float16, torch.float32, *FP8_DTYPES)


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


def operand_dtype(stored: torch.dtype) -> Any:
    """Type in which products of stored values run: fp16 holds every fp8 value, and converts in one instruction."""
    if INTERPRETED or stored == torch.float32:
        return tl.float32  # the interpreter's bf16 product is wrong
    return tl.bfloat16 if stored == torch.bfloat16 else tl.float16


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
        "LATE_SUMS": config.late_sums,
    }


def even_constants(constants: dict[str, Any], *, split: bool) -> dict[str, Any]:
    """Those of `list_decode_kernel`, from `decode_constants`."""
    planning = ("PLAN", "ONE_BLOCK", "MIN_TILES")
    return {name: value for name, value in constants.items() if name not in planning} | {"SPLIT": split}


def for_whole_pages(config: DecodeConfig, keys: Tensor, value_dim: int) -> DecodeConfig:
    """The configuration where a tile holds whole pages: fewer of the larger tiles are in flight."""
    block_n = max(config.block_n, keys.shape[1])
    tile = block_n * (keys.shape[3] + value_dim) * keys.element_size()
    stages = min(config.num_stages, 1 + max(1, TILE_BYTES // tile))
    return replace(config, block_n=block_n, num_stages=stages)


def check_decode_inputs(q: Tensor, k_cache: Tensor, v_cache: Tensor, pages: PageList, kv_repeat: int) -> None:
    """Raises `KernelInputError` for what the kernel cannot take."""
    check_page_list(pages)
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
    require(
        pages.page_size == page_size, f"lists of pages of {pages.page_size} tokens, a cache of {page_size}"
    )
    require(q.shape[2] == k_cache.shape[3], f"q has {q.shape[2]} channels, the keys {k_cache.shape[3]}")
    require(pages.batch == q.shape[0], f"page list has {pages.batch} requests, q {q.shape[0]}")
    require(
        pages.heads == k_cache.shape[2] * kv_repeat,
        f"page list has {pages.heads} rows a request, expected {k_cache.shape[2]} kv heads x {kv_repeat}",
    )
    require(q.shape[1] % pages.heads == 0, f"{q.shape[1]} query heads do not divide by {pages.heads} rows")


@dataclass(frozen=True)
class _Call:
    """One checked call of `paged_decode`. page_lse: None unless page masses are asked for."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    pages: PageList
    rows: Rows
    workspace: SplitWorkspace
    config: DecodeConfig
    constants: dict[str, Any]
    out: Tensor
    lse: Tensor | None
    page_lse: Tensor | None
    score_scale: float
    v_scale: float

    def tensors(self) -> list[Tensor | None]:
        """The arguments with which both kernels begin."""
        work = self.workspace
        return [
            self.q, self.k_cache, self.v_cache, self.out, self.lse, self.page_lse,
            self.pages.page_ids, self.pages.lengths, work.part_out, work.part_lse, work.finished,
        ]  # fmt: skip

    def numbers(self) -> list[float]:
        """The strides and scales that follow."""
        ids, lens = self.pages.page_ids, self.pages.lengths
        return [
            self.q.stride(0), self.q.stride(1), self.k_cache.stride(0), self.k_cache.stride(2),
            self.v_cache.stride(0), self.v_cache.stride(2), self.out.stride(0), self.out.stride(1),
            ids.stride(0), ids.stride(1), lens.stride(0), lens.stride(1), self.pages.columns,
            self.score_scale, self.v_scale,
        ]  # fmt: skip

    def options(self) -> dict[str, int]:
        """Launch options that Triton takes beside the kernel's arguments."""
        return {"num_warps": self.config.num_warps, "num_stages": self.config.num_stages}


def _launch_even(call: _Call, splits: int) -> None:
    """Every row in `splits` pieces, then the merge unless the last piece of a row does it."""
    # With one block a multiprocessor, those that start early spread evenly.
    launch = dependent_launch(call.q.device, early=call.config.workers_per_sm == 1)
    list_decode_kernel[(call.rows.count * splits,)](
        *call.tensors(), *call.numbers(), splits, **even_constants(call.constants, split=splits > 1),
        **call.options(), **launch,
    )  # fmt: skip
    if splits > 1 and not call.config.fused_merge:
        # All of a row's pieces are merged at once: many of them, fewer channels, for the registers' sake.
        dim_block = min(128, next_power_of_2(call.rows.dim), 16384 // next_power_of_2(splits))
        launch_even_merge(call.out, call.lse, call.workspace, call.rows, splits, dim_block, launch)


def _launch_planned(call: _Call, workers: int) -> None:
    """Tiles of all rows shared out over the workers, then the merge unless each row's last worker does it."""
    lens, work = call.pages.lengths, call.workspace
    plan = {name: call.constants[name] for name in ("HEADS", "BLOCK_N", "PLAN", "MIN_TILES")}
    if not call.constants["ONE_BLOCK"]:
        launch_plan(lens, work, call.rows.count, workers, plan)
    paged_decode_kernel[(workers,)](
        *call.tensors(), work.plan, *call.numbers(), call.rows.count, workers, **call.constants,
        **call.options(), **dependent_launch(call.q.device),
    )  # fmt: skip
    if not call.config.fused_merge:
        launch_planned_merge(call.out, call.lse, lens, work, call.rows, workers, plan)


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
    even_tokens: int = EVEN_TOKENS,
) -> Tensor:
    """Attention of one query token a request over its listed pages.

    q [batch, q_head, dim]; k_cache, v_cache [page, token, kv_head, dim] (any strides, dim contiguous; bf16,
    fp16, fp32 or fp8 with `k_scale`, `v_scale`: stored value * scale = true value); out [batch, q_head,
    dim_v] in q's dtype; lse fp32 [batch, q_head], natural log, -inf for an empty row.

    kv_repeat: lists a kv head, for selections finer than a kv head (query head h reads list
        h // (q_heads / lists), which reads kv head list // kv_repeat).
    page_mass fp32 [rows, max_pages]: attention mass of each listed page, summed over the row's query heads
        (needs `lse` and `page_lse`). Costs one more launch.
    page_lse fp32 [rows, group, max_pages]: log-sum-exp of each listed page by query head, in base 2.
    value_in_key: the values are the first channels of the keys (latent attention); v_cache is then not read.
    even_tokens: the longest lists of several requests that are cut into equal pieces, where `config` says so.

    Pass `out` (and `lse`) inside a captured graph. Raises KernelInputError.
    """
    check_decode_inputs(q, k_cache, v_cache, pages, kv_repeat)
    batch, q_heads, dim = q.shape
    if page_lse is not None:
        config = for_whole_pages(config, k_cache, 0 if value_in_key else v_cache.shape[3])
    heads = pages.heads
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
        has_page_lse=page_lse is not None,
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
    require(
        page_mass is None or (lse is not None and page_lse is not None), "page_mass needs lse and page_lse"
    )
    if page_lse is not None:
        require(
            page_lse.shape == (rows, group, pages.columns),
            f"page_lse must be {(rows, group, pages.columns)}",
        )
    require(lse is None or lse.is_contiguous(), "lse must be contiguous")
    if rows == 0:
        return out
    scale = dim**-0.5 if sm_scale is None else sm_scale
    if (
        config.latent_kernel
        and page_lse is None
        and latent_kernel_fits(q, k_cache, v_cache, pages, value_in_key)
    ):
        score_scale = scale * k_scale * LOG2_E
        launch_latent(q, k_cache, pages, out, lse, workspace, workers, score_scale, v_scale, even_tokens)
        return out
    lens = pages.lengths
    call = _Call(
        q, k_cache, v_cache, pages, Rows(rows, heads, group, dim_v), workspace, config, constants, out, lse,
        page_lse, scale * k_scale * LOG2_E, v_scale,
    )  # fmt: skip
    tokens = pages.columns * page_size
    least = constants["BLOCK_N"] * config.min_tiles
    splits = even_splits(pages, tokens, workers, least, even_tokens) if config.even else 0
    if splits:
        _launch_even(call, splits)
    else:
        _launch_planned(call, workers)
    if page_mass is not None:
        assert lse is not None and page_lse is not None
        block = min(1024, next_power_of_2(pages.columns))
        page_mass_kernel[(rows, triton.cdiv(pages.columns, block))](
            page_lse, lse, lens, page_mass, pages.columns, lens.stride(0), lens.stride(1),
            page_mass.stride(0), pages.columns,
            HEADS=heads, GROUP=group, PAGE=page_size, BLOCK=block, num_warps=4,
            **dependent_launch(q.device),
        )  # fmt: skip
    return out

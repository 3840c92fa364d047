"""The peers, where they are installed: FlashInfer, FlashAttention 3 (of sglang-kernel) and PyTorch."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels_cases import DecodeCase

Launch = Callable[[], object]
_WORKSPACE: list[Tensor] = []


def flashinfer_module() -> Any | None:
    """FlashInfer, or None where it is not installed."""
    try:
        import flashinfer
    except ImportError:
        return None
    return flashinfer


def fa3_operator() -> Any | None:
    """The FA3 operator of sglang-kernel, or None; only its library is loaded, not the package around it."""
    for folder in sys.path:
        library = Path(folder) / "sgl_kernel" / "flash_ops.abi3.so"
        if library.exists():
            torch.ops.load_library(str(library))
            return torch.ops.sgl_kernel.fwd.default
    return None


def _scratch() -> Tensor:
    if not _WORKSPACE:
        _WORKSPACE.append(torch.zeros(256 * 2**20, dtype=torch.uint8, device="cuda"))
    return _WORKSPACE[0]


def flashinfer_decode(
    flashinfer: Any, case: DecodeCase, k: Tensor, v: Tensor, tensor_cores: bool
) -> tuple[Launch, Tensor]:
    """FlashInfer over the page list of `case`, which all heads share, with its plan made on the host."""
    _, page_size, kv_heads, dim = k.shape
    ids = case.pages.page_ids[:, 0].contiguous()
    batch, per_list = ids.shape
    tokens = int(case.pages.lengths[0, 0])
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(_scratch(), "NHD", use_tensor_cores=tensor_cores)
    indptr = torch.arange(batch + 1, dtype=torch.int32, device="cuda") * per_list
    last = torch.full((batch,), tokens - (per_list - 1) * page_size, dtype=torch.int32, device="cuda")
    wrapper.plan(
        indptr, ids.view(-1), last, case.q.shape[1], kv_heads, dim, page_size,
        q_data_type=torch.bfloat16, kv_data_type=torch.bfloat16,
    )  # fmt: skip
    out = torch.empty_like(case.q)
    return (lambda: wrapper.run(case.q, (k, v), out=out)), out


def fa3_decode(fwd: Any, case: DecodeCase, k: Tensor, v: Tensor) -> tuple[Launch, Tensor]:
    """FA3 over the page list of `case`, which all heads share; it chooses its number of splits."""
    ids = case.pages.page_ids[:, 0].contiguous()
    lens = case.pages.lengths[:, 0].contiguous()
    q = case.q.unsqueeze(1)
    out = torch.empty_like(q)
    absent = [None] * 3

    def launch() -> object:
        return fwd(
            q, k, v, *absent, out, *absent, None, lens, None, None, ids, None, None, None, None, None, *absent,
            k.shape[3] ** -0.5, True, -1, -1, 0, 0.0, True, None, 0, None, 0, None, None, False,
        )  # fmt: skip

    return launch, out.squeeze(1)


def flashinfer_mla(flashinfer: Any, case: DecodeCase, latent: Tensor) -> tuple[Launch, Tensor]:
    """FlashInfer's MLA decode over the page list of `case`."""
    _, page_size, _ = latent.shape
    ids = case.pages.page_ids[:, 0].contiguous()
    batch, per_list = ids.shape
    wrapper = flashinfer.mla.BatchMLAPagedAttentionWrapper(_scratch(), backend="fa3")
    wrapper.plan(
        torch.arange(batch + 1, dtype=torch.int32, device="cuda"),
        torch.arange(batch + 1, dtype=torch.int32, device="cuda") * per_list,
        ids.view(-1), case.pages.lengths[:, 0].contiguous(), case.q.shape[1], 512, 64, page_size, False,
        1 / math.sqrt(192), torch.bfloat16, torch.bfloat16,
    )  # fmt: skip
    q_nope, q_rope = case.q[..., :512].contiguous(), case.q[..., 512:].contiguous()
    c_kv, k_pe = latent[..., :512], latent[..., 512:]
    out = torch.empty_like(q_nope)
    return (lambda: wrapper.run(q_nope, q_rope, c_kv, k_pe, out=out)), out

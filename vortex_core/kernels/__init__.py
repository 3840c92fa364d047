"""Hand-written Triton kernels: paged decode attention (GQA and MLA), page selection, KV write.

All launches fit a CUDA graph: grids depend on maxima only, work is planned on the device, callers own the
scratch. The KV cache is addressed through strides as [page, token, kv_head, dim].
"""

from __future__ import annotations

from vortex_core.kernels.decode.config import DecodeConfig, decode_config, decode_workers
from vortex_core.kernels.decode.mla import mla_config, mla_decode, mla_decode_workspace
from vortex_core.kernels.decode.paged import paged_decode, paged_decode_workspace
from vortex_core.kernels.decode.split import SplitWorkspace, split_workspace, split_workspace_shapes
from vortex_core.kernels.keys import settle_keys
from vortex_core.kernels.pages import KernelInputError
from vortex_core.kernels.select.api import Limit, Marks, SelectWorkspace, select_pages, select_workspace
from vortex_core.kernels.write.latent import write_latent
from vortex_core.kernels.write.paged import write_kv

__all__ = [
    "DecodeConfig",
    "KernelInputError",
    "Limit",
    "Marks",
    "SelectWorkspace",
    "SplitWorkspace",
    "decode_config",
    "decode_workers",
    "mla_config",
    "mla_decode",
    "mla_decode_workspace",
    "paged_decode",
    "paged_decode_workspace",
    "select_pages",
    "select_workspace",
    "split_workspace",
    "split_workspace_shapes",
    "write_kv",
    "write_latent",
]

settle_keys()  # before any kernel of ours has a key

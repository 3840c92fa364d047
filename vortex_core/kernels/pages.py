"""What kernels require of their arguments, page lists above all."""

from __future__ import annotations

import torch

from vortex_core.errors import VortexError
from vortex_core.page_list import PageList


class KernelInputError(VortexError):
    """An argument of a kernel has the wrong shape, dtype or range (code VK001)."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__("VK001", message, remedy)


def require(ok: bool, message: str, remedy: str = "") -> None:
    """Raises `KernelInputError` unless `ok`."""
    if not ok:
        raise KernelInputError(message, remedy)


def check_page_list(pages: PageList) -> None:
    """Raises `KernelInputError` for lists that a kernel cannot read."""
    ids, lengths = pages.page_ids, pages.lengths
    require(
        ids.dim() == 3 and ids.dtype == torch.int32,
        f"page_ids must be int32 [batch, head, columns], got {ids.dtype} {tuple(ids.shape)}",
        "build the list with one_list_a_head(...) or one_list_a_sequence(...)",
    )
    require(
        lengths.dtype == torch.int32 and lengths.shape == ids.shape[:2],
        f"lengths must be int32 {tuple(ids.shape[:2])}, got {lengths.dtype} {tuple(lengths.shape)}",
        "build the list with one_list_a_head(...) or one_list_a_sequence(...)",
    )
    require(ids.stride(2) == 1 or ids.shape[2] == 1, "page_ids must be contiguous along their columns")

"""Page lists: which physical pages each row of a decode step reads.

A row is one (request, kv head) pair, `row = b * Hkv + h`. Only the last page of a list may be partial,
so a list is a sequence of physical page ids and one count of valid tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vortex_core.errors import VortexError


class KernelInputError(VortexError):
    """An argument of a kernel has the wrong shape, dtype or range (code VK001)."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__("VK001", message, remedy)


def require(ok: bool, message: str, remedy: str = "") -> None:
    """Raises `KernelInputError` unless `ok`."""
    if not ok:
        raise KernelInputError(message, remedy)


@dataclass(frozen=True)
class PageList:
    """Physical pages and valid tokens of every row of one decode step.

    page_ids: int32 [batch, kv_head, max_pages]; the kv_head stride is 0 where heads share one list.
    kv_lens:  int32 [batch, kv_head]; valid tokens along the list, 0 for an idle row.
    """

    page_ids: Tensor
    kv_lens: Tensor

    def __post_init__(self) -> None:
        require(
            self.page_ids.dim() == 3 and self.page_ids.dtype == torch.int32,
            f"page_ids must be int32 [batch, kv_head, max_pages], got {self.page_ids.dtype} "
            f"{tuple(self.page_ids.shape)}",
            "build it with rows_page_list(...) or shared_page_list(...)",
        )
        require(
            self.kv_lens.dtype == torch.int32 and self.kv_lens.shape == self.page_ids.shape[:2],
            f"kv_lens must be int32 {tuple(self.page_ids.shape[:2])}, got {self.kv_lens.dtype} "
            f"{tuple(self.kv_lens.shape)}",
            "build it with rows_page_list(...) or shared_page_list(...)",
        )
        require(
            self.page_ids.stride(2) == 1 or self.page_ids.shape[2] == 1,
            "page_ids must be contiguous along max_pages",
        )

    @property
    def batch(self) -> int:
        return self.page_ids.shape[0]

    @property
    def kv_heads(self) -> int:
        return self.page_ids.shape[1]

    @property
    def max_pages(self) -> int:
        return self.page_ids.shape[2]


def rows_page_list(page_ids: Tensor, kv_lens: Tensor, kv_heads: int) -> PageList:
    """One list a row: page_ids int32 [batch * kv_head, max_pages], kv_lens int32 [batch * kv_head]."""
    rows, max_pages = page_ids.shape
    require(rows % kv_heads == 0, f"{rows} rows are no multiple of {kv_heads} kv heads")
    batch = rows // kv_heads
    return PageList(page_ids.view(batch, kv_heads, max_pages), kv_lens.view(batch, kv_heads))


def shared_page_list(page_ids: Tensor, kv_lens: Tensor, kv_heads: int) -> PageList:
    """One list a request, read by all its heads: page_ids int32 [batch, max_pages], kv_lens int32 [batch]."""
    batch, max_pages = page_ids.shape
    return PageList(
        page_ids.view(batch, 1, max_pages).expand(batch, kv_heads, max_pages),
        kv_lens.view(batch, 1).expand(batch, kv_heads),
    )

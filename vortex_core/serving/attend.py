"""Decode attention over page lists of a foreign pool: Triton kernels, or plain torch where there is no GPU.

Pools are `[page, token, kv_head, dim]`; under MLA there is one head, and the values are the first channels of
the keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from vortex_core.geometry import Geometry
from vortex_core.kernels.decode.config import DecodeConfig, decode_config
from vortex_core.kernels.decode.mla import mla_config, mla_rows
from vortex_core.kernels.decode.paged import paged_decode, paged_decode_workspace
from vortex_core.kernels.pages import PageList


@dataclass(frozen=True)
class PoolLayer:
    """Keys and values of one layer, `[page, token, kv_head, dim]`, any strides with dim contiguous."""

    k: torch.Tensor
    v: torch.Tensor


@dataclass(frozen=True)
class Lists:
    """Pages to attend: one list a sequence (`heads` 1), a kv head or a query head.

    ids: int32 `[batch, heads, columns]`; lens: int32 `[batch, heads]`, tokens along the list.
    """

    ids: torch.Tensor
    lens: torch.Tensor

    @property
    def heads(self) -> int:
        """Lists of a sequence."""
        return self.ids.shape[1]


class Attend(Protocol):
    """Decode attention of one batch."""

    def __call__(
        self, q: torch.Tensor, kv: PoolLayer, lists: Lists, scale: float, config: DecodeConfig | None = None
    ) -> torch.Tensor:
        """q `[batch, q_head, dim]` to `[batch, q_head, value_dim]`. `config`: how the kernel's launch is cut."""
        ...


class TorchAttend:
    """Gathers the listed pages, then softmax in fp32. For machines without a GPU."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry

    def __call__(
        self, q: torch.Tensor, kv: PoolLayer, lists: Lists, scale: float, config: DecodeConfig | None = None
    ) -> torch.Tensor:
        """See `Attend`."""
        g = self.geometry
        batch, heads, columns = lists.ids.shape
        page = kv.k.shape[1]
        columns = min(columns, max(1, -(-int(lists.lens.max()) // page)))
        ids = lists.ids[..., :columns].long()
        head = torch.arange(heads, device=q.device) * g.kv_heads // heads
        if heads < g.kv_heads:
            ids = ids.expand(batch, g.kv_heads, columns)
            head = torch.arange(g.kv_heads, device=q.device)
        k, v = (
            x[ids, :, head[None, :, None]].flatten(2, 3).float()  # [batch, head, token, dim]
            for x in (kv.k, kv.v)
        )
        rows = q.unflatten(1, (k.shape[1], -1)).float()
        scores = rows @ k.transpose(-1, -2) * scale
        lens = lists.lens.expand(batch, k.shape[1])
        beyond = torch.arange(k.shape[2], device=q.device) >= lens[..., None]
        weights = torch.softmax(scores.masked_fill(beyond[:, :, None], float("-inf")), -1)
        return (weights @ v).flatten(1, 2).to(q.dtype)


class TritonAttend:
    """This project's paged decode kernels, with the scratch of the largest batch.

    One instance serves one kind of list (one a kv head, or one a query head), all layers, one launch at a time.

    Args:
        batch: the most sequences of a step.
        per_query_head: whether each query head has its list.
    """

    def __init__(
        self,
        geometry: Geometry,
        page_size: int,
        kv_dtype: torch.dtype,
        batch: int,
        device: torch.device,
        *,
        per_query_head: bool,
    ) -> None:
        g = self.geometry = geometry
        q_heads = g.kv_heads * g.group
        # Rows of a sequence: MLA cuts its query heads where their accumulator would not fit in registers.
        self.rows = q_heads if per_query_head else mla_rows(q_heads) if g.is_mla else g.kv_heads
        self.page_size, self.kv_dtype = page_size, kv_dtype
        self.space = paged_decode_workspace(
            batch, self.rows, q_heads // self.rows, g.value_dim, device,
            max(self._config(batch), self._config(1), key=lambda config: config.workers_per_sm),
        )  # fmt: skip

    def _config(self, batch: int, *, even: bool = False) -> DecodeConfig:
        g = self.geometry
        if g.is_mla:
            return mla_config(g.group, self.kv_dtype, self.page_size)
        group = g.kv_heads * g.group // self.rows
        return decode_config(
            g.head_dim, group, self.kv_dtype, self.page_size, batch * self.rows, even=even, alone=batch == 1
        )

    def __call__(
        self, q: torch.Tensor, kv: PoolLayer, lists: Lists, scale: float, config: DecodeConfig | None = None
    ) -> torch.Tensor:
        """See `Attend`. Allocates its output, from the graph's own pool where it is captured."""
        batch = len(q)
        config = config or self._config(batch, even=lists.heads == self.rows)
        pages = PageList(
            lists.ids.expand(batch, self.rows, lists.ids.shape[2]), lists.lens.expand(batch, self.rows)
        )
        return paged_decode(
            q, kv.k, kv.v, pages,
            workspace=self.space, config=config, sm_scale=scale,
            kv_repeat=self.rows // self.geometry.kv_heads, value_in_key=self.geometry.is_mla,
        )  # fmt: skip

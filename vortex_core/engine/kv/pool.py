"""Paged storage of keys and values, one slot per token, the same slot in every layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from vortex_core.compiler.interface import LayerKV
from vortex_core.engine.kv.blocks import BLOCK_TOKENS
from vortex_core.geometry import Geometry


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros, so that an unwritten slot is finite: masked attention multiplies it by 0, and 0 · NaN is NaN.

    On the CPU through calloc, which takes memory as pages are touched; `torch.zeros` would take it all now.
    """
    if device.type != "cpu":
        return torch.zeros(tuple(shape), dtype=dtype, device=device)
    size = int(np.prod(shape)) * dtype.itemsize
    return torch.from_numpy(np.zeros(size, np.uint8)).view(dtype).view(tuple(shape))


class KVPool:
    """`k: [layer, kv_head, slot, head_dim]` and `v: [layer, kv_head, slot, value_dim]`.

    Slots are grouped into blocks of 128; a flow sees them as pages of its own size, which is a view. Under
    MLA `v` is the first `value_dim` channels of `k`.
    """

    def __init__(self, geometry: Geometry, blocks: int, dtype: torch.dtype, device: torch.device) -> None:
        self.geometry = geometry
        self.slots = blocks * BLOCK_TOKENS
        shape = (geometry.layers, geometry.kv_heads, self.slots)
        self.k = _zeros((*shape, geometry.head_dim), dtype, device)
        if geometry.is_mla:
            self.v = self.k[..., : geometry.value_dim]
        else:
            self.v = _zeros((*shape, geometry.value_dim), dtype, device)
        # Indexing a tensor costs microseconds, once per layer and step: keep the views.
        self._k = list(self.k.unbind(0))
        self._v = list(self.v.unbind(0))
        self._paged: dict[int, list[LayerKV]] = {}

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`[kv_head, slot, dim]` of one layer."""
        return self._k[layer], self._v[layer]

    def paged(self, layer: int, page_size: int) -> LayerKV:
        """`[kv_head, page, token, dim]` of one layer, a view."""
        if page_size not in self._paged:
            self._paged[page_size] = [
                LayerKV(k.unflatten(1, (-1, page_size)), v.unflatten(1, (-1, page_size)))
                for k, v in zip(self._k, self._v, strict=True)
            ]
        return self._paged[page_size][layer]

    def write(self, layer: int, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Store tokens, from any device. `slots`: int64 `[n]`; `k, v`: `[kv_head, n, dim]`."""
        device = self.k.device
        slots = slots.to(device)
        self._put(self._k[layer], slots, k.to(device))
        if not self.geometry.is_mla:
            self._put(self._v[layer], slots, v.to(device))

    @staticmethod
    def _put(target: torch.Tensor, slots: torch.Tensor, values: torch.Tensor) -> None:
        if target.dtype.itemsize > 1:
            target.index_copy_(1, slots, values)
            return
        # fp8 saturates, as in `kernels.kv_write`; torch copies bytes by index, but not fp8.
        limit = torch.finfo(target.dtype).max
        narrow = values.clamp(-limit, limit).to(target.dtype)
        target.view(torch.uint8).index_copy_(1, slots, narrow.view(torch.uint8))

    def copy_tokens(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` tokens of one block to another, all layers."""
        a, b = source * BLOCK_TOKENS, target * BLOCK_TOKENS
        self.k[:, :, b : b + tokens] = self.k[:, :, a : a + tokens]
        if not self.geometry.is_mla:
            self.v[:, :, b : b + tokens] = self.v[:, :, a : a + tokens]

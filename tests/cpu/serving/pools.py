"""A foreign engine in miniature: a slot pool, a table of requests, and a decoder that works on them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from vortex_core import library
from vortex_core.geometry import Geometry
from vortex_core.ir.crossover import NEVER, Crossover
from vortex_core.ir.flow import Flow
from vortex_core.serving.decoder import FlowDecoder, PoolShape

GQA = Geometry(layers=3, kv_heads=2, group=2, head_dim=16, rope_dim=16, value_dim=16)
MLA = Geometry(layers=2, kv_heads=1, group=4, head_dim=48, rope_dim=16, value_dim=32)


def bundle(name: str, **knobs: object) -> Flow:
    """A library flow with other knobs."""
    return library.load(name).with_knobs(**knobs).flow


@dataclass
class Pool:
    """Keys and values `[slot, kv_head, dim]` by layer, and the slots of each request.

    Pages of `page` tokens are handed out in random order; page 0 is padding, as in SGLang.
    """

    geometry: Geometry
    page: int
    pages: int
    requests: int
    longest: int
    seed: int = 0
    dtype: torch.dtype = torch.float32
    k: list[torch.Tensor] = field(default_factory=list)
    v: list[torch.Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        g = self.geometry
        self.random = torch.Generator().manual_seed(self.seed)
        for _ in range(g.layers):
            k = torch.zeros((self.pages + 1) * self.page, g.kv_heads, g.head_dim).to(self.dtype)
            v = k if g.is_mla else torch.zeros(len(k), g.kv_heads, g.value_dim).to(self.dtype)
            self.k.append(k)
            self.v.append(v[..., : g.value_dim])
        self.slots = torch.zeros(self.requests, self.longest, dtype=torch.int32)
        self.free = (torch.randperm(self.pages, generator=self.random) + 1).tolist()
        self.lengths = [0] * self.requests

    def decoder(
        self, flow: Flow, backend: str, device: str = "cpu", crossover: Crossover = NEVER
    ) -> FlowDecoder:
        """A decoder on this pool."""
        shape = PoolShape(
            len(self.k[0]) // flow.knobs.page_size,
            (0, self.geometry.layers),
            self.k[0].dtype,
            self.requests,
            self.longest,
        )
        return FlowDecoder(
            flow, self.geometry, shape, lambda i: (self.k[i], self.v[i]), torch.device(device), backend,
            crossover,
        )  # fmt: skip

    def grow(self, request: int, count: int) -> torch.Tensor:
        """Slots of `count` more tokens of a request."""
        for position in range(self.lengths[request], self.lengths[request] + count):
            if position % self.page == 0:
                first = self.free.pop() * self.page
            else:
                first = int(self.slots[request, position - 1]) + 1
            self.slots[request, position] = first
        start, self.lengths[request] = self.lengths[request], self.lengths[request] + count
        return self.slots[request, start : start + count].long()

    def write(self, layer: int, slots: torch.Tensor) -> None:
        """Random keys and values at some slots."""
        for pool in (self.k[layer], self.v[layer]):
            value = torch.randn(len(slots), *pool.shape[1:], generator=self.random).to(pool)
            _raw(pool)[slots] = _raw(value)

    def prefill(self, decoder: FlowDecoder, request: int, count: int) -> None:
        """What an engine does in a prefill step."""
        size, before = decoder.page_size, self.lengths[request]
        decoder.settle()
        slots = self.grow(request, count)
        done = range(before // size, (before + count) // size)
        decoder.note_complete(self.slots[request, [page * size for page in done]] // size)
        for layer in range(self.geometry.layers):
            self.write(layer, slots)

    def step(
        self, decoder: FlowDecoder, requests: list[int], *, padded: int | None = None
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """What an engine does in a decode step; returns the query and the output of each layer."""
        g = self.geometry
        slots = torch.cat([self.grow(r, 1) for r in requests])
        lengths = torch.tensor([self.lengths[r] for r in requests])
        decoder.begin(self.slots, torch.tensor(requests), lengths, padded=padded)
        found = []
        for layer in range(g.layers):
            self.write(layer, slots)
            q = torch.randn(decoder.count, g.kv_heads * g.group, g.head_dim, generator=self.random)
            stored = self.k[0].dtype
            asked = q if stored.itemsize == 1 else q.to(stored)  # queries are never fp8
            found.append((q, decoder.attend(layer, asked, g.head_dim**-0.5)))
        return found

    def tokens(self, layer: int, request: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a request, `[token, kv_head, dim]`."""
        slots = self.slots[request, : self.lengths[request]].long()
        k, v = self.k[layer], self.v[layer]
        return _raw(k)[slots].view(k.dtype), _raw(v)[slots].view(v.dtype)


def _raw(x: torch.Tensor) -> torch.Tensor:
    """fp8 as bytes: torch does not index it everywhere."""
    return x.view(torch.uint8) if x.element_size() == 1 else x


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Attention of one query token, fp64. q `[q_head, dim]`, k and v `[token, kv_head, dim]`."""
    group = len(q) // k.shape[1]
    k, v = (x.double().repeat_interleave(group, 1).transpose(0, 1) for x in (k, v))
    weights = torch.softmax((q.double()[:, None] @ k.transpose(1, 2)) * scale, -1)
    return (weights @ v)[:, 0]

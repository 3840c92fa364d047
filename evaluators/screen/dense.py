"""What the screen knows of a recording before any program comes: dense masses and outputs by page, and hindsight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from evaluators.screen.recording import AttentionRecording
from vortex_core.compiler.interface import LayerKV

_PARTS = 128 << 20  # bytes of what every page adds to the output, of one set of rows, that are kept
FLOOR_TOKENS = 32  # newest tokens, beside the first page, whose mass any rule captures


@dataclass(frozen=True)
class DenseRows:
    """Dense attention of some layers, cut into pages of one size. A row is a step, a prompt and a layer.

    Attributes:
        recording: of the model.
        size: tokens per page.
        layers: layers held, in order.
        steps: steps held, in order.
    """

    recording: AttentionRecording
    size: int
    layers: tuple[int, ...]
    steps: tuple[int, ...]

    # ---- rows: [step, prompt, layer] flattened

    @property
    def count(self) -> int:
        """Rows."""
        return len(self.steps) * self.recording.prompts * len(self.layers)

    @cached_property
    def prompt(self) -> torch.Tensor:
        """int64 `[row]`, the prompt of each row."""
        one = torch.arange(self.recording.prompts, device=self.device).repeat_interleave(len(self.layers))
        return one.repeat(len(self.steps))

    @cached_property
    def layer(self) -> torch.Tensor:
        """int64 `[row]`, the model's layer of each row."""
        return self._layers.repeat(len(self.steps) * self.recording.prompts)

    @cached_property
    def lengths(self) -> torch.Tensor:
        """int64 `[row]`, tokens of each row's sequence."""
        by_step = torch.tensor([self.recording.lengths_at(s) for s in self.steps], device=self.device)
        return by_step.flatten().repeat_interleave(len(self.layers))

    @cached_property
    def q(self) -> torch.Tensor:
        """`[row, q_head, dim]`."""
        return self.recording.q[list(self.steps)][:, :, self._layers].flatten(0, 2)

    @cached_property
    def table(self) -> torch.Tensor:
        """int64 `[row, page]`, pages of `kv`; past a row's end its last page."""
        r, size = self.recording, self.size
        at = torch.arange(len(self.layers), device=self.device) * self.pages_per_layer
        first = torch.tensor(r.starts, device=self.device) // size
        first = (first[:, None] + at).flatten().repeat(len(self.steps))
        last = -(-self.lengths // size) - 1
        return first[:, None] + torch.minimum(torch.arange(self.width, device=self.device), last[:, None])

    def of_step(self, step: int) -> DenseRows:
        """The same layers at one step, whether it is held or not."""
        if step not in self._single:
            one = DenseRows(self.recording, self.size, self.layers, (step,))
            one.__dict__["kv"] = self.kv  # the same pages
            self._single[step] = one
        return self._single[step]

    def of_layers(self, layers: tuple[int, ...]) -> DenseRows:
        """Other layers at the same steps."""
        if layers not in self._others:
            self._others[layers] = DenseRows(self.recording, self.size, layers, self.steps)
        return self._others[layers]

    @cached_property
    def _others(self) -> dict[tuple[int, ...], DenseRows]:
        return {}

    @cached_property
    def _single(self) -> dict[int, DenseRows]:
        return {}

    @property
    def nbytes(self) -> int:
        """Bytes that these rows come to hold: keys and values, masses and parts by page."""
        g = self.recording.geometry
        slots = len(self.layers) * self.recording.k.shape[2] * g.kv_heads
        dims = g.head_dim + (0 if g.is_mla else g.value_dim)
        kept = self._parts_bytes if self._parts_bytes <= _PARTS else 0
        return (
            self.recording.k.element_size() * slots * dims + kept + 12 * self.count * g.q_heads * self.width
        )

    # ---- keys and values

    @property
    def device(self) -> torch.device:
        """Where everything lies."""
        return self.recording.k.device

    @property
    def width(self) -> int:
        """Pages of the longest row."""
        return -(-max(self.recording.lengths) // self.size)

    @property
    def pages_per_layer(self) -> int:
        """Pages of all prompts in one layer."""
        return self.recording.k.shape[2] // self.size

    @cached_property
    def kv(self) -> LayerKV:
        """The layers' pages one after another, as recorded, `[kv_head, layer * page, token, dim]`."""
        g = self.recording.geometry
        k = self._pages(self.recording.k)
        return LayerKV(k, k[..., : g.value_dim] if g.is_mla else self._pages(self.recording.v))

    def _pages(self, x: torch.Tensor) -> torch.Tensor:
        chosen = x[self._layers].transpose(0, 1)  # [kv_head, layer, slot, dim]
        return chosen.unflatten(2, (-1, self.size)).flatten(1, 2)

    @cached_property
    def _layers(self) -> torch.Tensor:
        return torch.tensor(self.layers, device=self.device)

    # ---- what dense attention does

    @cached_property
    def mass(self) -> torch.Tensor:
        """Dense attention mass by page, `[row, q_head, page]`."""
        found = torch.zeros(self.count, self.recording.geometry.q_heads, self.width, device=self.device)
        for i, weights, _ in self._weights():
            found[i, :, : weights.shape[2]] = weights.sum(-1).flatten(0, 1)
        return found

    @cached_property
    def parts(self) -> torch.Tensor:
        """What each page adds to the attention output, `[row, q_head, page, value_dim]`."""
        g = self.recording.geometry
        found = torch.zeros(self.count, g.q_heads, self.width, g.value_dim, device=self.device)
        values = self.kv.v.flatten(1, 2)
        for i, weights, span in self._weights():
            found[i, :, : weights.shape[2]] = self._parts_of(weights, values[:, span])
        return found

    @staticmethod
    def _parts_of(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Of one row, `[q_head, page, value_dim]`."""
        paged = values.float().unflatten(1, weights.shape[2:])  # [kv_head, page, token, dim]
        return torch.einsum("hgpt,hptd->hgpd", weights, paged).flatten(0, 1)

    @property
    def _parts_bytes(self) -> int:
        g = self.recording.geometry
        return 4 * self.count * g.q_heads * self.width * g.value_dim

    def attended(self, masks: torch.Tensor) -> torch.Tensor:
        """What some pages add to the attention output: `[row, q_head, n, page]` to `[row, q_head, n, value_dim]`. Parts
        of many layers are gigabytes and are made anew, row by row; those of few are kept."""
        if self._parts_bytes <= _PARTS:
            return masks.float() @ self.parts
        g = self.recording.geometry
        found = torch.zeros(*masks.shape[:3], g.value_dim, device=self.device)
        values = self.kv.v.flatten(1, 2)
        for i, weights, span in self._weights():
            pages = weights.shape[2]
            found[i] = masks[i, :, :, :pages].float() @ self._parts_of(weights, values[:, span])
        return found

    @cached_property
    def lse(self) -> torch.Tensor:
        """Natural log-sum-exp of the scaled scores over all tokens, `[row, q_head]`."""
        found = torch.zeros(self.count, self.recording.geometry.q_heads, device=self.device)
        for i, scores, _ in self._scores():
            found[i] = scores.logsumexp(-1).flatten()
        return found

    def _weights(self) -> Iterator[tuple[int, torch.Tensor, slice]]:
        """Of each row its number, its dense probabilities `[kv_head, group, page, token]`, and its slots in `kv`."""
        for i, scores, span in self._scores():
            yield i, torch.softmax(scores, -1).unflatten(-1, (-1, self.size)), span

    def _scores(self) -> Iterator[tuple[int, torch.Tensor, slice]]:
        """Of each row its number, its scaled scores `[kv_head, group, token]`, and its slots in `kv`."""
        r, g = self.recording, self.recording.geometry
        place = {layer: i for i, layer in enumerate(self.layers)}
        keys, slots = self.kv.k.flatten(1, 2), r.k.shape[2]
        rows = zip(self.prompt.tolist(), self.lengths.tolist(), self.layer.tolist(), strict=True)
        for i, (b, n, layer) in enumerate(rows):
            pages = -(-n // self.size)
            start = place[layer] * slots + r.starts[b]
            span = slice(start, start + pages * self.size)
            q = self.q[i].float().unflatten(0, (g.kv_heads, g.group))
            scores = q @ keys[:, span].float().transpose(-1, -2) * r.scale
            scores[..., n:] = -torch.inf
            yield i, scores, span

    @cached_property
    def out(self) -> torch.Tensor:
        """Dense attention output, `[row, q_head, value_dim]`."""
        if self._parts_bytes <= _PARTS:
            return self.parts.sum(2)
        whole = torch.ones(1, dtype=torch.bool, device=self.device)
        return self.attended(whole.expand(self.count, self.recording.geometry.q_heads, 1, self.width))[
            :, :, 0
        ]

    @cached_property
    def totals(self) -> torch.Tensor:
        """int64 `[row]`, pages of each row, the partial one included."""
        return -(-self.lengths // self.size)

    # ---- hindsight

    @cached_property
    def floor(self) -> torch.Tensor:
        """bool `[row, page]`: the first page and those of the newest tokens, which any rule keeps."""
        page = torch.arange(self.width, device=self.device)
        last = self.totals[:, None] - max(1, FLOOR_TOKENS // self.size)
        return (page < self.totals[:, None]) & ((page == 0) | (page >= last))

    @cached_property
    def floor_mass(self) -> torch.Tensor:
        """Mass on those, `[row, q_head]`."""
        return (self.mass * self.floor[:, None]).sum(-1)

    @cached_property
    def best(self) -> torch.Tensor:
        """Mass on the best `n` pages, chosen with hindsight for the query heads of a kv head together, the floor's
        first: `[row, q_head, n - 1]`."""
        order = self._order.repeat_interleave(self.recording.geometry.group, 1)
        return self.mass.gather(-1, order).cumsum(-1)

    @property
    def _order(self) -> torch.Tensor:
        """Pages by pooled mass, the floor's first: int64 `[row, kv_head, page]`."""
        g = self.recording.geometry
        pooled = self.mass.unflatten(1, (g.kv_heads, g.group)).sum(2)
        return torch.where(self.floor[:, None], torch.inf, pooled).argsort(-1, descending=True)

    @property
    def ranks(self) -> torch.Tensor:
        """Place of each page in that order, from 0: int64 `[row, kv_head, page]`."""
        return self._order.argsort(-1)

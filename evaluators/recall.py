"""Recall: the share of dense attention mass that lies on the pages a flow selects.

Queries, keys and dense probabilities are recorded once, while the dense model answers. A candidate is then
scored by running its selection on the recorded queries: the model itself does not run again. Selection goes
through the engine's own `LoadedFlow` and `Selections`, so dense layers, reuse across steps and layers,
carried states and mass feedback behave as in a decode; only the queries and probabilities stay those of
dense attention.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from vortex_core.compiler.interface import BatchView, CompiledFlow, LayerKV
from vortex_core.engine.decode.selection import LoadedFlow, Selections
from vortex_core.engine.kv.blocks import BLOCK_TOKENS, blocks_for
from vortex_core.engine.kv.pool import KVPool
from vortex_core.geometry import Geometry
from vortex_core.ir.crossover import NEVER
from vortex_core.page_list import PageList


class Recorder:
    """Collects the queries of `steps` dense decode steps, and the keys and values behind them.

    Pass it to `Engine.decode` with no flow loaded; `max_new_tokens` must be at least `steps`, and no sequence
    may stop earlier.

    Args:
        scale: what q·k is multiplied by before the softmax.
    """

    def __init__(self, geometry: Geometry, steps: int, scale: float) -> None:
        self.geometry = geometry
        self.steps = steps
        self.scale = scale
        self.queries: list[list[torch.Tensor]] = [[] for _ in range(geometry.layers)]  # [layer][step]
        self.lengths: list[int] = []  # at the last step
        self._k: list[list[torch.Tensor]] = []  # [layer][sequence], [kv_head, token, dim]
        self._v: list[list[torch.Tensor]] = []

    def __call__(self, layer: int, q: torch.Tensor, kv: LayerKV, view: BatchView) -> None:
        """See `Engine.decode`."""
        done = self.queries[layer]
        if len(done) == self.steps:
            return
        done.append(q.clone())
        if len(done) < self.steps:
            return
        self.lengths = view.lengths.tolist()
        keys, values = [], []
        for table, length in zip(view.block_table, self.lengths, strict=True):
            keys.append(kv.k[:, table].flatten(1, 2)[:, :length].clone())
            values.append(kv.v[:, table].flatten(1, 2)[:, :length].clone())
        self._k.append(keys)
        self._v.append(values)

    def finish(self) -> Recording:
        """What was recorded, with the dense probabilities computed."""
        assert self.lengths and all(len(q) == self.steps for q in self.queries), "the decode was too short"
        g = self.geometry
        counts = [blocks_for(length) for length in self.lengths]
        device, dtype = self._k[0][0].device, self._k[0][0].dtype
        pool = KVPool(g, sum(counts), dtype, device)
        starts = [sum(counts[:i]) * BLOCK_TOKENS for i in range(len(counts))]
        for layer in range(g.layers):
            for b, start in enumerate(starts):
                k, v = self._k[layer][b], self._v[layer][b]
                pool.k[layer, :, start : start + k.shape[1]] = k
                if not g.is_mla:
                    pool.v[layer, :, start : start + v.shape[1]] = v
        self._k, self._v = [], []
        recording = Recording(
            g, pool, tuple(self.lengths), tuple(starts), self.steps, self.scale, self.queries, []
        )
        with torch.inference_mode():
            for layer in range(g.layers):
                recording.probabilities.append([recording.attend(layer, s) for s in range(self.steps)])
        return recording


@dataclass(frozen=True)
class Recording:
    """Dense attention of a batch of prompts over a few decode steps.

    Attributes:
        pool: keys and values, one contiguous run per prompt.
        lengths: tokens of each prompt at the last step.
        starts: first slot of each prompt.
        steps: decode steps.
        scale: what q·k is multiplied by before the softmax.
        queries: `[layer][step]`, `[prompt, q_head, dim]`, rotated.
        probabilities: `[layer][step]`, float32 `[prompt, q_head, max token]`: dense softmax, 0 past the end.
    """

    geometry: Geometry
    pool: KVPool
    lengths: tuple[int, ...]
    starts: tuple[int, ...]
    steps: int
    scale: float
    queries: list[list[torch.Tensor]]
    probabilities: list[list[torch.Tensor]]

    @property
    def prompts(self) -> int:
        """Prompts recorded."""
        return len(self.lengths)

    def lengths_at(self, step: int) -> list[int]:
        """Tokens of each prompt at a step."""
        return [length - (self.steps - 1 - step) for length in self.lengths]

    def attend(self, layer: int, step: int) -> torch.Tensor:
        """Dense probabilities of one layer and step."""
        g = self.geometry
        width = blocks_for(max(self.lengths)) * BLOCK_TOKENS
        out = torch.zeros(self.prompts, g.kv_heads * g.group, width, device=self.pool.k.device)
        for b, (start, length) in enumerate(zip(self.starts, self.lengths_at(step), strict=True)):
            keys = self.pool.k[layer, :, start : start + length].float()
            q = self.queries[layer][step][b].float().unflatten(0, (g.kv_heads, g.group))
            scores = torch.einsum("hgd,htd->hgt", q, keys) * self.scale
            out[b, :, :length] = torch.softmax(scores, -1).flatten(0, 1)
        return out


@dataclass(frozen=True)
class RecallScore:
    """Recall of one candidate, over `[layer, q_head, prompt]` (mean over steps).

    Attributes:
        recall: mass on the selected pages.
        oracle: mass on the best pages of the same number, chosen per kv head with hindsight.
        density: pages that a kv head reads of all pages, per layer: of query heads that select apart, the union.
    """

    recall: torch.Tensor
    oracle: torch.Tensor
    density: torch.Tensor


def measure_recall(compiled: CompiledFlow, recording: Recording) -> RecallScore:
    """Run a flow's selection on recorded queries and add up the dense mass of what it selects."""
    flow = LoadedFlow(compiled, recording.pool, NEVER)
    selections = Selections(flow)
    flow.begin(range(recording.prompts))
    g, size = recording.geometry, flow.page_size
    device = recording.pool.k.device
    shape = (g.layers, g.kv_heads * g.group, recording.prompts)
    recall, oracle = torch.zeros(shape, device=device), torch.zeros(shape, device=device)
    density = torch.zeros(g.layers, device=device)
    first_page = first_pages(recording, size)
    blocks = [
        list(range(start // BLOCK_TOKENS, start // BLOCK_TOKENS + blocks_for(length)))
        for start, length in zip(recording.starts, recording.lengths, strict=True)
    ]
    with torch.inference_mode():
        flow.cover(
            (b, n - 1) for b, n in zip(blocks, recording.lengths_at(0), strict=True)
        )  # as prefill left it
        for step in range(recording.steps):
            lengths = recording.lengths_at(step)
            ages = [step] * recording.prompts
            completed = [
                start // size + n // size - 1
                for start, n in zip(recording.starts, lengths, strict=True)
                if n % size == 0
            ]
            pages: PageList | None = None
            dense: torch.Tensor | None = None  # mass in the newest dense layer
            for layer in range(g.layers):
                leader = flow.plan.leader[layer]
                mass = recording.probabilities[layer][step].unflatten(-1, (-1, size)).sum(-1)
                if leader is None:
                    recall[layer] += 1
                    oracle[layer] += 1
                    density[layer] += 1
                    dense = mass
                    continue
                q = recording.queries[layer][step]
                if layer == leader:
                    if completed:
                        flow.complete_in(layer, torch.tensor(completed, device=device))
                    view = replace(view_of(flow, first_page, lengths, layer), dense_mass=dense)
                    pages = selections.at(layer, q, view, ages, lengths)
                    if compiled.program.needs_mass:
                        flow.observe(layer, pages, _observed(pages, mass, first_page, g))
                assert pages is not None
                found, best = _captured(pages, mass, first_page, lengths, size, g)
                recall[layer] += found.T
                oracle[layer] += best.T
                read = pages.read_by(g.kv_heads)
                density[layer] += read.sum() / (read.shape[1] * sum(-(-n // size) for n in lengths))
    return RecallScore(*((x / recording.steps).cpu() for x in (recall, oracle, density)))


def first_pages(recording: Recording, page_size: int) -> torch.Tensor:
    """int64 `[prompt]`: the physical page where each prompt begins."""
    return torch.tensor([n // page_size for n in recording.starts], device=recording.pool.k.device)


def view_of(flow: LoadedFlow, first_page: torch.Tensor, lengths: list[int], layer: int) -> BatchView:
    """The prompts at some lengths as a leader's selection sees them; `first_page`: of each, see `first_pages`."""
    longest = max(lengths)
    width = -(-longest // flow.page_size // 16) * 16  # as wide as an engine's, which Triton compiles for
    device = first_page.device
    logical = torch.arange(width, device=device).expand(len(lengths), -1)
    counts = torch.tensor([-(-n // flow.page_size) for n in lengths], device=device)
    table = first_page[:, None] + torch.minimum(logical, counts[:, None] - 1)
    budgets = torch.tensor(flow.budgets(lengths, flow.plan.budget_row(layer)), device=device)
    return BatchView(table, torch.tensor(lengths, device=device), budgets, longest)


def _chosen(pages: PageList, first_page: torch.Tensor, width: int) -> torch.Tensor:
    """Which logical pages are selected: bool `[prompt, head, width]`."""
    logical = (pages.page_ids - first_page[:, None, None]).clamp(0, width - 1)
    device = logical.device
    real = torch.arange(logical.shape[-1], device=device) < pages.counts[..., None]
    hits = torch.zeros(*logical.shape[:2], width, dtype=torch.int64, device=device)
    hits = hits.scatter_add(-1, logical, real.long())
    return hits > 0


def _captured(
    pages: PageList,
    mass: torch.Tensor,
    first_page: torch.Tensor,
    lengths: list[int],
    size: int,
    geometry: Geometry,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mass on the selected pages, and on the best as many pages; both `[prompt, q_head]`."""
    q_heads, width = mass.shape[1:]
    chosen = _chosen(pages, first_page, width)
    share = q_heads // pages.heads  # query heads that follow one selection
    found = (mass * chosen.repeat_interleave(share, 1)).sum(-1)
    pooled = mass.unflatten(1, (pages.heads, share)).sum(2)  # what one selection serves, together
    last = (
        torch.tensor([-(-n // size) - 1 for n in lengths], device=mass.device)
        .view(-1, 1, 1)
        .expand(-1, pages.heads, 1)
    )
    # The newest page is never left out, whatever its mass.
    order = pooled.scatter(-1, last, torch.inf).argsort(-1, descending=True)
    ranked = mass.gather(-1, order.repeat_interleave(share, 1)).cumsum(-1)
    counts = pages.counts.repeat_interleave(share, 1)
    best = ranked.gather(-1, (counts - 1).clamp_min(0)[..., None])[..., 0]
    return found, best


def _observed(
    pages: PageList, mass: torch.Tensor, first_page: torch.Tensor, geometry: Geometry
) -> torch.Tensor:
    """The softmax probability each selected page would have received, `[prompt, q_head, selected]`."""
    share = mass.shape[1] // pages.heads
    logical = (pages.page_ids - first_page[:, None, None]).clamp(0, mass.shape[-1] - 1)
    real = torch.arange(logical.shape[-1], device=logical.device) < pages.counts[..., None]
    picked = mass.gather(-1, logical.repeat_interleave(share, 1)) * real.repeat_interleave(share, 1)
    return picked / picked.sum(-1, keepdim=True).clamp_min(1e-30)

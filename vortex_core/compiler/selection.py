"""From scores to page lists, vectorised: total order (score, then lower page), forced pages, budgets,
top-p."""

from __future__ import annotations

import torch

from vortex_core.compiler.interface import BatchView
from vortex_core.ir.crossover import EVERYTHING
from vortex_core.ir.graph import Graph, Node
from vortex_core.ir.knobs import Knobs
from vortex_core.page_list import PageList


def total_pages(lengths: torch.Tensor, page_size: int) -> torch.Tensor:
    """Pages of each sequence, the partial one included."""
    return (lengths + page_size - 1) // page_size


def forced_mask(index: torch.Tensor, count: torch.Tensor, knobs: Knobs) -> torch.Tensor:
    """`[batch, page]`: pages kept by rule. `index`: `[page]`, logical pages; `count`: `[batch, 1]`, those there are."""
    return (index < count) & ((index < knobs.keep_first) | (index >= count - knobs.keep_last))


def share_of(room: torch.Tensor, fraction: float) -> torch.Tensor:
    """Pages of a budget's free `room` that a stream may use, rounded up. In whole ten-thousandths, so that every
    backend agrees: 0.55 of 100 is 55, not 56."""
    return (room * round(fraction * 10_000) + 9_999) // 10_000


def evaluate_selection(
    graph: Graph,
    scores: dict[int, torch.Tensor],
    view: BatchView,
    knobs: Knobs,
    complete: torch.Tensor,
    heads: int,
) -> torch.Tensor:
    """The result node as a mask `[batch, rows, pages]` over logical pages, forced pages included.

    Args:
        graph: the index graph.
        scores: score values by node number, `[batch, kv_head, page]` or `[batch, kv_head, page, head]`.
        complete: int64 `[batch]`, scored pages.
        heads: kv heads.
    """
    total = total_pages(view.lengths, knobs.page_size).unsqueeze(1)
    index = torch.arange(-(-view.max_length // knobs.page_size), device=total.device)
    forced = forced_mask(index, total, knobs)
    candidate = (index < complete.unsqueeze(1)) & ~forced
    room = (view.budgets - forced.sum(1)).clamp(min=0)

    def visit(i: int) -> torch.Tensor:
        node = graph.nodes[i]
        if node.op == "everything":
            return (index < total).unsqueeze(1).expand(-1, heads, -1)
        if node.op == "residual":
            return visit(node.inputs[0])
        if node.op == "union":
            return visit(node.inputs[0]) | visit(node.inputs[1])
        if node.op == "refine":
            coarse, fine = (scores[j] for j in node.inputs)
            share = share_of(room, node.attr.get("fraction", 1.0))
            among = _choose(node, coarse, candidate.unsqueeze(1), share * node.attr["candidates"])
            mask = _choose(node, fine, among, share)
        else:
            limit = share_of(room, node.attr.get("fraction", 1.0))
            mask = _choose(node, scores[node.inputs[0]], candidate.unsqueeze(1), limit)
        return mask | forced.unsqueeze(1)

    assert graph.result is not None
    chosen = visit(graph.result)
    if not view.longest_whole:  # on a CPU a step is as long as its operators are many
        return chosen
    whole = (view.budgets >= EVERYTHING).unsqueeze(1) & (index < total)
    return chosen | whole.unsqueeze(1)


def _choose(node: Node, score: torch.Tensor, candidate: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
    """The best of some pages. `candidate`: `[batch, row or 1, page]`; `room`: pages a row may choose, `[batch]`."""
    if score.dim() == 4:  # one selection per query head: rows are kv_head x head
        score = score.permute(0, 1, 3, 2).flatten(1, 2)
    share = node.attr.get("share")
    if share is not None:
        pooled = score.amax(1, keepdim=True) if share == "max" else score.mean(1, keepdim=True)
        score = pooled.expand_as(score)
    batch, rows, pages = score.shape
    width = candidate.shape[-1]
    lowest = torch.finfo(score.dtype).min
    # NaN and -inf rank last among candidates but above whatever is no candidate; inf is the largest number.
    clean = torch.where(torch.isnan(score), lowest, score).clamp(min=lowest, max=-lowest)
    full = clean.new_full((batch, rows, width), -torch.inf)
    full[..., :pages] = clean
    full = torch.where(candidate, full, -torch.inf)
    limit = torch.minimum(room.view(-1, 1), candidate.sum(-1)).unsqueeze(-1)
    ranked, order = torch.sort(full, dim=-1, descending=True, stable=True)
    keep = torch.arange(width, device=score.device) < limit
    if node.op == "threshold":
        keep = keep & (ranked >= node.attr["at"])
    if node.op == "topp":
        probability = torch.softmax(
            ranked.clamp(min=lowest).masked_fill(ranked == -torch.inf, -torch.inf), -1
        )
        probability = torch.nan_to_num(probability)
        keep = keep & (probability.cumsum(-1) - probability < node.attr["p"])
    return torch.zeros_like(full, dtype=torch.bool).scatter(-1, order, keep.expand_as(order))


def page_list(mask: torch.Tensor, view: BatchView, page_size: int) -> PageList:
    """Physical pages of a mask `[batch, rows, pages]`, in logical order."""
    counts = mask.sum(-1)
    longest = int(counts.max())
    logical = torch.sort((~mask).to(torch.uint8), dim=-1, stable=True).indices[..., :longest]
    table = view.block_table[:, : mask.shape[-1]].unsqueeze(1).expand(-1, mask.shape[1], -1)
    ids = table.gather(-1, logical)
    last = (view.lengths - 1) % page_size + 1
    lengths = (counts - 1) * page_size + last.unsqueeze(1)
    return PageList(ids.to(torch.int32), lengths.to(torch.int32), page_size)

"""Parity: a backend must select the pages that the oracle selects, on random ragged batches.

States are compared first, each within the rounding of its storage dtype; then both backends select from the
same states, so that a value that rounds to the other side of a quantum is not taken for a wrong selection.
Selected sets must be equal up to ties: a page may be exchanged for one whose oracle score is as good.
A backend on a GPU gets its inputs in bf16, as the engine feeds it; the oracle gets the same rounded numbers on the CPU.
Rows may attend half of their pages where the budget allows as many, so that every cut is exercised; never more than the
budget, for which a backend may have room and for no more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from vortex_core.compiler import backends
from vortex_core.compiler.interface import BatchView, LayerKV
from vortex_core.compiler.oracle import OracleFlow
from vortex_core.compiler.states import TorchStates
from vortex_core.geometry import Geometry
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import Program
from vortex_core.page_list import PageList

STEPS = 2  # decode steps per seed: carried states are read back at the second

# Largest difference of two correctly rounded results, as a share of the row's largest magnitude. `bits` keeps
# signs, of which those of values near zero may flip; see `_states_differ`.
_ROUNDING = {
    "fp32": 1e-4,
    "bf16": 2e-2,
    "fp16": 2e-3,
    "fp8_e4m3": 0.15,
    "fp8_e5m2": 0.3,
    "int8": 0.02,
    "int4": 0.35,
    "int3": 0.35,
    "int2": 0.75,
}
_FLIPPED_BITS = 0.02
_MASS_ROUNDING = 2e-2  # of a log weight: products of bf16 operands


@dataclass(frozen=True)
class Parity:
    """What a comparison found.

    Attributes:
        rows: selections compared (sequence x head x step x seed).
        differing: rows whose sets differ beyond ties.
        tied: rows whose sets differ by ties only.
        states: names of states that differ beyond rounding.
        example: the first difference, in words.
        nonfinite: scores of the oracle that were NaN or infinite.
    """

    rows: int
    differing: int
    tied: int
    states: tuple[str, ...]
    example: str
    nonfinite: int

    @property
    def holds(self) -> bool:
        """No difference beyond rounding and ties."""
        return self.differing == 0 and not self.states


def compare(
    program: Program,
    knobs: Knobs,
    geometry: Geometry,
    *,
    backend: str,
    pages: tuple[float, ...],
    seeds: tuple[int, ...],
    tie_tolerance: float,
    device: str = "cpu",
) -> Parity:
    """Compare a backend with the oracle on one layer of a model's geometry.

    Args:
        pages: length of each sequence at the first step, in pages; rounded up to tokens.
        tie_tolerance: scores closer than this share of a row's score range count as tied.
        device: where `backend` runs. The oracle runs on the CPU.

    Raises:
        VortexError: where the program does not fit the geometry.
    """
    ours = backends.get(backend).compile(program, knobs, geometry)
    oracle = backends.get("oracle").compile(program, knobs, geometry)
    assert isinstance(oracle, OracleFlow)
    lengths = tuple(max(1, math.ceil(n * knobs.page_size)) for n in pages)
    rows = differing = tied = nonfinite = 0
    wrong_states: set[str] = set()
    example = ""
    there = torch.device(device)
    dtype = torch.float32 if there.type == "cpu" else torch.bfloat16
    for seed in seeds:
        batch = _RaggedBatch(knobs, geometry, lengths, seed, dtype)
        kv = LayerKV(batch.kv.k.to(there, dtype), batch.kv.v.to(there, dtype))
        if geometry.is_mla:
            kv = LayerKV(kv.k, kv.k[..., : geometry.value_dim])
        mine = ours.new_states(batch.pages, there, batch.seats)
        assert isinstance(mine, TorchStates)
        # A backend may have room for a few more.
        theirs = oracle.new_states(mine.pages, torch.device("cpu"), mine.seats)
        assert isinstance(theirs, TorchStates)
        for step in range(STEPS):
            complete = batch.completed(step)
            ours.update(mine, kv, complete.to(there), 0)
            oracle.update(theirs, batch.kv, complete, 0)
            wrong_states |= _states_differ(mine, theirs)
            _copy_states(theirs, mine)
            view, q = batch.view(step), batch.query(step)
            if program.reads_dense_mass:
                view = replace(view, dense_mass=batch.dense_mass())
            # A sequence shorter than a page has nothing that could be scored.
            scores = [
                oracle.scores(q, theirs, view, b) if n + step >= knobs.page_size else {}
                for b, n in enumerate(lengths)
            ]
            nonfinite += sum(int((~torch.isfinite(s)).sum()) for found in scores for s in found.values())
            expected = oracle.select(q, theirs, view, 0)
            chosen = _on_cpu(ours.select(q.to(there, dtype), mine, _view_on(view, there), 0))
            for b in range(len(lengths)):
                for row in range(expected.heads):
                    rows += 1
                    a, e = _logical(chosen, view, b, row), _logical(expected, view, b, row)
                    if a == e:
                        continue
                    if _is_tie(program, scores[b], a, e, row, tie_tolerance):
                        tied += 1
                    else:
                        differing += 1
                        where = f"length {int(view.lengths[b])}, row {row}"
                        example = example or f"{where}: {sorted(a - e)} instead of {sorted(e - a)}"
            if program.residual is not None and (
                gap := _masses_differ(chosen, expected, view, knobs.page_size)
            ):
                differing += 1
                example = example or f"masses of pages left out differ by {gap:.3g}"
            if program.needs_mass:
                mass = batch.mass(expected, step)
                ours.observe(mine, _pages_on(expected, there), mass.to(there), 0)
                oracle.observe(theirs, expected, mass, 0)
    return Parity(rows, differing, tied, tuple(sorted(wrong_states)), example, nonfinite)


class _RaggedBatch:
    """Random keys, values and queries, float32 of numbers that `dtype` holds; physical pages in random order; one
    token more at every step."""

    def __init__(
        self, knobs: Knobs, geometry: Geometry, lengths: tuple[int, ...], seed: int, dtype: torch.dtype
    ) -> None:
        self.knobs, self.geometry, self.lengths = knobs, geometry, lengths
        self.random = torch.Generator().manual_seed(seed)
        size = knobs.page_size
        per = [-(-(n + STEPS) // size) for n in lengths]
        self.pages = sum(per) + 3  # a few that belong to nobody
        order = torch.randperm(self.pages, generator=self.random)[: sum(per)].split(per)
        self.seats = len(lengths) + 1  # one is free
        width = -(-max(per) // 16) * 16  # as wide as an engine's, which Triton compiles for
        self.table = torch.stack([torch.nn.functional.pad(pages, (0, width - len(pages))) for pages in order])
        g = geometry
        k = self._normal(g.kv_heads, self.pages, size, g.head_dim)
        # Keys of real models have a few large channels; they also spread the scores.
        k[..., :: max(1, g.head_dim // 4)] *= 4.0
        v = k[..., : g.value_dim] if g.is_mla else self._normal(g.kv_heads, self.pages, size, g.value_dim)
        self.kv = LayerKV(k.to(dtype).float(), v.to(dtype).float())
        self.queries = [
            self._normal(len(lengths), g.kv_heads * g.group, g.head_dim).to(dtype).float()
            for _ in range(STEPS)
        ]

    def _normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.random)

    def completed(self, step: int) -> torch.Tensor:
        """Physical pages that are complete at a step and were not before."""
        size = self.knobs.page_size
        pages = []
        for b, n in enumerate(self.lengths):
            before = (n + step - 1) // size if step else 0
            pages += [int(self.table[b, p]) for p in range(before, (n + step) // size)]
        return torch.tensor(pages, dtype=torch.int64)

    def view(self, step: int) -> BatchView:
        """The batch at a step."""
        lengths = [n + step for n in self.lengths]
        longest = max(lengths)
        layers = self.geometry.layers
        allowed = [self.knobs.pages(n, 0, layers) for n in lengths]
        halves = [max(1, -(-n // self.knobs.page_size) // 2) for n in lengths]
        budgets = torch.tensor([min(pair) for pair in zip(allowed, halves, strict=True)])
        seats = torch.arange(self.seats).flip(0)[: len(lengths)]
        return BatchView(self.table, torch.tensor(lengths), budgets, longest, seats=seats)

    def query(self, step: int) -> torch.Tensor:
        """`[batch, q_head, dim]`."""
        return self.queries[step]

    def dense_mass(self) -> torch.Tensor:
        """Random attention mass of a dense layer, `[batch, q_head, page]`."""
        g = self.geometry
        random = torch.rand(len(self.lengths), g.q_heads, self.table.shape[1], generator=self.random)
        return random / random.sum(-1, keepdim=True)

    def mass(self, selected: PageList, step: int) -> torch.Tensor:
        """Random attention mass on the selected pages, `[batch, q_head, max_selected]`."""
        batch, heads, width = selected.page_ids.shape
        q_heads = self.geometry.kv_heads * self.geometry.group
        real = torch.arange(width) < selected.counts[..., None]
        random = torch.rand(batch, q_heads, width, generator=self.random)
        random = random * real.repeat_interleave(q_heads // heads, 1)
        return random / random.sum(-1, keepdim=True).clamp_min(1e-9)


def _on_cpu(pages: PageList) -> PageList:
    return _pages_on(pages, torch.device("cpu"))


def _pages_on(pages: PageList, device: torch.device) -> PageList:
    left = None if pages.left_out is None else pages.left_out.to(device)
    return PageList(pages.page_ids.to(device), pages.lengths.to(device), pages.page_size, left)


def _view_on(view: BatchView, device: torch.device) -> BatchView:
    return BatchView(
        view.block_table.to(device), view.lengths.to(device), view.budgets.to(device), view.max_length,
        dense_mass=None if view.dense_mass is None else view.dense_mass.to(device),
        seats=None if view.seats is None else view.seats.to(device),
    )  # fmt: skip


def _logical(pages: PageList, view: BatchView, b: int, row: int) -> set[int]:
    where = {int(p): i for i, p in reversed(list(enumerate(view.block_table[b].tolist())))}
    return {where[p] for p in pages.page_ids[b, row, : int(pages.counts[b, row])].tolist()}


def _states_differ(mine: TorchStates, theirs: TorchStates) -> set[str]:
    wrong = set()
    for name, field in theirs.fields.items():
        here = mine.fields[name]
        every = torch.arange(field.data.shape[1])
        a = here.read(slice(None), every.to(here.data.device), torch.float64).cpu()
        e = field.read(slice(None), every, torch.float64)
        if field.decl.dtype == "bits":
            differ = float((a != e).double().mean()) > _FLIPPED_BITS
        else:
            scale = e.abs().flatten(2).amax(-1, keepdim=True) if e.dim() > 2 else e.abs()
            gap = (a - e).abs().flatten(2) if e.dim() > 2 else (a - e).abs()
            same = (gap <= _ROUNDING[field.decl.dtype] * scale + 1e-6) | (a == e).reshape_as(gap)
            both_nan = (torch.isnan(a) & torch.isnan(e)).reshape_as(gap)
            differ = not bool((same | both_nan).all())
        if differ:
            wrong.add(name)
    return wrong


def _masses_differ(ours: PageList, theirs: PageList, view: BatchView, page_size: int) -> float:
    """The largest difference of two log weights of a page that neither lists, in units of 1 and of the weight; 0 where
    all are within rounding."""
    assert ours.left_out is not None and theirs.left_out is not None
    worst = 0.0
    for b, length in enumerate(view.lengths.tolist()):
        pages = view.block_table[b, : length // page_size]
        for h in range(theirs.left_out.shape[1]):
            listed = set()
            for found in (ours, theirs):
                row = h * found.heads // theirs.left_out.shape[1]
                listed |= set(found.page_ids[b, row, : int(found.counts[b, row])].tolist())
            left = [i for i, page in enumerate(pages.tolist()) if page not in listed]
            a, e = (x.left_out[b, h, left].double() for x in (ours, theirs) if x.left_out is not None)
            real = torch.isfinite(e)
            gap = ((a - e).abs() / e.abs().clamp_min(1.0))[real]
            worst = max(worst, float(gap.max()) if len(gap) else 0.0)
    return worst if worst > _MASS_ROUNDING else 0.0


def _copy_states(source: TorchStates, target: TorchStates) -> None:
    for name, field in source.fields.items():
        target.fields[name].data.copy_(field.data)
        if field.scale is not None:
            scale = target.fields[name].scale
            assert scale is not None
            scale.copy_(field.scale)
    if source.mass is not None:
        assert target.mass is not None
        target.mass.copy_(source.mass)


def _is_tie(
    program: Program,
    scores: dict[int, torch.Tensor],
    ours: set[int],
    oracle: set[int],
    row: int,
    tolerance: float,
) -> bool:
    """Whether every exchanged page has, in some score, a neighbour across the oracle's cut that is as good.

    A top-p cut follows a cumulative sum, which may round either way for the page it passes through: there one
    page more or less is a tie as well. Of a selection in two stages the fine score decides; where two pages are as good
    by the coarse one, one or the other may be the candidate that takes a worse page's place.
    """
    selecting = [n for n in program.index.nodes if n.scores]
    if any(n.op == "topp" for n in selecting) and len(ours ^ oracle) == 1:
        return True
    columns = [
        (_row_scores(scores[i], n.attr.get("share"), row), n.attr.get("at"))
        for n in selecting
        for i in n.scores[-1:]
    ]

    def as_good(values: torch.Tensor, page: int, others: Iterable[float]) -> bool:
        """Whether some other number is as good as a page's score, or that is none."""
        finite = values[torch.isfinite(values)]
        mine = float(values[page])
        if not len(finite) or not math.isfinite(mine):
            return True
        slack = tolerance * float(finite.max() - finite.min()) + 1e-12
        return any(abs(other - mine) <= slack for other in others)

    def replaces(page: int, other: int) -> bool:
        """Whether a tie of coarse scores may have made a page a candidate, which then was better than another."""
        for node in selecting:
            if node.op == "refine":
                coarse, fine = (_row_scores(scores[i], None, row) for i in node.inputs)
                if max(page, other) < len(fine):
                    tied = as_good(coarse, page, [float(x) for p, x in enumerate(coarse) if p != page])
                    return tied and not float(fine[page]) < float(fine[other])
        return False

    def excused(page: int) -> bool:
        for values, at in columns:
            if page < len(values):
                across = [float(x) for p, x in enumerate(values) if (p in oracle) != (page in oracle)]
                if as_good(values, page, across if at is None else [*across, at]):
                    return True
        return False

    def swapped(page: int) -> bool:
        others = (oracle - ours) if page in ours else (ours - oracle)
        return any(replaces(page, other) or replaces(other, page) for other in others)

    return all(excused(page) or swapped(page) for page in ours ^ oracle)


def _row_scores(scores: torch.Tensor, share: str | None, row: int) -> torch.Tensor:
    """Scores of one selecting row, `[page]`; `scores`: `[kv_head, page(, head)]`."""
    if scores.dim() == 3:
        scores = scores.transpose(1, 2).flatten(0, 1)
    if share is not None:
        scores = (scores.amax(0) if share == "max" else scores.mean(0))[None]
    return scores[row if share is None else 0]

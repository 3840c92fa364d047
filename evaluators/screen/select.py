"""A flow's selections on recorded queries, at several budgets at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch

from evaluators.screen.dense import DenseRows
from vortex_core.compiler.interface import BatchView
from vortex_core.compiler.torch_backend import TorchFlow
from vortex_core.ir.budget import Budget
from vortex_core.ir.flow import Flow
from vortex_core.ir.layers import LayerPlan

_AT_ONCE = 192 << 20  # bytes of one float32 value of a program: pages and sequences come in so many pieces


def evenly_among(items: Sequence[int], count: int) -> tuple[int, ...]:
    """`count` of some numbers, evenly spaced; all of them where there are no more."""
    if len(items) <= count:
        return tuple(items)
    return tuple(items[int((i + 0.5) * len(items) / count)] for i in range(count))


def remembers(flow: Flow) -> bool:
    """Whether what it selects depends on the steps before."""
    return flow.program.remembers or flow.knobs.reuse_steps > 1


def tells_layers_apart(flow: Flow, layers: int) -> bool:
    """Whether it may treat some layers otherwise than others: then a sample of layers says nothing of the rest."""
    own = any(axis == "layer" for param in flow.program.params for axis, _ in param.axes)
    return own or flow.knobs.reuse_layers > 1 or LayerPlan(flow.program, flow.knobs, layers).budget_varies


def _parts(items: list[torch.Tensor], count: int) -> list[list[torch.Tensor]]:
    size = len(items) // count
    return [items[i * size : (i + 1) * size] for i in range(count)]


@dataclass(frozen=True)
class Selected:
    """Pages selected for every row.

    Attributes:
        masks: bool `[budget, row, q_head, page]`.
        allowed: int64 `[budget, row]`, pages that the budget lets a row attend.
        left_out: of a flow with a residual, `[budget or 1, row, q_head, page]`: log weights of pages that are not
            selected, and `[row, kv_head, page, value_dim]`, their values.
    """

    masks: torch.Tensor
    allowed: torch.Tensor
    left_out: tuple[torch.Tensor, torch.Tensor] | None = None


class Selector:
    """One flow on the rows of a recording.

    Args:
        rows: of the layers to be scored; leaders of these are among them.
        budgets: expressions; None stands for the flow's own.
    """

    def __init__(
        self, flow: Flow, compiled: TorchFlow, rows: DenseRows, budgets: Sequence[str | None]
    ) -> None:
        self.flow, self.compiled, self.rows, self.budgets = flow, compiled, rows, tuple(budgets)
        self._masses: list[
            torch.Tensor
        ] = []  # log weights of a residual, as they come: all steps, or one by one
        plan = LayerPlan(flow.program, flow.knobs, rows.recording.geometry.layers)
        self._place = {layer: i for i, layer in enumerate(rows.layers)}
        # By scored layer, the place of the layer whose selection it follows.
        self._leader = [self._place[plan.leader[layer]] for layer in rows.layers]  # type: ignore[index]
        self._sources = [plan.mass_layer.get(plan.leader[layer], 0) for layer in rows.layers]  # type: ignore[arg-type]

    def run(self) -> Selected:
        """Select for all rows."""
        masks = self._in_order() if remembers(self.flow) else self._at_once()
        shape = (len(self.rows.steps), self.rows.recording.prompts, len(self.rows.layers))
        follow = torch.tensor(self._leader, device=self.rows.device)
        masks = masks.unflatten(1, shape)[:, :, :, follow].flatten(1, 3)
        allowed = torch.stack([self._allowed(b, self.rows) for b in self.budgets])
        allowed = allowed.unflatten(1, shape)[..., follow].flatten(1)
        return Selected(masks, allowed, self._left_out())

    def _left_out(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """What stands for the pages that are not selected; such flows let every layer select at every step."""
        residual = self.compiled.program.residual
        if residual is None:
            return None
        count = len(self._masses) // (1 if len(self._masses) == 1 else len(self.rows.steps))
        masses = torch.stack([torch.cat(part) for part in _parts(self._masses, count)])
        value = self._states.fields[residual.state]
        return masses, value.read(slice(None), self.rows.table, torch.float32).transpose(0, 1)

    # ---- without memory: all steps at once

    def _at_once(self) -> torch.Tensor:
        rows = self.rows
        states = self._states = self.compiled.new_states(rows.kv.k.shape[1], rows.device)
        self._update(states, [0] * rows.recording.prompts, rows.recording.lengths)
        return self._choose(states, rows, self.budgets)

    def _update(self, states: object, before: Sequence[int], after: Sequence[int]) -> None:
        """States of the pages that became complete between two lengths of every prompt, in all layers."""
        rows = self.rows
        starts, size = rows.recording.starts, rows.size
        new = [
            start // size + page
            for start, a, b in zip(starts, before, after, strict=True)
            for page in range(a // size, b // size)
        ]
        if not new:
            return
        layers = torch.arange(len(rows.layers), device=rows.device)
        pages = torch.tensor(new, device=rows.device)
        pages = (layers[:, None] * rows.pages_per_layer + pages).flatten()
        of_layer = torch.tensor(rows.layers, device=rows.device).repeat_interleave(len(new))
        g = rows.recording.geometry
        most = max(1, _AT_ONCE // (4 * g.kv_heads * rows.size * g.head_dim))
        for some, layer in zip(pages.split(most), of_layer.split(most), strict=True):
            self.compiled.update(states, rows.kv, some, layer)  # type: ignore[arg-type]

    def _choose(self, states: object, rows: DenseRows, budgets: Sequence[str | None]) -> torch.Tensor:
        """Selections of some rows with the states as they are, `[budget, row, q_head, page]`."""
        longest, steps = int(rows.lengths.max()), len(rows.steps)
        sequences = (
            rows.count // steps
        )  # a prompt in a layer; their tables differ from step to step in padding alone
        q, lengths = rows.q, rows.lengths
        if steps > 1:
            q, lengths = q.unflatten(0, (steps, -1)), lengths.unflatten(0, (steps, -1))
        mass = self._dense_mass(rows)
        if mass is not None and steps > 1:
            mass = mass.unflatten(0, (steps, -1))
        found_scores: dict[int, list[torch.Tensor]] = {i: [] for i in self.compiled.scores}
        tables, layers = rows.table[-sequences:], rows.layer[:sequences]
        for some in torch.arange(sequences, device=rows.device).split(self._sequences_at_once(rows)):
            view = BatchView(
                tables[some],
                lengths[..., some],
                rows.totals,
                longest,
                dense_mass=None if mass is None else mass[..., some, :, :],
                seats=some,
            )
            values = self.compiled.score(q[..., some, :, :], states, view, layers[some])  # type: ignore[arg-type]
            for i, parts in found_scores.items():
                parts.append(values[i])
            del values
        scores = {
            i: torch.cat(parts, q.dim() - 3).flatten(0, q.dim() - 3) for i, parts in found_scores.items()
        }
        residual = self.compiled.program.residual
        if residual is not None and (steps > 1 or rows.steps[0] in self.rows.steps):
            mass = scores[residual.mass].transpose(-1, -2).flatten(1, 2)
            missing = rows.width - mass.shape[-1]  # no complete page
            self._masses.append(torch.nn.functional.pad(mass, (0, missing), value=-torch.inf))
        heads = rows.recording.geometry.q_heads
        found = torch.zeros(len(budgets), rows.count, heads, rows.width, dtype=torch.bool, device=rows.device)
        for i, budget in enumerate(budgets):
            view = BatchView(rows.table, rows.lengths, self._allowed(budget, rows), longest)
            mask = self.compiled.choose(scores, view)
            found[i, :, :, : mask.shape[-1]] = mask.repeat_interleave(heads // mask.shape[1], 1)
        return found

    def _sequences_at_once(self, rows: DenseRows) -> int:
        """Prompts in layers that are scored together, so that what a product of queries and states takes is bounded."""
        g = rows.recording.geometry
        sizes = g.symbols(rows.size)
        widest = max(
            (prod(e.resolve(sizes) for _, e in s.dims) for s in self.compiled.program.page_states), default=1
        )
        one = 4 * len(rows.steps) * g.q_heads * rows.width * max(1, widest)
        return max(1, _AT_ONCE // one)

    def _dense_mass(self, rows: DenseRows) -> torch.Tensor | None:
        """What the dense layer before each row's attends to, `[row, q_head, page]`, for programs that read it."""
        if not self.compiled.program.reads_dense_mass:
            return None
        dense = rows.of_layers(tuple(sorted(set(self._sources))))
        shape = (len(rows.steps), rows.recording.prompts)
        at = torch.tensor([dense.layers.index(layer) for layer in self._sources], device=rows.device)
        return dense.mass.unflatten(0, (*shape, -1))[:, :, at].flatten(0, 2)

    def _allowed(self, budget: str | None, rows: DenseRows) -> torch.Tensor:
        count = rows.recording.geometry.layers
        lengths, layers = rows.lengths.tolist(), rows.layer.tolist()
        knobs = self.flow.knobs if budget is None else self.flow.knobs.with_(budget=budget)
        varies = "layer" in Budget(knobs.budget).names
        asked = [
            (n, layer if varies else 0) for n, layer in zip(lengths, layers, strict=True)
        ]  # an expression costs microseconds, and few of them differ
        pages = {at: knobs.pages(*at, count) for at in set(asked)}
        return torch.tensor([pages[at] for at in asked], device=rows.device)

    # ---- with memory: step after step

    def _in_order(self) -> torch.Tensor:
        """Selections at the scored steps. What a step attends to changes the next one only through attention mass:
        a program that reads it runs once a budget."""
        if not self.compiled.program.needs_mass:
            return self._walk(self.budgets)
        return torch.cat([self._walk([budget]) for budget in self.budgets])

    def _walk(self, budgets: Sequence[str | None]) -> torch.Tensor:
        rows, recording = self.rows, self.rows.recording
        sequences = rows.count // len(rows.steps)
        states = self._states = self.compiled.new_states(rows.kv.k.shape[1], rows.device, sequences)
        done = [n - 1 for n in recording.lengths_at(0)]
        self._update(states, [0] * recording.prompts, done)
        period, kept, found = self.flow.knobs.reuse_steps, None, []
        for step in range(rows.steps[-1] + 1):
            lengths = recording.lengths_at(step)
            self._update(states, done, lengths)
            done = lengths
            now = rows.of_step(step)
            if step % period == 0:
                kept = self._choose(states, now, budgets)
                if self.compiled.program.needs_mass:
                    self._observe(states, kept[0], now)
            else:
                assert kept is not None
                newest = torch.arange(now.width, device=now.device) == now.totals[:, None] - 1
                kept = kept | newest[:, None]
            if step in rows.steps:
                found.append(kept)
        return torch.cat(found, 1)

    def _observe(self, states: object, mask: torch.Tensor, rows: DenseRows) -> None:
        """Hand back the mass that each selected page receives; the others received none."""
        g = rows.recording.geometry
        mass = rows.mass * mask
        mass = (mass / mass.sum(-1, keepdim=True).clamp_min(1e-30)).unflatten(1, (g.kv_heads, g.group))
        real = torch.arange(rows.width, device=rows.device) < rows.totals[:, None]
        values = mass.permute(1, 0, 3, 2)[:, real]  # [kv_head, row and page, group]
        states.mass[:, rows.table[real]] = values  # type: ignore[attr-defined]

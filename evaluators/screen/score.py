"""Scoring a flow on recorded attention: mass, attention output, and what of its error reaches the logits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch

from evaluators.screen.dense import DenseRows
from evaluators.screen.held import rows_held
from evaluators.screen.recording import AttentionRecording
from evaluators.screen.select import Selected, Selector, evenly_among, tells_layers_apart
from vortex_core.compiler.torch_backend import TorchBackend
from vortex_core.ir.flow import Flow
from vortex_core.ir.layers import LayerPlan

DEFAULT_BUDGETS = ("0.05 * length", "0.1 * length", "0.2 * length")
LAYERS = 8


@dataclass(frozen=True)
class ScreenPoint:
    """A flow at one budget.

    Attributes:
        budget: the expression.
        density: pages read by a kv head, of all pages, over all layers of the model; a dense layer reads all.
        recall: dense attention mass on the selected pages.
        beyond: mass that the selection adds to that of the first page and the newest tokens, of what the best pages
            would add that the budget allows, chosen with hindsight per kv head. Below 0 where it leaves those out.
        beyond_se: its standard error over prompts (jackknife); None with one prompt.
        output_error: squared error of the attention output over its squared length.
        output_se: its standard error over prompts (jackknife); None with one prompt.
        logit_error: predicted divergence (nats) of the next token's distribution, to first order in the outputs' errors
            and as if layers erred independently; None where the recording has no slopes.
        by_head: `beyond`, by scored layer and query head.
        error_by_head: `output_error`, likewise.
    """

    budget: str
    density: float
    recall: float
    beyond: float
    beyond_se: float | None
    output_error: float
    output_se: float | None
    logit_error: float | None
    by_head: list[list[float]]
    error_by_head: list[list[float]]


@dataclass(frozen=True)
class ScreenScore:
    """What the screen says of a flow.

    Attributes:
        points: one for each of the screener's budgets, in order.
        own: at the flow's own budget; None where it was not asked.
        layers: the layers that were scored; none for dense attention.
        seconds: of computing.
    """

    points: tuple[ScreenPoint, ...]
    own: ScreenPoint | None
    layers: tuple[int, ...]
    seconds: float

    def at(self, budget: str) -> ScreenPoint:
        """The point of one of the screener's budgets.

        Raises:
            KeyError: if it was not asked.
        """
        for point in self.points:
            if point.budget == budget:
                return point
        raise KeyError(budget)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


class Screener:
    """Scores flows on one recording. Not thread-safe; one per process.

    Args:
        recording: of the target model.
        budgets: expressions, each below the length; all are scored at once.
        layers: sparse layers looked at, evenly spaced. A flow that may tell layers apart is scored in all of them.
    """

    def __init__(
        self,
        recording: AttentionRecording,
        *,
        budgets: Sequence[str] = DEFAULT_BUDGETS,
        layers: int = LAYERS,
    ) -> None:
        self.recording = recording
        self.budgets = tuple(budgets)
        self.layers = layers

    @torch.inference_mode()
    def score(self, flow: Flow, *, own: bool = True) -> ScreenScore:
        """Score a flow.

        Args:
            own: also at the flow's own budget.

        Raises:
            VortexError: `VF013` or `VF064` for a program that does not fit the model.
        """
        return self._scored(flow, own, lambda selected, rows: selected)

    @torch.inference_mode()
    def hindsight(self, flow: Flow) -> tuple[ScreenPoint, ...]:
        """What a selection would score that knows the attention, at the screener's budgets under the flow's knobs: the
        pages of each kv head with most mass, those of the floor first. `beyond` is then 1. By the error of the output
        it is what programs can hope for: not a bound, as mass is not that error, but near one."""

        def best(selected: Selected, rows: DenseRows) -> Selected:
            group = self.recording.geometry.group
            allowed = torch.minimum(selected.allowed, rows.totals)[..., None, None]
            masks = (rows.ranks < allowed).repeat_interleave(group, 2)
            return Selected(masks, selected.allowed)

        return self._scored(flow, False, best).points

    def _scored(
        self, flow: Flow, own: bool, chosen_by: Callable[[Selected, DenseRows], Selected]
    ) -> ScreenScore:
        """Score what is made of a flow's selection."""
        started = time.perf_counter()
        g = self.recording.geometry
        device = self.recording.k.device
        # Operators make constants where the tensors are.
        with nullcontext() if device.type == "cpu" else device:
            compiled = TorchBackend().compile(flow.program, flow.knobs, g)
            plan = LayerPlan(compiled.program, flow.knobs, g.layers)
            sparse = [i for i, leader in enumerate(plan.leader) if leader is not None]
            budgets: list[str | None] = [*self.budgets, *([None] if own else [])]
            if not sparse:
                points = [_dense_point(flow.knobs.budget if b is None else b) for b in budgets]
                return self._score(points, own, (), started)
            chosen = (
                tuple(sparse) if tells_layers_apart(flow, g.layers) else evenly_among(sparse, self.layers)
            )
            rows = self._rows_of(flow.knobs.page_size, chosen)
            selected = chosen_by(Selector(flow, compiled, rows, budgets).run(), rows)
            points = self._points(flow, rows, selected, budgets, len(sparse))
        return self._score(points, own, chosen, started)

    @staticmethod
    def _score(points: list[ScreenPoint], own: bool, layers: tuple[int, ...], started: float) -> ScreenScore:
        last = points.pop() if own else None
        return ScreenScore(tuple(points), last, layers, time.perf_counter() - started)

    def _rows_of(self, size: int, layers: tuple[int, ...]) -> DenseRows:
        r = self.recording
        return rows_held((id(r), r.key, size, layers), lambda: DenseRows(r, size, layers, r.at))

    def _points(
        self,
        flow: Flow,
        rows: DenseRows,
        selected: Selected,
        budgets: Sequence[str | None],
        sparse: int,
    ) -> list[ScreenPoint]:
        g, r = self.recording.geometry, self.recording
        shape = (len(rows.steps), r.prompts, len(rows.layers), g.q_heads)
        masks = selected.masks
        read = masks.unflatten(2, (g.kv_heads, g.group)).any(3).sum(-1)  # [budget, row, kv_head]
        most = torch.maximum(read, selected.allowed[..., None]).clamp(max=rows.totals[:, None])
        most = most.repeat_interleave(g.group, 2)  # [budget, row, q_head]
        captured = (masks * rows.mass).sum(-1)
        best = rows.best.expand(len(budgets), -1, -1, -1).gather(-1, most[..., None] - 1)[..., 0]
        outs = rows.attended(masks.permute(1, 2, 0, 3))  # [row, q_head, budget, value_dim]
        weights = captured.permute(1, 2, 0)
        if selected.left_out is not None:
            added, more = _entries(selected, rows)
            outs, weights = outs + added, weights + more
        outs = outs / weights[..., None].clamp_min(1e-30)
        errors = outs - rows.out[:, :, None]
        squared = errors.square().sum(-1).permute(2, 0, 1)
        size = rows.out.square().sum(-1)
        divergence = self._divergence(errors, rows, sparse)
        points = []
        for i, budget in enumerate(budgets):
            gain = (captured[i] - rows.floor_mass).view(shape)
            room = (best[i] - rows.floor_mass).view(shape)
            share = float(read[i].sum() / (rows.totals.sum() * g.kv_heads))
            points.append(
                ScreenPoint(
                    budget=flow.knobs.budget if budget is None else budget,
                    density=(share * sparse + g.layers - sparse) / g.layers,
                    recall=float(captured[i].mean()),
                    beyond=float(_ratio(gain.sum(), room.sum())),
                    beyond_se=_jackknife(gain.sum((0, 2, 3)), room.sum((0, 2, 3))),
                    output_error=float(squared[i].sum() / size.sum()),
                    output_se=_jackknife(
                        squared[i].view(shape).sum((0, 2, 3)), size.view(shape).sum((0, 2, 3))
                    ),
                    logit_error=None if divergence is None else float(divergence[i]),
                    by_head=_rounded(_ratio(gain.sum((0, 1)), room.sum((0, 1)))),
                    error_by_head=_rounded(
                        squared[i].view(shape).sum((0, 1)) / size.view(shape).sum((0, 1)).clamp_min(1e-30)
                    ),
                )
            )
        return points

    def _divergence(self, errors: torch.Tensor, rows: DenseRows, sparse: int) -> torch.Tensor | None:
        """Mean divergence of the next token's distribution by budget, from the outputs' errors times the slopes."""
        slopes, logprobs = self.recording.slopes, self.recording.logprobs
        if slopes is None or logprobs is None:
            return None
        layers = torch.tensor(rows.layers, device=errors.device)
        errors = errors.unflatten(0, (len(rows.steps), self.recording.prompts, len(rows.layers)))
        # [token, step, prompt, budget]; layers not looked at err as those that are, with signs of their own.
        change = torch.einsum("kslhqd,slhqbd->kslb", slopes[:, :, :, layers], errors)
        change = change * (sparse / len(rows.layers)) ** 0.5
        p = logprobs.exp()
        rest = (1 - p.sum(0)).clamp_min(1e-9)  # all other tokens, taken as one that does not change
        moved = torch.logsumexp(
            torch.cat(
                ((logprobs[..., None] + change), rest.log()[None, ..., None].expand(1, *change.shape[1:]))
            ),
            0,
        )
        # KL(dense | sparse) = sum p (log p - log p') = log Z' - sum p * change
        return (moved - (p[..., None] * change).sum(0)).mean((0, 1))


def _dense_point(budget: str) -> ScreenPoint:
    return ScreenPoint(budget, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, [], [])


def _entries(selected: Selected, rows: DenseRows) -> tuple[torch.Tensor, torch.Tensor]:
    """What entries for pages left out add to `[row, q_head, budget, value_dim]` and to its weights, where dense
    attention weighs 1 in all."""
    assert selected.left_out is not None
    mass, values = selected.left_out
    complete = torch.arange(rows.width, device=rows.device) < (rows.lengths // rows.size)[:, None]
    left = ~selected.masks & complete[:, None]
    relative = torch.where(torch.isnan(mass), -torch.inf, mass) - rows.lse[..., None]
    weights = torch.where(left, relative.clamp(max=60.0).exp(), 0.0).permute(1, 2, 0, 3)
    values = values.repeat_interleave(weights.shape[1] // values.shape[1], 1)
    return weights @ values, weights.sum(-1)


def _ratio(gain: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
    """A share of what could be gained; 1 where there is nothing to gain."""
    return torch.where(room > 1e-6, gain / room.clamp_min(1e-6), 1.0)


def _jackknife(gain: torch.Tensor, room: torch.Tensor) -> float | None:
    """Standard error of a ratio of sums over prompts."""
    n = len(gain)
    if n < 2:
        return None
    left = _ratio(gain.sum() - gain, room.sum() - room)
    return float(((left - left.mean()).square().sum() * (n - 1) / n).sqrt())


def _rounded(x: torch.Tensor) -> list[list[float]]:
    return [[round(v, 4) for v in row] for row in x.tolist()]

"""One program on recorded attention, in any process that has the recordings' files: no model, no engine."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluators.results import Failure, Metric, StageResult
from evaluators.screen.held import free_rows
from evaluators.worker import run_cpu_stage
from vortex_core.codes import FLOW_EXHAUSTS_MEMORY
from vortex_core.device_errors import device_errors
from vortex_core.errors import VortexError
from vortex_core.ir.cost import kv_row_bytes, state_bytes_per_token
from vortex_core.ir.flow import Flow

if TYPE_CHECKING:
    from evaluators.plan import EvaluationPlan
    from evaluators.screen import AttentionRecording, Screener, ScreenPoint, ScreenScore
    from vortex_core.geometry import Geometry

BUDGET = "0.1 * length"
"""The budget at which programs of any budget are compared; `screen_own_beyond` is at their own."""
_WORST = 6  # heads named to whoever writes the next program


def screen(
    stage: str,
    flow: Flow,
    model: str,
    plan: EvaluationPlan,
    seed: int,
    recordings: tuple[str, ...],
    layers: int,
    answers: str | None = None,
) -> StageResult:
    """The stages `static` and `modelled`, and what the flow's selection does to recorded attention.

    Args:
        stage: name of the result.
        model: whose speed counts.
        recordings: files; the mean over them counts, the first is of the model that answers.
        layers: scored in each.
        answers: model that answers, where it is not `model`.

    Returns:
        A result with `screen_beyond` (95% interval by prompts), `screen_own_beyond`, `screen_own_output` (what is left
        of the attention output when its squared error is taken off), `screen_output_error`, `screen_logit_error` where
        it was recorded, `state_share` and the modelled speeds. A program that does not fit a
        model fails.
    """
    seconds = 0.0
    metrics: dict[str, Metric] = {}
    info: dict[str, Any] = {}
    for name in ("static", "modelled"):
        result = run_cpu_stage(name, flow, model, plan, seed, answers)
        seconds += result.seconds
        if not result.passed:
            return replace(result, stage=stage, seconds=seconds)
        metrics |= result.metrics
    try:
        points, own = [], []
        for path in recordings:
            score = _scored(path, layers, flow)
            seconds += score.seconds
            points.append(score.at(BUDGET))
            own.append(score.own or score.at(BUDGET))
            info[Path(path).stem] = _worst(own[-1], score.layers)
        share = state_share(flow, _screener(recordings[0], layers).recording.geometry)
    except VortexError as error:
        return StageResult(stage, passed=False, failure=Failure.of(error), seconds=seconds)
    metrics |= _metrics(points, own)
    metrics["state_share"] = Metric(share, unit="of KV bytes", higher_is_better=False, how="modelled")
    return StageResult(stage, passed=True, metrics=metrics, info=info, seconds=seconds)


def _scored(path: str, layers: int, flow: Flow) -> ScreenScore:
    """A flow on a recording. What finds no memory beside the rows that are held for others is tried once without them.

    Raises:
        VortexError: `VE053` where a flow needs more than this process may take; whatever else is wrong with it.
    """
    doing = f"the screen in {layers} layers"
    screener = _screener(path, layers)
    try:
        with device_errors(doing, flow=True):
            return screener.score(flow)
    except VortexError as error:
        if error.code != FLOW_EXHAUSTS_MEMORY.code:
            raise
    free_rows()
    with device_errors(doing, flow=True):
        return screener.score(flow)


@lru_cache(maxsize=8)
def _screener(path: str, layers: int) -> Screener:
    from evaluators.screen import Screener

    return Screener(_recording(path), budgets=(BUDGET,), layers=layers)


@lru_cache(maxsize=4)
def _recording(path: str) -> AttentionRecording:
    """One recording, however many numbers of layers are scored in it."""
    from evaluators.screen import AttentionRecording

    return AttentionRecording.load(Path(path))


def state_share(flow: Flow, geometry: Geometry) -> float:
    """Bytes of page states over bytes of keys and values."""
    kept = state_bytes_per_token(flow.program, flow.knobs, geometry)
    return kept / kv_row_bytes(geometry, flow.knobs.kv_bytes)


def _metrics(points: list[ScreenPoint], own: list[ScreenPoint]) -> dict[str, Metric]:
    """Means over recordings; the intervals are of independent ones."""
    found = {
        "screen_beyond": _mean_of([(p.beyond, p.beyond_se) for p in points], "of what hindsight adds"),
        "screen_own_beyond": _mean_of([(p.beyond, p.beyond_se) for p in own], "of what hindsight adds"),
        "screen_own_output": _mean_of(
            [(1.0 - p.output_error, p.output_se) for p in own], "of squared length"
        ),
    }
    found["screen_output_error"] = Metric(
        _mean([p.output_error for p in own]), unit="of squared length", higher_is_better=False, how="recorded"
    )
    logit = [p.logit_error for p in own if p.logit_error is not None]
    if len(logit) == len(own):
        found["screen_logit_error"] = Metric(
            _mean(logit), unit="nats", higher_is_better=False, how="recorded"
        )
    found["density"] = Metric(_mean([p.density for p in own]), higher_is_better=False, how="recorded")
    return found


def _mean_of(rows: list[tuple[float, float | None]], unit: str) -> Metric:
    """The mean of values with standard errors, and its 95% interval where all have one."""
    value = _mean([v for v, _ in rows])
    errors = [e for _, e in rows if e is not None]
    half = 1.96 * sum(e * e for e in errors) ** 0.5 / len(rows) if len(errors) == len(rows) else None
    low, high = (None, None) if half is None else (value - half, value + half)
    return Metric(value, low, high, unit=unit, how="recorded", n=len(rows))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _worst(point: ScreenPoint, layers: tuple[int, ...]) -> dict[str, Any]:
    """Where mass is missed: by layer, and the query heads that miss most."""
    heads = [
        (value, layer, head)
        for layer, row in zip(layers, point.by_head, strict=True)
        for head, value in enumerate(row)
    ]
    by_layer = {
        str(layer): round(_mean(row), 3) for layer, row in zip(layers, point.by_head, strict=True) if row
    }
    return {
        "beyond_by_layer": by_layer,
        "worst_heads": [
            {"layer": layer, "q_head": head, "beyond": round(value, 3)}
            for value, layer, head in sorted(heads)[:_WORST]
        ],
    }

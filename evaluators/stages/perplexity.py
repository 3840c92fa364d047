"""Stage `perplexity`: held text, each token predicted by a sparse decode step."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from evaluators import stats
from evaluators.errors import perplexity_too_high
from evaluators.results import Metric, StageResult
from evaluators.stages.base import Context, Deadline, Needs, failed
from evaluators.tasks.perplexity import perplexity
from vortex_core.ir.flow import Flow

if TYPE_CHECKING:
    from evaluators.bench import Bench


class PerplexityStage:
    """Perplexity of held text, every token predicted by a sparse decode step."""

    name = "perplexity"
    needs: Needs = "engine"
    settings = None

    def run(self, flow: Flow, context: Context, seed: int, deadline: Deadline) -> StageResult:
        """Intervals count passages, not tokens: those of one passage depend on each other."""
        bench = context.engine_bench(self.name)
        limit = context.plan.perplexity.max_ratio
        return perplexity_result(self.name, flow, bench, seed, limit)


def perplexity_result(stage: str, flow: Flow, bench: Bench, seed: int, max_ratio: float) -> StageResult:
    """Force the passages of a seed through a flow and compare with dense, token by token."""
    reference = bench.reference(seed)
    decoded = bench.continuation(flow, seed)
    ours = [value for passage in decoded.logprobs for value in passage]
    dense = [value for passage in reference.logprobs for value in passage]
    passage = [i for i, values in enumerate(decoded.logprobs) for _ in values]
    level = stats.clustered_mean(ours, passage)
    gap = stats.clustered_difference(ours, dense, passage)
    ratio = _exp_of_minus(gap)
    per_passage = [
        perplexity([a]) / perplexity([b]) for a, b in zip(decoded.logprobs, reference.logprobs, strict=True)
    ]
    metrics = {
        "perplexity": replace(_exp_of_minus(level), higher_is_better=False),
        "perplexity_ratio": replace(ratio, higher_is_better=False),
        "density": Metric(decoded.density, unit="of pages", higher_is_better=False, n=len(ours)),
    }
    info = {
        "dense_perplexity": perplexity(reference.logprobs),
        "ratio_by_passage": [round(value, 4) for value in per_passage],
        "wilcoxon_p": round(stats.wilcoxon(ours, dense), 4),
        "swap_seconds": round(bench.swap_seconds, 3),
    }
    result = StageResult(stage, passed=True, metrics=metrics, items={"perplexity": ours}, info=info)
    if ratio.value <= max_ratio:
        return result
    return failed(stage, perplexity_too_high(ratio.value, max_ratio), result)


def _exp_of_minus(interval: stats.Interval) -> Metric:
    """A mean log-probability, or a difference of two, as a perplexity or a ratio of them."""
    if not math.isfinite(interval.low):  # one passage
        return Metric(math.exp(-interval.value), n=interval.n)
    low, high = (math.exp(min(700.0, -x)) for x in (interval.high, interval.low))
    return Metric(math.exp(-interval.value), low, high, n=interval.n)

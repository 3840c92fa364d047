"""Measure one flow on the default model, stage by stage, as a campaign would.

    python examples/evaluate_flow.py [FLOW.py | library name]

Needs the weights of smollm2-135m (`vortex-search models fetch smollm2-135m`, 93 MB).
"""

from __future__ import annotations

import sys

from search.commands.evaluation import evaluate_once
from vortex_core import library
from vortex_core.sandbox.load import trace_file


def main(flow: str = "quest") -> None:
    traced = trace_file(flow) if flow.endswith(".py") else library.load(flow).with_knobs(budget="128")
    results = evaluate_once(
        traced, "smollm2-135m", "quick", seed=0, on_stage=lambda name: print(f"... {name}")
    )
    for result in results:
        print(f"{result.stage}: {'passed' if result.passed else 'stopped'} in {result.seconds:.1f} s")
        for name, metric in result.metrics.items():
            interval = "" if metric.low is None else f" [{metric.low:.4g}, {metric.high:.4g}]"
            print(f"    {name} = {metric.value:.4g}{interval} {metric.unit} ({metric.how})")
        if result.failure is not None:
            print(f"    {result.failure.error['code']}: {result.failure.error['message']}")


if __name__ == "__main__":
    main(*sys.argv[1:])

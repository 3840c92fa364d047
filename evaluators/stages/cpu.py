"""Stages that need no engine: static checks, compilation, parity."""

from __future__ import annotations

import time

from evaluators.errors import backend_crashed, illegal_for_model, parity_failed
from evaluators.parity import compare
from evaluators.results import Metric, StageResult
from evaluators.stages.base import Context, Deadline, Needs, Subject, failed
from vortex_core.compiler import backends

BACKEND = "torch"  # what the CPU engine runs


class StaticStage:
    """Identity, and knobs against the model's dimensions. Verification itself happened on the way in."""

    name = "static"
    needs: Needs = "cpu"

    def run(self, subject: Subject, context: Context, seed: int, deadline: Deadline) -> StageResult:
        """Never touches tensors."""
        knobs, model = subject.knobs, context.model
        beyond = [layer for layer in knobs.dense_layers if layer >= model.layers]
        if beyond:
            raise illegal_for_model(
                f"dense_layers names layer {beyond[0]}, {model.name} has layers 0 to {model.layers - 1}",
                "name layers that exist",
            )
        asked = sorted({task.context for task in context.plan.accuracy.tasks})
        lengths = sorted({*asked, context.plan.latency.context, context.plan.modelled.length})
        share = {n: _attended(subject, model.layers, n) for n in lengths}
        is_dense = subject.program.selects_everything
        info = {
            "planned_density": {str(n): round(d, 4) for n, d in share.items()},
            "request_local": subject.program.is_request_local,
            "states": [s.name for s in subject.program.states],
        }
        # A longer context at which it is sparse is no excuse: speed is modelled there, accuracy is not asked.
        if not is_dense and all(share[n] >= 1 for n in asked):
            raise illegal_for_model(
                f"the budget {knobs.budget!r} attends every page wherever accuracy is asked "
                f"({asked[0]} to {asked[-1]} tokens): this is dense attention with extra work",
                "lower the budget, dense_layers or keep_last until pages are left out",
            )
        return StageResult(self.name, passed=True, info=info)


def _attended(subject: Subject, layers: int, length: int) -> float:
    """Share of all pages in all layers that the knobs allow at a length."""
    if subject.program.selects_everything:
        return 1.0
    total = -(-length // subject.knobs.page_size)
    dense = set(subject.knobs.dense_layers)
    pages = [
        total if layer in dense else subject.knobs.pages(length, layer, layers) for layer in range(layers)
    ]
    return sum(pages) / (total * layers)


class CompileStage:
    """The engine's backend accepts the program at the model's shapes."""

    name = "compile"
    needs: Needs = "cpu"

    def run(self, subject: Subject, context: Context, seed: int, deadline: Deadline) -> StageResult:
        """Reports the bytes of state that a token costs."""
        import torch

        began = time.perf_counter()
        geometry = context.model.geometry()
        compiled = backends.get(BACKEND).compile(subject.program, subject.knobs, geometry)
        states = compiled.new_states(1, torch.device("cpu"))
        per_token = states.bytes_per_page() / subject.knobs.page_size
        kv = context.model.kv_bytes_per_token() / context.model.layers
        return StageResult(
            self.name,
            passed=True,
            metrics={
                "compile_seconds": Metric(time.perf_counter() - began, unit="s", higher_is_better=False),
                "state_bytes_per_token": Metric(
                    per_token, unit="B per layer", higher_is_better=False, how="recorded"
                ),
            },
            info={"state_share_of_kv": round(per_token / kv, 4), "backend": BACKEND},
        )


class ParityStage:
    """The engine's backend selects what the oracle selects."""

    name = "parity"
    needs: Needs = "cpu"

    def run(self, subject: Subject, context: Context, seed: int, deadline: Deadline) -> StageResult:
        """A crash on verified IR is the backend's fault, a difference is scored against the candidate."""
        plan = context.plan.parity
        try:
            found = compare(
                subject.program,
                subject.knobs,
                context.model.geometry(),
                backend=BACKEND,
                pages=plan.pages,
                seeds=plan.seeds,
                tie_tolerance=plan.tie_tolerance,
            )
        except RuntimeError as error:  # torch's own: shapes, dtypes
            raise backend_crashed(BACKEND, str(error).splitlines()[0]) from error
        agreeing = found.rows - found.differing
        result = StageResult(
            self.name,
            passed=True,
            metrics={"parity": Metric(agreeing / found.rows, n=found.rows)},
            info={
                "rows": found.rows,
                "differing_rows": found.differing,
                "tied_rows": found.tied,
                "differing_states": list(found.states),
                "nonfinite_scores": found.nonfinite,
            },
        )
        if found.holds:
            return result
        example = found.example or f"states {', '.join(found.states)} differ beyond rounding"
        return failed(self.name, parity_failed(BACKEND, found.differing, found.rows, example), result)

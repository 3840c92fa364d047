"""Stage `static`: identity, and the knobs against the model."""

from __future__ import annotations

from evaluators.errors import illegal_for_model
from evaluators.results import StageResult
from evaluators.stages.base import Context, Deadline, Needs
from vortex_core.ir.flow import Flow
from vortex_core.ir.memory import working_bytes

MAX_WORKING_BYTES = 4 << 30  # of one sequence, on the machine that evaluates


class StaticStage:
    """Identity, and knobs against the model's dimensions. Verification itself happened on the way in."""

    name = "static"
    needs: Needs = "cpu"
    settings = None

    def run(self, flow: Flow, context: Context, seed: int, deadline: Deadline) -> StageResult:
        """Never touches tensors."""
        knobs, model = flow.knobs, context.model
        beyond = [layer for layer in knobs.dense_layers if layer >= model.layers]
        if beyond:
            raise illegal_for_model(
                f"dense_layers names layer {beyond[0]}, {model.name} has layers 0 to {model.layers - 1}",
                "name layers that exist",
            )
        asked = sorted({task.context for task in context.plan.accuracy.tasks})
        lengths = sorted({*asked, *context.plan.lengths})
        share = {n: _attended(flow, model.layers, n) for n in lengths}
        longest = max(asked, default=0)
        needed = working_bytes(flow.program, knobs, model.geometry(), longest)
        if needed > MAX_WORKING_BYTES:
            raise illegal_for_model(
                f"at {longest} tokens its page states and largest intermediate value take {needed / 2**30:.1f} GiB of "
                f"a sequence's {MAX_WORKING_BYTES / 2**30:g} GiB",
                "use smaller states: fewer or shorter dimensions of your own, larger pages",
            )
        is_dense = flow.program.selects_everything
        info = {
            "planned_density": {str(n): round(d, 4) for n, d in share.items()},
            "request_local": flow.program.is_request_local,
            "states": [s.name for s in flow.program.states],
        }
        # A longer context at which it is sparse is no excuse: speed is modelled there, accuracy is not asked.
        if not is_dense and all(share[n] >= 1 for n in asked):
            raise illegal_for_model(
                f"the budget {knobs.budget!r} attends every page wherever accuracy is asked "
                f"({asked[0]} to {asked[-1]} tokens): this is dense attention with extra work",
                "lower the budget, dense_layers or keep_last until pages are left out",
            )
        return StageResult(self.name, passed=True, info=info)


def _attended(flow: Flow, layers: int, length: int) -> float:
    """Share of all pages in all layers that the knobs allow at a length."""
    if flow.program.selects_everything:
        return 1.0
    total = -(-length // flow.knobs.page_size)
    dense = set(flow.knobs.dense_layers)
    pages = [total if layer in dense else flow.knobs.pages(length, layer, layers) for layer in range(layers)]
    return sum(pages) / (total * layers)

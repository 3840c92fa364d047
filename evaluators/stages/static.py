"""Stage `static`: identity, the knobs against the models, and whether what wins could be served."""

from __future__ import annotations

import math
from collections.abc import Iterable

from evaluators.errors import illegal_for_model
from evaluators.results import StageResult
from evaluators.stages.base import Context, Deadline, Needs
from vortex_core.ir.budget import Budget
from vortex_core.ir.flow import Flow
from vortex_core.ir.layers import LayerPlan
from vortex_core.ir.memory import working_bytes
from vortex_core.serving.plan import check_servable
from vortex_core.specs import ModelSpec

MAX_WORKING_BYTES = 4 << 30  # of one sequence, on the machine that evaluates
_ROUNDING = 0.02  # of a density: pages are whole
_ANSWER = 160  # tokens behind each context at which budgets are looked at one by one: answers and timed steps
_STRIDE = 128  # tokens between the other lengths that the model reads


class StaticStage:
    """Knobs against the models' dimensions, one operating point for accuracy and speed, and the target's refusals.

    Verification itself happened on the way in.
    """

    name = "static"
    needs: Needs = "cpu"
    settings = None

    def run(self, flow: Flow, context: Context, seed: int, deadline: Deadline) -> StageResult:
        """Never touches tensors."""
        speed, answers = context.model, context.answering
        for model in {m.name: m for m in (answers, speed)}.values():
            _check_layers(flow, model)
        asked = sorted({task.context for task in context.plan.accuracy.tasks})
        for model in {m.name: m for m in (answers, speed)}.values():
            _check_memory(flow, model, max(asked))
        timed = sorted(context.plan.lengths)
        share = {n: _attended(flow, answers, n) for n in asked}
        spent = {n: _attended(flow, speed, n) for n in timed}
        info = {
            "planned_density": {
                str(n): round(min(1.0, d * _lists(flow, speed if n in spent else answers)), 4)
                for n, d in sorted((share | spent).items())
            },
            "request_local": flow.program.is_request_local,
            "states": [s.name for s in flow.program.states],
        }
        if not flow.program.selects_everything:
            _check_sparse_where_asked(flow, share)
            _check_one_operating_point(flow, share, spent)
            _check_never_falls(flow, answers, sorted({*asked, *timed}))
        if context.plan.target == "sglang":
            check_servable(flow.program, flow.knobs)
        return StageResult(self.name, passed=True, info=info)


def _lists(flow: Flow, model: ModelSpec) -> int:
    """Lists that a kv head may read, of which planning cannot know what they share."""
    return model.group if flow.program.per_query_head else 1


def _check_layers(flow: Flow, model: ModelSpec) -> None:
    beyond = [layer for layer in flow.knobs.dense_layers if layer >= model.layers]
    if beyond:
        raise illegal_for_model(
            f"dense_layers names layer {beyond[0]}, {model.name} has layers 0 to {model.layers - 1}",
            "name layers that exist",
        )


def _check_memory(flow: Flow, model: ModelSpec, longest: int) -> None:
    needed = working_bytes(flow.program, flow.knobs, model.geometry(), longest)
    if needed > MAX_WORKING_BYTES:
        raise illegal_for_model(
            f"at {longest} tokens its page states and largest intermediate value take {needed / 2**30:.1f} GiB of "
            f"a sequence's {MAX_WORKING_BYTES / 2**30:g} GiB",
            "use smaller states: fewer or shorter dimensions of your own, larger pages",
        )


def _check_sparse_where_asked(flow: Flow, share: dict[int, float]) -> None:
    """A longer context at which it is sparse is no excuse: nobody asks for accuracy there."""
    if all(density >= 1 for density in share.values()):
        raise illegal_for_model(
            f"the budget {flow.knobs.budget!r} attends every page wherever accuracy is asked "
            f"({min(share)} to {max(share)} tokens): this is dense attention with extra work",
            "lower the budget, dense_layers or keep_last until pages are left out",
        )


def _check_one_operating_point(flow: Flow, share: dict[int, float], spent: dict[int, float]) -> None:
    """Nowhere may speed be taken at a lower density than accuracy: at the same context, else at the longest asked."""
    longest = max(share)
    for context, density in spent.items():
        at = context if context in share else longest
        if density < share[at] * (1 - _ROUNDING):
            raise illegal_for_model(
                f"where speed is asked ({context} tokens) it attends {density:.1%} of the pages, where accuracy is "
                f"({at} tokens) {share[at]:.1%}: a gain in speed that no answer was tested at",
                "choose a budget, or a share of the length, that attends as much at both",
            )


def _check_never_falls(flow: Flow, model: ModelSpec, contexts: list[int]) -> None:
    """A longer text may not be given fewer pages: at the lengths beside those asked it would be sparser than there."""
    knobs = flow.knobs
    budget = Budget(knobs.budget)
    if "length" not in budget.names:
        return
    plan = LayerPlan(flow.program, knobs, model.layers)
    kept = knobs.keep_first + knobs.keep_last
    stride = max(_STRIDE, model.max_context // 512)
    lengths = sorted({*range(stride, model.max_context + stride, stride), *_behind(contexts)})
    for layer in plan.budget_layers:
        most, at = 0, 0
        for length in lengths:
            pages = min(
                math.ceil(length / knobs.page_size),
                max(kept, budget.pages(length, knobs.page_size, layer, model.layers)),
            )
            if pages < most:
                raise illegal_for_model(
                    f"the budget {knobs.budget!r} falls with the length: {most} pages at {at} tokens, {pages} at "
                    f"{length}, so that it is accurate at one length and fast at another",
                    "let the budget grow with the length, or stay as it is",
                )
            most, at = pages, length


def _behind(contexts: Iterable[int]) -> set[int]:
    return {n for context in contexts for n in range(max(1, context - 1), context + _ANSWER)}


def _attended(flow: Flow, model: ModelSpec, length: int) -> float:
    """Share of all pages in all layers of a model that the knobs allow at a length."""
    if flow.program.selects_everything:
        return 1.0
    total = -(-length // flow.knobs.page_size)
    plan = LayerPlan(flow.program, flow.knobs, model.layers)
    rows = [plan.row_pages(row, length) for row in range(len(plan.budget_layers))]
    pages = [total if plan.leader[i] is None else rows[plan.budget_row(i)] for i in range(model.layers)]
    return sum(pages) / (total * model.layers)

"""Stage `machine_code`: a program's kernels compile for the GPUs that are to run it, within the stage's deadline.

It holds no GPU, and what it compiles is what an engine on the same machine launches: it finds the kernels in Triton's
cache instead of compiling while a GPU waits. A program whose kernels take a minute to compile would hold an engine for
as long at every stage that meets them, and one that spills or wants more shared memory than there is would fail only
once it is there.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from evaluators.results import Metric, StageResult
from evaluators.stages.base import Context, Deadline, Needs
from evaluators.stages.decode import DecodeSettings
from evaluators.stages.parity import ParitySettings
from evaluators.stages.settings import StageSettings
from vortex_core.ir.flow import Flow
from vortex_core.ir.knobs import Knobs
from vortex_core.specs import ModelSpec

if TYPE_CHECKING:  # it brings torch and Triton along
    import torch

    from evaluators.plan import EvaluationPlan
    from vortex_core.compiler.triton.ahead import StepShape

_NEW = 64  # tokens that are decoded behind a context


class MachineCodeSettings(StageSettings):
    """For which GPUs."""

    targets: tuple[Literal["sm_90a", "sm_100a"], ...] = Field(
        ("sm_90a",), min_length=1, description="architectures; none of them need be here"
    )


class MachineCodeStage:
    """Every kernel of the program is compiled; registers, spills and shared memory go back to the author."""

    name = "machine_code"
    needs: Needs = "cpu"
    settings = MachineCodeSettings

    def run(self, flow: Flow, context: Context, seed: int, deadline: Deadline) -> StageResult:
        """Raises what the compiler refuses (`VE050`, `VE051`, `VE056`, `VK002`), and `VV010` for a target that is done
        past the deadline."""
        from vortex_core.compiler.triton.ahead import compile_ahead

        began, plan = time.perf_counter(), context.plan.section(self.name, MachineCodeSettings)
        made: dict[str, Any] = {}
        shapes = launched(context.plan, flow.knobs)
        models = dict.fromkeys((m.geometry(), query_dtype(m)) for m in (context.answering, context.model))
        for target in plan.targets:
            for geometry, dtype in models:
                found = compile_ahead(flow.program, flow.knobs, geometry, shapes, target, dtype=dtype)
                deadline.check(f"{len(found)} kernels compiled for {target}")
            made[target] = {
                name: {
                    "registers": x.registers,
                    "spills": x.spills,
                    "stack_bytes": x.stack_bytes,
                    "shared_bytes": x.shared_bytes,
                }
                for name, x in found.items()
            }
        seconds = Metric(time.perf_counter() - began, unit="s", higher_is_better=False)
        return StageResult(
            self.name, passed=True, metrics={"machine_code_seconds": seconds}, info={"kernels": made}
        )


def query_dtype(model: ModelSpec) -> torch.dtype:
    """In which an engine has a model's queries: its weights' own, bf16 where those are narrower."""
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16}.get(model.dtype, torch.bfloat16)


def launched(plan: EvaluationPlan, knobs: Knobs) -> list[StepShape]:
    """The decode steps that the stages of a plan run, in the rows and the table widths that engines pad them to, at all
    contexts."""
    from vortex_core.compiler.triton.ahead import StepShape
    from vortex_core.engine.decode.graph_runner import BUCKETS, bucket_of, width_of
    from vortex_core.engine.kv.blocks import BLOCK_TOKENS

    contexts = {task.context for task in plan.accuracy.tasks} | {plan.perplexity.context}
    most = max(plan.accuracy.batch, plan.perplexity.items)
    if isinstance(timed := plan.sections.get("decode"), DecodeSettings):
        contexts |= set(timed.lengths(plan))
        most = max(most, timed.most)
    widths = {width_of(-(-(context + new) // BLOCK_TOKENS)) for context in contexts for new in (1, _NEW)}
    rows = [n for n in BUCKETS if n <= bucket_of(most)]
    found = [StepShape(n, blocks * BLOCK_TOKENS) for blocks in sorted(widths) for n in rows]
    parity = plan.section("parity", ParitySettings)
    return [StepShape(len(parity.pages), round(max(parity.pages) * knobs.page_size) + 2), *found]

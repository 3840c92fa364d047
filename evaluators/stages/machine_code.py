"""Stage `machine_code`: a program's kernels compile for the GPUs that are to run it, within the stage's deadline.

It holds no GPU. A program whose kernels take a minute to compile would hold an engine for as long at every stage that
meets them, and one that spills or wants more shared memory than there is would fail only once it is there.
"""

from __future__ import annotations

import time
from typing import Literal

from pydantic import Field

from evaluators.results import Metric, StageResult
from evaluators.stages.base import Context, Deadline, Needs
from evaluators.stages.settings import StageSettings
from vortex_core.ir.flow import Flow


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
        """Raises what the compiler refuses (`VE010`), and `VV010` if a target is done past the deadline."""
        from vortex_core.compiler.triton.offline import compile_flow

        began, plan = time.perf_counter(), context.plan.section(self.name, MachineCodeSettings)
        made = {}
        for target in plan.targets:
            reports = compile_flow(flow.program, flow.knobs, context.model.geometry(), target)
            deadline.check(f"{len(reports)} kernels compiled for {target}")
            made[target] = {
                name: {"registers": x.registers, "spills": x.spills, "shared_bytes": x.shared_bytes}
                for name, x in reports.items()
            }
        seconds = Metric(time.perf_counter() - began, unit="s", higher_is_better=False)
        return StageResult(
            self.name, passed=True, metrics={"machine_code_seconds": seconds}, info={"kernels": made}
        )

"""Stage `compile`: the engine's backend accepts the program."""

from __future__ import annotations

import time
from typing import Any, Literal

from pydantic import Field

from evaluators.results import Metric, StageResult
from evaluators.stages.base import Context, Deadline, Needs
from evaluators.stages.settings import StageSettings
from vortex_core.ir.flow import Flow


class CompileSettings(StageSettings):
    """What else a program must compile for."""

    offline: tuple[Literal["sm_90a", "sm_100a"], ...] = Field(
        (), description="GPUs that need not be here: the machine code is made, with registers and spills"
    )


class CompileStage:
    """The engine's backend accepts the program at the model's shapes."""

    name = "compile"
    needs: Needs = "device"
    settings = CompileSettings

    def run(self, flow: Flow, context: Context, seed: int, deadline: Deadline) -> StageResult:
        """Reports the bytes of state that a token costs."""
        import torch

        from vortex_core.compiler import backends

        began = time.perf_counter()
        geometry = context.model.geometry()
        compiled = backends.get(context.backend).compile(flow.program, flow.knobs, geometry)
        states = compiled.new_states(1, torch.device(context.device))
        per_token = states.bytes_per_page() / flow.knobs.page_size
        kv = context.model.kv_bytes_per_token() / context.model.layers
        plan = context.plan.section(self.name, CompileSettings)
        made = {target: _machine_code(flow, context, target) for target in plan.offline}
        return StageResult(
            self.name,
            passed=True,
            metrics={
                "compile_seconds": Metric(time.perf_counter() - began, unit="s", higher_is_better=False),
                "state_bytes_per_token": Metric(
                    per_token, unit="B per layer", higher_is_better=False, how="recorded"
                ),
            },
            info={"state_share_of_kv": round(per_token / kv, 4), "backend": context.backend}
            | ({"offline": made} if made else {}),
        )


def _machine_code(flow: Flow, context: Context, target: str) -> dict[str, Any]:
    """Registers and spills of a flow's kernels on a GPU that is not here."""
    from vortex_core.compiler.triton.offline import compile_flow

    found = compile_flow(flow.program, flow.knobs, context.model.geometry(), target)
    return {
        name: {"registers": x.registers, "spills": x.spills, "shared_bytes": x.shared_bytes}
        for name, x in found.items()
    }

"""Stage `compile`: the engine's backend accepts the program."""

from __future__ import annotations

import time

from evaluators.results import Metric, StageResult
from evaluators.stages.base import Context, Deadline, Needs
from evaluators.stages.settings import StageSettings
from vortex_core.ir.flow import Flow


class CompileStage:
    """The engine's backend accepts the program at the model's shapes."""

    name = "compile"
    needs: Needs = "device"
    settings = StageSettings

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
        return StageResult(
            self.name,
            passed=True,
            metrics={
                "compile_seconds": Metric(time.perf_counter() - began, unit="s", higher_is_better=False),
                "state_bytes_per_token": Metric(
                    per_token, unit="B per layer", higher_is_better=False, how="recorded"
                ),
            },
            info={"state_share_of_kv": round(per_token / kv, 4), "backend": context.backend},
        )

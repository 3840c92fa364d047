"""Stage `parity`: the engine's backend selects what the oracle selects."""

from __future__ import annotations

from pydantic import Field, PositiveFloat

from evaluators.errors import backend_crashed, parity_failed
from evaluators.results import Metric, StageResult
from evaluators.stages.base import Context, Deadline, Needs, failed
from evaluators.stages.settings import StageSettings
from vortex_core.device_errors import translate
from vortex_core.ir.flow import Flow


class ParitySettings(StageSettings):
    """Random ragged batches on which a backend must select what the oracle selects."""

    pages: tuple[PositiveFloat, ...] = Field(min_length=1, description="length of each sequence, in pages")
    seeds: tuple[int, ...] = Field(min_length=1)
    tie_tolerance: float = Field(
        gt=0, description="scores closer than this share of a row's score range count as tied"
    )


class ParityStage:
    """The engine's backend selects what the oracle selects."""

    name = "parity"
    needs: Needs = "device"
    settings = ParitySettings

    def run(self, flow: Flow, context: Context, seed: int, deadline: Deadline) -> StageResult:
        """A crash on verified IR is the backend's fault, a difference is scored against the candidate."""
        from evaluators.parity import compare

        plan = context.plan.section(self.name, ParitySettings)
        try:
            found = compare(
                flow.program,
                flow.knobs,
                context.model.geometry(),
                backend=context.backend,
                device=context.device,
                pages=plan.pages,
                seeds=plan.seeds,
                tie_tolerance=plan.tie_tolerance,
            )
        except RuntimeError as error:  # torch's own: shapes, dtypes; Triton's are typed for every stage
            if translate(error, "parity", flow=True) is not None:
                raise
            raise backend_crashed(context.backend, str(error).splitlines()[0]) from error
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
        return failed(self.name, parity_failed(context.backend, found.differing, found.rows, example), result)

"""What a stage is, what it gets, and how its failures are typed."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol

from evaluators.device import is_gpu
from evaluators.errors import needs_engine, too_slow
from evaluators.results import Failure, StageResult
from vortex_core.device_errors import DeviceLostError, device_errors
from vortex_core.errors import VortexError, write_to_log
from vortex_core.ir.flow import Flow

if TYPE_CHECKING:
    from evaluators.bench import Bench
    from evaluators.plan import EvaluationPlan
    from evaluators.resident import Resident
    from evaluators.stages.settings import StageSettings
    from vortex_core.specs import ModelSpec

Needs = Literal["cpu", "device", "engine", "speed"]
Resource = Literal["cpu", "engine"]


@dataclass
class Deadline:
    """A stage's time limit, checked between pieces of work: it ends slow candidates, not hung ones.

    Whoever runs the worker's process must also be able to kill it.
    """

    stage: str
    seconds: float | None
    started: float = field(default_factory=time.perf_counter)

    def check(self, done: str) -> None:
        """Raise `VV010` if the time is up; `done` says how far it came."""
        passed = time.perf_counter() - self.started
        if self.seconds is not None and passed > self.seconds:
            raise too_slow(self.stage, passed, done)


@dataclass(frozen=True)
class Context:
    """What stages run against.

    Attributes:
        plan: settings and gates.
        model: the model whose speed counts, and the shapes that programs are compiled for.
        bench: the engine that answers, with prefilled prompts; None where there is no engine.
        answers: dimensions of the model that answers; None: `model` does.
        speed: the engine that is timed: the same one, or another with random weights; None where there is none.
        device, backend: what the engine runs on: programs are compiled and compared for these.
    """

    plan: EvaluationPlan
    model: ModelSpec
    bench: Bench | None = None
    answers: ModelSpec | None = None
    speed: Resident | None = None
    device: str = "cpu"
    backend: str = "torch"

    @property
    def answering(self) -> ModelSpec:
        """Dimensions of the model whose accuracy counts."""
        return self.answers or self.model

    def engine_bench(self, stage: str) -> Bench:
        """The bench, for stages that need it.

        Raises:
            VortexError: `VV006` if there is none.
        """
        if self.bench is None:
            raise needs_engine(stage, self.speed is not None)
        return self.bench

    def engine_speed(self, stage: str) -> Resident:
        """The engine that is timed, for stages that need it.

        Raises:
            VortexError: `VV006` if there is none.
        """
        if self.speed is None:
            raise needs_engine(stage)
        return self.speed


class Stage(Protocol):
    """One step of an evaluation.

    Attributes:
        name: as in plans, events and the command line.
        needs: `cpu` stages run anywhere; `device` stages compile or launch what the engine runs, so they run where it
            is unless that is a CPU; `engine` stages need the resident model that answers, with its prompts; `speed`
            stages the one that is timed.
        settings: the model of its section in plans, which `Context.plan.section` returns; None: it has none.

    A stage is made without arguments, once a process, and serves every candidate. Its module is imported where
    plans are read, so it imports torch and the engine inside `run`. `evaluators.testing.StageConformance`
    checks an implementation.
    """

    name: str
    needs: Needs
    settings: type[StageSettings] | None

    def run(self, flow: Flow, context: Context, seed: int, deadline: Deadline) -> StageResult:
        """Measure. A gate that fails returns `passed=False` with a candidate failure.

        Raises:
            VortexError: what went wrong; `run_stage` types it.
        """
        ...


def resource(stage: Stage | type[Stage], device: str) -> Resource:
    """Where a stage must run for an engine on a device (`cpu`, `cuda`): on any CPU, or where the engine is."""
    if stage.needs == "device":
        return "engine" if is_gpu(device) else "cpu"
    return "cpu" if stage.needs == "cpu" else "engine"


def failed(stage: str, error: VortexError, result: StageResult | None = None) -> StageResult:
    """A result that stops the candidate, with what was measured before; the error says whose fault it is."""
    base = result or StageResult(stage, passed=False)
    return replace(base, passed=False, failure=Failure.of(error))


def run_stage(stage: Stage, flow: Flow, context: Context, seed: int) -> StageResult:
    """Run one stage; typed errors and what the device refuses become typed failures.

    Raises:
        DeviceLostError: the process cannot use its GPU any more.
        Exception: a defect, of ours or of a library.
    """
    deadline = Deadline(stage.name, context.plan.deadlines.get(stage.name))
    try:
        with device_errors(f"stage {stage.name}", flow=not flow.program.selects_everything):
            result = stage.run(flow, context, seed, deadline)
    except DeviceLostError:
        raise
    except VortexError as error:
        if error.fault == "infrastructure":
            error.log = error.log or write_to_log(error)
        result = failed(stage.name, error)
    return replace(result, seconds=time.perf_counter() - deadline.started)

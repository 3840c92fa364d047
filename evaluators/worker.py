"""The evaluation worker: a resident engine that runs stages. One per process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from evaluators.bench import Bench, capacity
from evaluators.plan import EvaluationPlan
from evaluators.prompt_store import PromptStore, weights_identity
from evaluators.reference import DenseReference
from evaluators.results import StageResult
from evaluators.stages.base import Context, run_stage
from evaluators.stages.registry import get_stage
from evaluators.tasks.items import FRESH_SEEDS, check_context
from vortex_core.engine.models.weights import cache_dir, resolve_model
from vortex_core.ir.flow import Flow
from vortex_core.specs import ModelSpec, list_models, load_model

if TYPE_CHECKING:
    from vortex_core.engine import Engine

_DTYPES = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16}


class EvaluationWorker:
    """Loads a model once and answers for candidate after candidate.

    Args:
        model: name, directory or hub id.
        plan: what to measure.
        device: of the engine.
        threads: CPU threads; the plan's by default.
        references: dense results measured earlier with this plan and model (`reference().to_json()`).

    Raises:
        VortexError: weights that cannot be had, a plan the model cannot run, results of another plan.
    """

    def __init__(
        self,
        model: str,
        plan: EvaluationPlan,
        *,
        device: str = "cpu",
        threads: int | None = None,
        references: Iterable[dict[str, Any]] = (),
    ) -> None:
        from vortex_core.engine import Engine

        engine = Engine.from_model(
            model,
            max_tokens=capacity(plan),
            device=device,
            dtype=_DTYPES[plan.engine.dtype],
            threads=threads or plan.engine.threads,
        )
        check_context(plan, engine.spec)
        store = None
        if plan.engine.keep_prefill_gib > 0:
            weights = weights_identity(resolve_model(model).directory)
            store = PromptStore(cache_dir() / "prefill", weights, int(plan.engine.keep_prefill_gib * 2**30))
        self._set_up(engine, plan, store, references)

    @classmethod
    def of_engine(
        cls,
        engine: Engine,
        plan: EvaluationPlan,
        *,
        store: PromptStore | None = None,
        references: Iterable[dict[str, Any]] = (),
    ) -> EvaluationWorker:
        """A worker over an engine that exists already, with room for `bench.capacity(plan)` tokens."""
        worker = cls.__new__(cls)
        worker._set_up(engine, plan, store, references)
        return worker

    def _set_up(
        self,
        engine: Engine,
        plan: EvaluationPlan,
        store: PromptStore | None,
        references: Iterable[dict[str, Any]],
    ) -> None:
        self.plan = plan
        self.bench = Bench(engine, plan, store)
        self.context = Context(plan, engine.spec, self.bench)
        for data in references:
            self.bench.adopt(DenseReference.from_json(data))

    @property
    def model(self) -> ModelSpec:
        """Dimensions of the model."""
        return self.bench.engine.spec

    def prepare(self, seed: int | None = None) -> float:
        """Prefill a seed's prompts (the plan's seed by default), answer them densely, record attention.

        Returns:
            Seconds spent prefilling.
        """
        seed = self.plan.seed if seed is None else seed
        prompts = self.bench.prompts(seed)
        self.bench.reference(seed)
        if seed < FRESH_SEEDS and "recall" in self.plan.stages:
            self.bench.recording(seed)
        return prompts.prefill_seconds

    def reference(self, seed: int | None = None) -> dict[str, Any]:
        """Dense results of a seed as JSON, measured if they are not known yet."""
        return self.bench.reference(self.plan.seed if seed is None else seed).to_json()

    def run(self, stage: str, flow: Flow, seed: int | None = None) -> StageResult:
        """Run one stage.

        Raises:
            VortexError: `VV004` for an unknown stage. What goes wrong inside comes back as a typed failure.
        """
        chosen = get_stage(stage)
        seed = self.plan.seed if seed is None else seed
        if chosen.needs == "engine":
            self.prepare(seed)  # one-time work, not the candidate's time
        return run_stage(chosen, flow, self.context, seed)


def run_cpu_stage(
    stage: str, flow: Flow, model: str | ModelSpec, plan: EvaluationPlan, seed: int | None = None
) -> StageResult:
    """Run a stage that needs no engine, anywhere. `model`: dimensions, or a name or directory of them."""
    if isinstance(model, str):
        model = load_model(model) if model in list_models() else resolve_model(model).spec
    return run_stage(get_stage(stage), flow, Context(plan, model), plan.seed if seed is None else seed)


def evaluate(
    flow: Flow,
    worker: EvaluationWorker,
    plan: EvaluationPlan,
    *,
    stages: Sequence[str] | None = None,
    seed: int | None = None,
    on_stage: Callable[[StageResult], None] | None = None,
) -> list[StageResult]:
    """Take a candidate through stages in order; the first that does not pass is the last.

    Args:
        plan: must be the worker's.
        stages: the plan's by default.
        on_stage: called with every result as it comes.
    """
    assert plan.digest == worker.plan.digest, "the worker was built for another plan"
    results: list[StageResult] = []
    for name in stages or plan.stages:
        result = worker.run(name, flow, seed)
        results.append(result)
        if on_stage is not None:
            on_stage(result)
        if not result.passed:
            break
    return results

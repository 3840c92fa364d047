"""The evaluation worker: resident engines that run stages. One per process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evaluators.bench import Bench, capacity
from evaluators.device import choose_device, is_gpu
from evaluators.identity import engine_identity, model_digest
from evaluators.plan import EvaluationPlan
from evaluators.prompt_store import PromptStore
from evaluators.reference import DenseReference
from evaluators.resident import Resident
from evaluators.results import StageResult
from evaluators.stages.base import Context, Stage, resource, run_stage
from evaluators.stages.registry import get_stage
from evaluators.tasks.items import FRESH_SEEDS, check_context
from vortex_core.engine.models.weights import ModelPath, cache_dir, resolve_model
from vortex_core.ir.flow import Flow
from vortex_core.specs import ModelSpec, list_models, load_model

if TYPE_CHECKING:
    from vortex_core.engine import Engine

_DTYPES = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Rank:
    """One process of several that hold a model together (tensor parallelism); all run the same stages in step.

    Attributes:
        rank: number of this process, from 0.
        size: processes.
        address, port: where rank 0 listens.
        device: CUDA device of this process, among those it sees.
    """

    rank: int
    size: int
    address: str
    port: int
    device: int = 0

    @classmethod
    def of_environment(cls) -> Rank | None:
        """As a launcher such as `torchrun` says; None in an ordinary process."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return None
        return cls(
            int(os.environ["RANK"]), size, os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]),
            int(os.environ.get("LOCAL_RANK", "0")),
        )  # fmt: skip

    def join(self) -> None:
        """Tell torch.distributed, which reads these when the engine loads its part."""
        os.environ |= {
            "RANK": str(self.rank), "WORLD_SIZE": str(self.size), "LOCAL_RANK": str(self.device),
            "MASTER_ADDR": self.address, "MASTER_PORT": str(self.port),
        }  # fmt: skip


class EvaluationWorker:
    """Loads a model once and answers for candidate after candidate.

    Everything that is measured runs on the engine's device and backend: torch on a CPU, Triton on a GPU.

    Args:
        model: name, directory, GGUF file or hub id.
        plan: what to measure.
        device: `auto` (a GPU where there is one), `cpu` or `cuda`.
        threads: CPU threads; the plan's by default.
        references: dense results measured earlier (`reference().to_json()`).
        accuracy_model: another model of the same kind of attention, whose answers count in place of `model`'s.
        random_weights: `model` by its dimensions alone, for its speed: it answers noise, so accuracy is
            `accuracy_model`'s, or not asked.
        tensor_parallel: this process's part where several hold `model` together. `accuracy_model` is not divided.

    Raises:
        VortexError: weights that cannot be had, a plan the model cannot run, results of another plan, no GPU
            (`VV009`).
    """

    def __init__(
        self,
        model: str,
        plan: EvaluationPlan,
        *,
        device: str = "auto",
        threads: int | None = None,
        references: Iterable[dict[str, Any]] = (),
        accuracy_model: str | None = None,
        random_weights: bool = False,
        tensor_parallel: Rank | None = None,
    ) -> None:
        device = choose_device(device)
        tensor_parallel = tensor_parallel or Rank.of_environment()
        if (threads := threads or plan.engine.threads) is not None:
            torch.set_num_threads(threads)
        # The model that answers comes first: the one that is timed takes what memory is left.
        bench = None if accuracy_model is None else _bench(accuracy_model, plan, device, None)
        if bench is not None:
            plan = bench.plan
        if tensor_parallel is not None:
            tensor_parallel.join()
        if random_weights:
            if bench is None:
                plan = plan.for_model(_dimensions(model))
            speed = Resident(_random(model, plan, device))
        elif bench is None:
            bench = _bench(model, plan, device, tensor_parallel)
            speed = bench.resident
        else:
            speed = Resident(_load(resolve_model(model), plan, device, answers=False))
        self._set_up(speed, bench, plan, references)
        self._ranks = tensor_parallel.size if tensor_parallel is not None else 1

    @classmethod
    def of_engine(
        cls,
        engine: Engine,
        plan: EvaluationPlan,
        *,
        weights: str = "in memory",
        store: PromptStore | None = None,
        references: Iterable[dict[str, Any]] = (),
        speed: Engine | None = None,
    ) -> EvaluationWorker:
        """A worker over an engine that exists already, with room for `bench.capacity(plan)` tokens.

        Args:
            weights: identity of what it holds.
            speed: another engine, whose speed counts.
        """
        worker = cls.__new__(cls)
        bench = Bench(engine, plan, weights, store)
        worker._set_up(bench.resident if speed is None else Resident(speed), bench, plan, references)
        return worker

    def _set_up(
        self,
        speed: Resident,
        bench: Bench | None,
        plan: EvaluationPlan,
        references: Iterable[dict[str, Any]],
    ) -> None:
        self.plan = plan if bench is None else bench.plan
        self.speed = speed
        self._bench = bench
        self._ranks = 1
        engine = speed.engine
        answers = None if bench is None else bench.engine.spec
        self.context = Context(
            self.plan, engine.spec, bench, answers, speed, str(engine.device), engine.backend
        )
        for data in references:
            self.bench.adopt(DenseReference.from_json(data))

    @property
    def bench(self) -> Bench:
        """The engine that answers, with its prompts.

        Raises:
            VortexError: `VV006` where only random weights are held.
        """
        return self.context.engine_bench("reference")

    @property
    def model(self) -> ModelSpec:
        """Dimensions of the model whose speed counts."""
        return self.speed.engine.spec

    def prepare(self, seed: int | None = None) -> float:
        """Prefill a seed's prompts (the plan's seed by default), answer them densely, record attention.

        Returns:
            Seconds spent prefilling.
        """
        seed = self.plan.seed if seed is None else seed
        if self._bench is None:
            return 0.0
        prompts = self.bench.prompts(seed)
        self.bench.reference(seed)
        if seed < FRESH_SEEDS and "recall" in self.plan.stages:
            self.bench.recording(seed)
        if seed < FRESH_SEEDS and "screen" in self.plan.stages:
            self.bench.screener(seed)
        return prompts.prefill_seconds

    def screen_file(self, seed: int | None = None) -> Path | None:
        """The file of a seed's recorded attention, recorded if it is not there: all that a `Screener` needs, in any
        process. None where nothing is kept between processes.

        Raises:
            VortexError: `VV008` where the plan has no section `screen`.
        """
        seed = self.plan.seed if seed is None else seed
        path = self.bench.attention_file(seed)
        if path is not None and not path.exists():
            self.bench.attention(seed)
        return path

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
        context = self.context
        if self._ranks > 1:  # ranks that stop at different moments would wait for each other for ever
            context = replace(context, plan=self.plan.model_copy(update={"deadlines": {}}))
        with _compiled(context.device) as compiled:
            result = run_stage(chosen, flow, context, seed)
        if resource(chosen, context.device) == "cpu":
            return result
        info = result.info | {"measured_on": self._label(chosen)}
        # Every one held the GPU up: what `machine_code` foresees is found in Triton's cache.
        return replace(result, info=info | {"compiled_here": compiled} if compiled else info)

    def _label(self, stage: Stage) -> str:
        """Model, device, dtype and backend of the engine that a stage asks."""
        return self.bench.resident.label if stage.needs == "engine" and self._bench else self.speed.label


def _compiled(device: str) -> AbstractContextManager[list[str]]:
    """Yields a line for each kernel that this process compiles inside, on a GPU."""
    if not is_gpu(device):
        return nullcontext([])
    from vortex_core.kernels.compile_ahead import kernels_compiled

    return kernels_compiled()


def _bench(model: str, plan: EvaluationPlan, device: str, rank: Rank | None) -> Bench:
    """A model with its weights, ready to answer."""
    found = resolve_model(model)
    plan = plan.for_model(found.spec)
    check_context(plan, found.spec)
    engine = _load(found, plan, device, divided=rank is not None)
    weights = model_digest(found.directory, cache_dir() / "digests.json")
    part = "" if rank is None else f"-{rank.rank}of{rank.size}"
    # A GPU computes a prompt faster than a disk gives it back; its prompts stay in the pool.
    kept = 0 if is_gpu(device) else int(plan.engine.keep_prefill_gib * 2**30)
    store = PromptStore(cache_dir() / "prefill", engine_identity(engine, weights) + part, kept)
    return Bench(engine, plan, weights, store)


def _load(
    found: ModelPath, plan: EvaluationPlan, device: str, *, divided: bool = True, answers: bool = True
) -> Engine:
    """An engine over a model's weights."""
    from vortex_core.engine import Engine
    from vortex_core.engine.models.loading import load_weights
    from vortex_core.engine.models.tokenizer import load_tokenizer

    model = load_weights(found, device=device, dtype=_dtype(plan, device), divided=divided)
    tokenizer = load_tokenizer(found.directory)
    return Engine(model, tokenizer, spec=found.spec, **_room(plan, device, answers))


def _random(model: str, plan: EvaluationPlan, device: str) -> Engine:
    """An engine over random weights of a model's true shape."""
    from vortex_core.engine import Engine
    from vortex_core.engine.models.loading import load_random

    spec = _dimensions(model)
    dtype = _dtype(plan, device) or torch.bfloat16
    found, spec = load_random(spec, device=device, dtype=dtype)
    return Engine(found, spec=spec, **_room(plan, device, answers=False))


def _dtype(plan: EvaluationPlan, device: str) -> torch.dtype | None:
    """What a plan's engine computes in; None: the checkpoint's own.

    bf16 on a GPU, for which its kernels are made (a float32 latent row does not fit a multiprocessor's memory). On a
    CPU that has no bf16 arithmetic float32, whose products are then eight times as fast.
    """
    if is_gpu(device):
        return torch.bfloat16
    if plan.engine.cpu_dtype == "auto" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.float32
    return _DTYPES[plan.engine.cpu_dtype]


def _room(plan: EvaluationPlan, device: str, answers: bool) -> dict[str, Any]:
    """The pool: what the plan needs, and on a GPU no more than its memory holds."""
    if is_gpu(device):
        return {"most_tokens": capacity(plan, generous=True, answers=answers)}
    return {"max_tokens": capacity(plan, answers=answers)}


def run_cpu_stage(
    stage: str,
    flow: Flow,
    model: str | ModelSpec,
    plan: EvaluationPlan,
    seed: int | None = None,
    accuracy_model: str | ModelSpec | None = None,
) -> StageResult:
    """Run a stage that needs no engine, anywhere.

    Args:
        model: dimensions, or a name, directory or GGUF file of them.
        accuracy_model: likewise, where another model answers.
    """
    model = _dimensions(model)
    answers = model if accuracy_model is None else _dimensions(accuracy_model)
    plan = plan.for_model(answers)
    seed = plan.seed if seed is None else seed
    return run_stage(get_stage(stage), flow, Context(plan, model, answers=answers), seed)


def _dimensions(model: str | ModelSpec) -> ModelSpec:
    if isinstance(model, ModelSpec):
        return model
    return load_model(model) if model.lower() in list_models() else resolve_model(model).spec


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
    plan = plan.for_model(worker.context.answering)
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

"""Stage `serving`: throughput and latency inside SGLang, candidate and dense in turn on the same GPU.

It needs a GPU and SGLang's environment, so it is not among the stages that every campaign runs: a plan names it
in `stages` and sets it up in its section `serving`. Both engines live in processes of their own. The dense one
is started once and kept for all candidates; a candidate's is started, measured and ended.
"""

from __future__ import annotations

import random
import statistics
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import Field, PositiveInt

from evaluators import stats
from evaluators.errors import not_what_ran
from evaluators.results import Metric, StageResult
from evaluators.stages.base import Context, Deadline, Needs
from evaluators.stages.settings import StageSettings
from vortex_core.ir.flow import Flow
from vortex_core.serving.bundle import write_flow
from vortex_core.serving.client import Answer, EngineProcess
from vortex_core.serving.settings import Settings

if TYPE_CHECKING:
    from evaluators.plan import EvaluationPlan


class ServingSettings(StageSettings):
    """What is served, and the work that is timed.

    Attributes:
        model: directory or hub id.
        vocabulary: prompts are random token ids below it; they prefill once and stay in the prefix cache.
        batch, context: sequences decoded together, prompt tokens of each.
        short, long: new tokens of the two generations whose difference is decode alone.
        rounds: times both arms are measured, order alternating.
        dense: SGLang attention backend of the dense arm; None: SGLang's default.
        options: further arguments of `sglang.Engine`, for both arms. Where both engines share a GPU,
            `mem_fraction_static` must leave room for two.
        python: interpreter of SGLang's environment; None: `$VORTEX_SGLANG_PYTHON`, else this one.
        variables: further environment variables of the engines.
        backend: of the flow's compiler; None: Triton on a GPU.
    """

    model: str
    vocabulary: PositiveInt
    batch: PositiveInt
    context: PositiveInt
    short: PositiveInt = 17
    long: PositiveInt = 145
    rounds: PositiveInt = 4
    dense: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    python: str | None = None
    variables: dict[str, str] = Field(default_factory=dict)
    backend: str | None = None

    def lengths(self, plan: EvaluationPlan) -> tuple[int, ...]:
        """The context it serves."""
        return (self.context,)

    def check(self, plan: EvaluationPlan) -> None:
        """Decode time is the difference of a long and a short generation."""
        if self.long <= self.short:
            raise ValueError(f"long {self.long} is not above short {self.short}")


class Served(Protocol):
    """An engine that answers batches, such as `EngineProcess`."""

    @property
    def status(self) -> dict[str, Any] | None:
        """What the plug-in reports."""
        ...

    def generate(self, ids: list[list[int]], new: int) -> Answer:
        """Greedy answers."""
        ...

    def close(self) -> None:
        """End it."""
        ...


class ServingStage:
    """Measures candidates in SGLang. Close it, or use it as a context manager: it keeps a dense engine."""

    name = "serving"
    needs: Needs = "cpu"  # no engine of ours; its own are processes

    settings = ServingSettings

    def __init__(self) -> None:
        self._dense: dict[int, Served] = {}

    def start(self, setup: ServingSettings, settings: Settings | None, page_size: int) -> Served:
        """An engine: dense, or with the flow that `settings` name."""
        options = {
            "model_path": setup.model, "skip_tokenizer_init": True, "page_size": page_size,
            "context_length": setup.context + setup.long + page_size, "max_running_requests": setup.batch,
            **setup.options,
        }  # fmt: skip
        if settings is not None:
            options["attention_backend"] = "vortex"
        elif setup.dense is not None:
            options["attention_backend"] = setup.dense
        return EngineProcess(options, settings, python=setup.python, variables=setup.variables)

    def dense(self, setup: ServingSettings, page_size: int) -> Served:
        """The dense engine with the candidate's page size; another page size ends the one before."""
        if page_size not in self._dense:
            self.close()
            self._dense[page_size] = self.start(setup, None, page_size)
        return self._dense[page_size]

    def run(self, flow: Flow, context: Context, seed: int, deadline: Deadline) -> StageResult:
        """Medians; the speed-up's interval resamples rounds.

        Raises:
            VortexError: `VE038` if an engine died, `VV110` if the server reports another program.
        """
        setup = context.plan.section(self.name, ServingSettings)
        page_size = flow.knobs.page_size
        draw = random.Random(seed)
        ids = [draw.choices(range(setup.vocabulary), k=setup.context) for _ in range(setup.batch)]
        with tempfile.TemporaryDirectory() as folder:
            path = write_flow(flow, Path(folder) / "flow.json")
            dense = self.dense(setup, page_size)
            candidate = self.start(setup, Settings(str(path), backend=setup.backend), page_size)
            try:
                arms = {"candidate": candidate, "dense": dense}
                for engine in arms.values():  # prefill, and everything that compiles at first use
                    engine.generate(ids, setup.long)
                steps: dict[str, list[float]] = {name: [] for name in arms}
                firsts: dict[str, list[float]] = {name: [] for name in arms}
                for round_ in range(setup.rounds):
                    deadline.check(f"{round_} of {setup.rounds} rounds")
                    for name in list(arms) if round_ % 2 == 0 else list(arms)[::-1]:
                        first, step = measure(arms[name], ids, setup)
                        firsts[name].append(first)
                        steps[name].append(step)
                status = candidate.status or {}
            finally:
                candidate.close()
        if status.get("ir_hash") != flow.program.ir_hash:
            raise not_what_ran(flow.program.ir_hash, str(status.get("ir_hash")))
        return self._result(setup, steps, firsts, status, seed)

    def _result(
        self,
        setup: ServingSettings,
        steps: dict[str, list[float]],
        firsts: dict[str, list[float]],
        status: dict[str, Any],
        seed: int,
    ) -> StageResult:
        n = setup.rounds
        speedup = stats.bootstrap_median_ratio(steps["dense"], steps["candidate"], seed=seed)
        ours = steps["candidate"]
        middle = statistics.median(ours)
        metrics = {
            "serving_tps": Metric(
                setup.batch / middle, setup.batch / max(ours), setup.batch / min(ours), unit="tokens/s", n=n
            ),
            "serving_speedup": Metric(speedup.value, speedup.low, speedup.high, unit="x", n=n),
            "serving_tpot_ms": Metric(
                middle * 1e3, min(ours) * 1e3, max(ours) * 1e3, unit="ms", higher_is_better=False, n=n
            ),
            "serving_ttft_cached_ms": Metric(
                statistics.median(firsts["candidate"]) * 1e3, unit="ms", higher_is_better=False, n=n
            ),
        }
        info = {
            "interval": "range over rounds; the speed-up's is a bootstrap over rounds",
            "model": setup.model,
            "batch": setup.batch,
            "context": setup.context,
            "dense_tpot_ms": statistics.median(steps["dense"]) * 1e3,
            "dense_ttft_cached_ms": statistics.median(firsts["dense"]) * 1e3,
            "density": status.get("density"),
            "served": status,
        }
        return StageResult(self.name, passed=True, metrics=metrics, info=info)

    def close(self) -> None:
        """End the dense engine."""
        for engine in self._dense.values():
            engine.close()
        self._dense.clear()

    def __enter__(self) -> ServingStage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def measure(engine: Served, ids: list[list[int]], setup: ServingSettings) -> tuple[float, float]:
    """Seconds to the first token of cached prompts, and seconds of a decode step of the batch."""
    first = engine.generate(ids, 1)
    short, long = engine.generate(ids, setup.short), engine.generate(ids, setup.long)
    return first.seconds, (long.seconds - short.seconds) / (setup.long - setup.short)

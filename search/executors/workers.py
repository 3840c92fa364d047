"""What runs inside Ray workers: the resident engine, and the CPU work that never holds it.

Arguments and results are plain JSON values or frozen records, so that drivers and workers of different
processes agree on nothing but these signatures.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from evaluators.errors import wrong_identity
from evaluators.tasks.base import FRESH_SEEDS
from search.errors import crashed
from search.executors.logs import WorkerLog
from vortex_core.device_errors import DeviceLostError, translate
from vortex_core.errors import VortexError
from vortex_core.ir.flow import Flow

if TYPE_CHECKING:
    from evaluators.plan import EvaluationPlan

_NICE = 10
_SHARE = 0.6  # of a machine's memory that its CPU workers may take together
_LEAST_BYTES = 2 << 30  # of one of them


@dataclass(frozen=True)
class EngineSetup:
    """What an engine loads, and on what.

    Attributes:
        model: name, directory or hub id.
        plan: `EvaluationPlan` as JSON.
        device: `cpu` or `cuda`; the process sees its own GPU only.
        threads: CPU threads. (Ray would set one.)
        ranks: processes that hold the engine together.
        accuracy_model: model whose answers are scored, where it is not `model`.
        random_weights: true shape, random numbers: nothing but speed is asked of `model`.
        serving: section of a plan for the stage `serving`.
        screeners: workers that screen programs on this engine's cores while a search goes on.
        cpu_workers: workers that run what needs no engine, and share its machine's memory.
    """

    model: str
    plan: Mapping[str, Any]
    device: str = "cpu"
    threads: int = 1
    ranks: int = 1
    accuracy_model: str | None = None
    random_weights: bool = False
    serving: Mapping[str, Any] | None = None
    screeners: int = 0
    cpu_workers: int = 1


def become_group_leader() -> int:
    """Put this process in a group of its own, so that killing the group ends whatever it started."""
    if os.getpgid(0) != os.getpid():
        os.setpgid(0, 0)
    return os.getpid()


def received(data: dict[str, Any]) -> Flow:
    """A flow as the driver sent it, verified here, and still the one the driver means.

    Raises:
        VortexError: what the verifier finds, or `VV100` if this worker's code reads another program in it.
    """
    flow = Flow.from_json(data)
    if flow.key != data["key"]:
        raise wrong_identity(data["key"], flow.key)
    return flow


def sent(flow: Flow) -> dict[str, Any]:
    """A flow for another process: plain data and the key by which its results are kept."""
    return flow.to_json() | {"key": flow.key}


def share_of_memory(workers: int, total: int) -> int:
    """Bytes that one of so many CPU workers may take of a machine's memory, of which a virtual machine may come to show
    more while it is used."""
    return max(min(_LEAST_BYTES, total // 2), int(min(total / 2, _SHARE * total / max(1, workers))))


def limit_memory(workers: int = 1) -> None:
    """Bound what this process may allocate, so that a program which needs more fails and the machine does not.

    Data, not addresses: torch and CUDA map far more than they use. The machine's own limit stays if it is lower.

    Args:
        workers: CPU workers that share the machine.
    """
    from vortex_core.engine.models.memory import ram_total

    most = share_of_memory(workers, ram_total())
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or hard > most:
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def _beside(setup: EngineSetup) -> int:
    """CPU workers that may share this machine: those of the campaign, and no more than it has cores."""
    return max(1, min(setup.cpu_workers, os.cpu_count() or 1))


def yield_to_the_engine() -> None:
    """Lower this process's priority once: latencies are being measured on the same cores."""
    if os.getpriority(os.PRIO_PROCESS, 0) < _NICE:
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)


_plans: dict[str, EvaluationPlan] = {}


def _plan(told: Mapping[str, Any]) -> EvaluationPlan:
    """The plan of a call, read once a process: reading it anew asks every installed distribution for its tasks and
    stages, which takes as long as a screen."""
    from evaluators.plan import EvaluationPlan

    text = json.dumps(told, sort_keys=True)
    if text not in _plans:
        _plans.clear()
        _plans[text] = EvaluationPlan.model_validate(told)
    return _plans[text]


def _import_stages() -> None:
    """Bring what stages need while engines load: a first task that began with it kept an engine waiting, ten seconds
    and more on a host whose disk is cold."""
    for module in (
        "evaluators.worker",
        "evaluators.stages.machine_code",
        "vortex_core.compiler.triton.ahead",
    ):
        with suppress(ImportError):  # Triton, where it is not to be had: whoever needs it says so
            importlib.import_module(module)


class CpuWorker:
    """Tracing and stages without an engine, one at a time. Answers are as `EngineWorker`'s."""

    role = "cpu"

    def locate(self) -> dict[str, Any]:
        """Begin; the value is this process's group, to be killed if something hangs, and where it writes its log."""
        yield_to_the_engine()
        self._log = WorkerLog(self.role)
        threading.Thread(target=_import_stages, name="imports", daemon=True).start()
        label = f"{socket.gethostname()} cpu worker {os.getpid()}"
        return {"value": {"group": become_group_leader(), "label": label, "log": self._log.place}}

    def trace(self, source: str, campaign: str = "") -> dict[str, Any]:
        """Trace untrusted source in the jail; the value is the `Flow` as JSON."""
        from vortex_core.sandbox.load import trace_source

        about = {"campaign": campaign, "stage": "trace"}
        return _answer(lambda: sent(trace_source(source).flow), self._log, self.role, about)

    def run(self, stage: str, flow: dict[str, Any], setup: EngineSetup, seed: int) -> dict[str, Any]:
        """Run a stage that needs no engine; the value is the `StageResult` as JSON."""
        import torch

        from evaluators.worker import run_cpu_stage as run

        limit_memory(_beside(setup))
        torch.set_num_threads(1)
        plan = _plan(setup.plan)
        answers = setup.accuracy_model
        return _answer(
            lambda: run(stage, received(flow), setup.model, plan, seed, answers).to_json(),
            self._log,
            self.role,
            _about(stage, flow, seed),
        )

    def screen(
        self,
        stage: str,
        flow: dict[str, Any],
        setup: EngineSetup,
        seed: int,
        recordings: tuple[str, ...],
        layers: int,
    ) -> dict[str, Any]:
        """Score a flow; the value is the `StageResult` as JSON (`search.executors.screening`)."""
        import torch

        from search.executors.screening import screen

        limit_memory(_beside(setup))
        torch.set_num_threads(1)
        plan = _plan(setup.plan)
        answers = setup.accuracy_model
        return _answer(
            lambda: screen(
                stage, received(flow), setup.model, plan, seed, recordings, layers, answers
            ).to_json(),
            self._log,
            self.role,
            _about(stage, flow, seed),
        )

    def record(self, model: str, plan: dict[str, Any], seed: int) -> dict[str, Any]:
        """Record a further model's attention; the value is the file. Nothing is loaded where it is on disk."""
        import torch

        from evaluators.plan import EvaluationPlan
        from evaluators.worker import EvaluationWorker

        torch.set_num_threads(1)
        settings = EvaluationPlan.model_validate(plan)
        about = {"stage": "record", "seed": seed}
        return _answer(
            lambda: str(EvaluationWorker(model, settings, device="cpu").screen_file(seed)),
            self._log,
            self.role,
            about,
        )

    def second(self, flow: dict[str, Any], setup: EngineSetup, seed: int) -> dict[str, Any]:
        """A flow on sealed items of a model that the search never saw; the value is the `StageResult` as JSON.

        The model stays for the next flow.
        """
        import torch

        from evaluators.plan import EvaluationPlan
        from evaluators.worker import EvaluationWorker

        torch.set_num_threads(1)

        def work() -> dict[str, Any]:
            if getattr(self, "_other", None) is None:
                plan = EvaluationPlan.model_validate(setup.plan)
                self._other = EvaluationWorker(setup.model, plan, device="cpu")
            return replace(self._other.run("holdout", received(flow), seed), stage="second").to_json()

        return _answer(work, self._log, self.role, _about("second", flow, seed))


class ServingWorker(CpuWorker):
    """Holds the GPUs on which SGLang's processes, which it starts, serve one finalist after another."""

    role = "serving"

    def locate(self) -> dict[str, Any]:
        """See `CpuWorker`; nothing here yields to an engine or is bounded, for SGLang inherits it."""
        self._log = WorkerLog(self.role)
        label = f"{socket.gethostname()} sglang"
        return {"value": {"group": become_group_leader(), "label": label, "log": self._log.place}}

    def run(self, stage: str, flow: dict[str, Any], setup: EngineSetup, seed: int) -> dict[str, Any]:
        """The stage `serving`; the dense engine is kept for the next finalist."""
        from evaluators.plan import EvaluationPlan
        from evaluators.worker import run_cpu_stage as run

        plan = EvaluationPlan.model_validate({**setup.plan, stage: dict(setup.serving or {})})
        return _answer(
            lambda: run(stage, received(flow), setup.model, plan, seed).to_json(),
            self._log,
            self.role,
            _about(stage, flow, seed),
        )


class EngineWorker:
    """A resident evaluation worker: model loaded once, prompts prefilled once, candidates swapped.

    Answers are `{"value": ...}`, `{"error": VortexError as JSON}`, or `{"crash": VortexError as JSON}` for an
    exception that nobody expects: exceptions with several arguments do not survive pickling.

    Args:
        setup: what to load.
    """

    role = "engine"

    def __init__(self, setup: EngineSetup) -> None:
        self._setup = setup
        self._worker: Any = None
        self._log = WorkerLog(self.role)

    def locate(self) -> dict[str, Any]:
        """Begin, before anything is loaded; the value says how to kill this process and how to reach it."""
        group = become_group_leader()
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "") if self._setup.device == "cuda" else ""
        label = f"{socket.gethostname()} gpu{gpu}" if gpu else f"{socket.gethostname()} cpu"
        if self._setup.device != "cuda":
            label += f" {os.getpid()}"  # several engines of one host have no GPU to tell them apart
        return {"value": {"group": group, "label": label, "port": port, "log": self._log.place}}

    def start(self, rank: int, address: str, port: int) -> dict[str, Any]:
        """Load the model; the value is `search.machine.device_facts`.

        Args:
            rank: this process among those that hold the engine together.
            address: where the first of them listens.
            port: likewise.
        """
        about = {"stage": "load", "model": self._setup.model, "rank": rank}
        return _answer(lambda: self._load(rank, address, port), self._log, self.role, about)

    def _load(self, rank: int, address: str, port: int) -> dict[str, Any]:
        import torch

        from evaluators.plan import EvaluationPlan
        from evaluators.worker import EvaluationWorker, Rank
        from search.executors.preflight import require
        from search.machine import device_facts, versions

        setup = self._setup
        torch.set_num_threads(setup.threads)
        require(setup)
        self._worker = EvaluationWorker(
            setup.model,
            EvaluationPlan.model_validate(setup.plan),
            device=setup.device,
            threads=setup.threads,
            accuracy_model=setup.accuracy_model,
            random_weights=setup.random_weights,
            # Ray shows each rank its own GPU only, which is therefore number 0 in all of them.
            tensor_parallel=Rank(rank, setup.ranks, address, port) if setup.ranks > 1 else None,
        )
        return device_facts(setup.device, ranks=setup.ranks) | {
            "weights": _weights(setup),
            "versions": versions(),
        }

    def run(self, stage: str, flow: dict[str, Any], seed: int) -> dict[str, Any]:
        """One stage; the value is the `StageResult` as JSON."""
        self._share_cores(seed)
        return _answer(
            lambda: self._worker.run(stage, received(flow), seed).to_json(),
            self._log,
            self.role,
            _about(stage, flow, seed),
        )

    def _share_cores(self, seed: int) -> None:
        """On the CPU, leave the screeners their cores while a search goes on: threads of which one was preempted make
        the others wait, so that beside two screeners two of them answered five times slower than alone. Nothing is
        screened beside fresh and sealed items, nor before the search."""
        import torch

        setup = self._setup
        if setup.device == "cpu":
            beside = setup.screeners if seed < FRESH_SEEDS else 0
            torch.set_num_threads(max(1, setup.threads - beside))

    def screen_file(self, seed: int) -> dict[str, Any]:
        """Record attention for the screen, where it is not on disk; the value is the file."""
        about = {"stage": "record", "seed": seed}
        return _answer(lambda: str(self._worker.screen_file(seed)), self._log, self.role, about)

    def reference(self, seed: int, known: dict[str, Any] | None) -> dict[str, Any]:
        """Prefill a seed's prompts; the value is the dense results, `known` ones taken over."""
        self._share_cores(seed)
        about = {"stage": "reference", "seed": seed}
        return _answer(lambda: self._reference(seed, known), self._log, self.role, about)

    def _reference(self, seed: int, known: dict[str, Any] | None) -> Any:
        if known is not None:
            from evaluators.reference import DenseReference

            self._worker.bench.adopt(DenseReference.from_json(known))
        self._worker.prepare(seed)
        return self._worker.reference(seed)


def _about(stage: str, flow: dict[str, Any], seed: int) -> dict[str, Any]:
    """What a log line says of a stage: whose it is, and of which candidate."""
    return {
        "campaign": flow.get("campaign", ""),
        "candidate": flow.get("key", ""),
        "name": flow.get("name", ""),
        "stage": stage,
        "seed": seed,
    }


def _weights(setup: EngineSetup) -> str:
    """Identity of what an engine has loaded, by content: the model's weights, and those that answer for it."""
    from evaluators.identity import model_digest
    from vortex_core.engine.models.weights import cache_dir, resolve_model

    def digest(model: str) -> str:
        return model_digest(resolve_model(model).directory, cache_dir() / "digests.json")

    own = "random" if setup.random_weights else digest(setup.model)
    return own if setup.accuracy_model is None else f"{own}+{digest(setup.accuracy_model)}"


def _answer(work: Callable[[], Any], log: WorkerLog, role: str, about: dict[str, Any]) -> dict[str, Any]:
    """Do it, write down how it went, and answer in a form that pickles."""
    from search.executors.metrics import stage_ran

    began = time.monotonic()
    answer, outcome = _attempt(work, log, about)
    seconds = time.monotonic() - began
    log.say(outcome, seconds=round(seconds, 4), **about)
    stage_ran(str(about.get("campaign", "")), about["stage"], role, outcome, seconds)
    return answer


def _attempt(work: Callable[[], Any], log: WorkerLog, about: dict[str, Any]) -> tuple[dict[str, Any], str]:
    try:
        return {"value": work()}, "done"
    except DeviceLostError as error:  # nothing that this process holds is good for anything any more
        error.log = log.failed("device lost", error, **about)
        return {"crash": error.to_json()}, "device lost"
    except VortexError as error:
        if error.fault == "infrastructure":
            error.log = error.log or log.failed(error.code, error, **about)
        return {"error": error.to_json()}, error.code
    except Exception as error:  # noqa: BLE001 - whatever it is, the driver must learn of it in a form that pickles
        found = translate(error, "the worker", flow=False) or crashed(error)
        found.log = log.failed("crashed", error, **about)
        return {"crash": found.to_json()}, "crashed"

"""Exceptions of Triton, torch and CUDA as errors with numbers, a remedy, and whose fault they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from evaluators.plan import load_plan
from evaluators.results import StageResult
from evaluators.stages.base import Context, run_stage
from search.executors import workers
from search.executors.logs import WorkerLog
from vortex_core import library
from vortex_core.device_errors import DeviceLostError, device_errors, translate
from vortex_core.engine import memory
from vortex_core.errors import VortexError
from vortex_core.specs import load_model

FULL = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.20 GiB is "
    "free. Process 4 has 77.90 GiB memory in use."
)
SHARED = OutOfResources(335936, 232448, "shared memory")
ILLEGAL = RuntimeError(
    "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ..."
)


@pytest.mark.parametrize(
    ("error", "flow", "code", "fault", "said"),
    [
        (
            SHARED,
            True,
            "VE051",
            "candidate",
            ("335,936 bytes of shared memory", "232,448", "smaller page_size"),
        ),
        (SHARED, False, "VE051", "infrastructure", ("335,936", "bf16")),
        (FULL, True, "VE053", "candidate", ("2.50 GiB more", "1.20 GiB of 79.11 GiB", "fewer states")),
        (FULL, False, "VE054", "infrastructure", ("2.50 GiB more", "1.20 GiB of 79.11 GiB", "max_tokens")),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True, "VE053", "candidate", ("more memory",)),
        (ILLEGAL, True, "VE055", "infrastructure", ("illegal memory access", "replaced")),
        (
            RuntimeError("Triton Error [CUDA]: device-side assert"),
            False,
            "VE055",
            "infrastructure",
            ("assert",),
        ),
        (PTXASError("ptxas fatal: x\n"), True, "VE052", "candidate", ("ptxas fatal: x", "report")),
        (PTXASError("ptxas fatal: x"), False, "VE052", "infrastructure", ("defect",)),
        (CompilationError("def f():\n  x", None, "bad type"), True, "VE052", "candidate", ("bad type",)),
    ],
)
def test_what_the_device_refuses_is_typed(
    error: Exception, flow: bool, code: str, fault: str, said: tuple[str, ...]
):
    found = translate(error, "stage recall", flow=flow)
    assert found is not None
    assert (found.code, found.fault) == (code, fault)
    assert found.message.startswith("stage recall")
    assert all(part in str(found) for part in said), str(found)
    assert isinstance(found, DeviceLostError) == (code == "VE055")


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes do not match"), ValueError("CUDA error"), KeyError("x")]
)
def test_anything_else_stays_what_it_is(error: Exception):
    assert translate(error, "x", flow=True) is None
    with pytest.raises(type(error)), device_errors("x", flow=True):
        raise error


def test_a_typed_error_passes_through_unchanged():
    error = VortexError("VE019", "states")
    with pytest.raises(VortexError) as caught, device_errors("x", flow=False):
        raise error
    assert caught.value is error


class Probe:
    name = "recall"
    needs: Any = "cpu"
    settings = None

    def __init__(self, error: Exception) -> None:
        self.error = error

    def run(self, *_: Any) -> StageResult:
        raise self.error


@pytest.mark.parametrize(("flow", "fault"), [("quest", "candidate"), ("dense", "infrastructure")])
def test_a_stage_blames_the_flow_only_if_there_is_one(flow: str, fault: str):
    context = Context(load_plan("default"), load_model("smollm2-135m"))
    result = run_stage(Probe(FULL), library.load(flow), context, 0)  # type: ignore[arg-type]
    assert result.failure is not None
    assert result.failure.kind == fault


def test_a_lost_device_is_no_result_and_the_worker_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("VORTEX_LOGS", str(tmp_path))
    context = Context(load_plan("default"), load_model("smollm2-135m"))

    def stage() -> Any:
        return run_stage(Probe(ILLEGAL), library.load("quest"), context, 0)  # type: ignore[arg-type]

    with pytest.raises(DeviceLostError):
        stage()
    log, about = WorkerLog("engine"), {"stage": "probe"}
    answer = workers._answer(stage, log, "engine", about)
    assert answer["crash"]["code"] == "VE055"
    assert answer["crash"]["place"].startswith("evaluators/stages/base.py")
    full = workers._answer(lambda: (_ for _ in ()).throw(FULL), log, "engine", about)
    assert full["crash"]["code"] == "VE054"
    odd = workers._answer(lambda: {}["x"], log, "engine", about)  # type: ignore[index]
    assert (odd["crash"]["code"], odd["crash"]["fault"]) == ("VS019", "infrastructure")
    assert odd["crash"]["place"].startswith("search/executors/workers.py")


def test_states_that_do_not_fit_are_the_candidates(
    make_engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    engine = make_engine(2048)
    quest = library.load("quest")
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    with pytest.raises(VortexError) as caught:
        engine.load_flow(quest.program, quest.knobs)
    error = caught.value
    assert (error.code, error.fault, error.retryable) == ("VE019", "candidate", False)
    assert "bytes for every page in" in error.message and "would fit" in error.message
    assert "fewer bits" in error.remedy
    engine.load_flow(None)  # the engine is as good as before
    assert engine.ir_hash == "dense"


def test_a_pool_that_does_not_fit_says_what_would(monkeypatch: pytest.MonkeyPatch):
    geometry = load_model("smollm2-135m").geometry()
    token = memory.kv_bytes_per_token(geometry, torch.bfloat16)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10_000 * token)
    memory.check_pool_fits(geometry, torch.bfloat16, 9_000, torch.device("cuda"))
    with pytest.raises(VortexError) as caught:
        memory.check_pool_fits(geometry, torch.bfloat16, 20_000, torch.device("cuda"))
    error = caught.value
    assert (error.code, error.fault) == ("VE054", "infrastructure")
    assert "20,000 tokens" in error.message
    fits = int(error.remedy.split(" tokens fit")[0].split()[-1].replace(",", ""))
    assert 8_000 < fits < 9_000
    memory.check_pool_fits(geometry, torch.bfloat16, fits, torch.device("cuda"))

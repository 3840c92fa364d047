"""One program on recorded attention, as workers do it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evaluators.plan import EvaluationPlan, load_plan
from evaluators.screen import AttentionRecording, Screener, ScreenScore, held
from evaluators.tasks.base import FRESH_SEEDS
from evaluators.worker import EvaluationWorker
from search.executors import workers
from search.executors.screening import screen
from search.executors.workers import CpuWorker, EngineSetup, sent
from vortex_core import library
from vortex_core.ir.flow import Flow

MODEL = "retrieval-gqa"


@pytest.fixture(scope="module")
def plan() -> EvaluationPlan:
    raw = load_plan("skills").model_dump(mode="json")
    raw["accuracy"]["tasks"] = [raw["accuracy"]["tasks"][0] | {"items": 4, "context": 512}]
    return EvaluationPlan.model_validate(
        raw | {"screen": {"retrieval_items": 2, "passages": 0, "steps": 1, "at": 1, "most_tokens": 600}}
    )


@pytest.fixture(scope="module")
def recording(plan: EvaluationPlan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VORTEX_CACHE", str(tmp_path_factory.mktemp("cache")))
        made = EvaluationWorker(MODEL, plan, device="cpu", threads=1).screen_file(0)
    assert made is not None
    return made


def test_what_is_left_of_the_output_is_a_number_that_may_rank_programs(
    plan: EvaluationPlan, recording: Path
) -> None:
    found = {}
    for name, budget in (
        ("streaming", "0.125 * length"),
        ("quest", "0.125 * length"),
        ("quest", "0.25 * length"),
    ):
        flow = library.load(name).flow.with_knobs(page_size=16, budget=budget, dense_layers=())
        result = screen("screen", flow, MODEL, plan, 0, (str(recording),), 2)
        assert result.passed
        output, error = result.metrics["screen_own_output"], result.metrics["screen_output_error"]
        assert output.value == pytest.approx(1 - error.value)
        assert output.higher_is_better and output.low is not None and output.high is not None
        assert output.low <= output.value <= output.high
        found[name, budget] = output.value
    assert len(set(found.values())) == 3 and max(found.values()) < 1
    flow = library.load("quest").flow.with_knobs(page_size=16, budget="0.125 * length", dense_layers=())
    once = screen("screen", flow, MODEL, plan, 0, (str(recording),), 2).metrics["screen_own_output"]
    twice = screen("screen", flow, MODEL, plan, 0, (str(recording),) * 2, 2).metrics["screen_own_output"]
    assert twice.value == pytest.approx(once.value)
    assert twice.low is not None and once.low is not None  # a second recording counts as one of its own
    assert twice.value - twice.low == pytest.approx((once.value - once.low) / 2**0.5)


def test_a_worker_reads_its_plan_once(
    plan: EvaluationPlan, recording: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(workers, "limit_memory", lambda workers: None)
    monkeypatch.setattr(workers, "_plans", {})
    worker = CpuWorker()
    worker._log = workers.WorkerLog("cpu")
    flow = sent(library.load("quest").flow.with_knobs(page_size=16, budget="0.125 * length", dense_layers=()))
    read: list[object] = []
    real = EvaluationPlan.model_validate

    def validate(data: object) -> EvaluationPlan:
        read.append(data)
        return real(data)

    monkeypatch.setattr(EvaluationPlan, "model_validate", validate)
    setup = EngineSetup(MODEL, plan.model_dump(mode="json"))
    other = EngineSetup(MODEL, {**setup.plan, "name": "another"})
    for told in (setup, setup, other, setup):
        answer = worker.screen("screen", flow, told, 0, (str(recording),), 2)
        assert answer["value"]["passed"]
    assert len(read) == 3  # once for each change of plan


@pytest.mark.parametrize(
    ("seed", "screeners", "wanted"), [(3, 1, 2), (3, 0, 3), (FRESH_SEEDS, 1, 3), (3, 9, 1)]
)
def test_an_engine_leaves_screeners_their_cores_while_a_search_goes_on(
    monkeypatch: pytest.MonkeyPatch, seed: int, screeners: int, wanted: int
) -> None:
    used: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    engine = workers.EngineWorker(EngineSetup(MODEL, {}, threads=3, screeners=screeners))
    flow = sent(library.load("quest").flow)
    engine.run("gate", flow, seed)  # nothing is loaded: it fails, after it took its threads
    engine.reference(seed, None)
    assert used == [wanted, wanted]
    used.clear()
    workers.EngineWorker(EngineSetup(MODEL, {}, device="cuda", threads=3, screeners=1)).run("gate", flow, 3)
    assert used == []


@pytest.mark.parametrize("room", ["beside others", "never"])
def test_what_does_not_fit_is_tried_without_what_is_held_and_then_the_programs_own(
    plan: EvaluationPlan, recording: Path, monkeypatch: pytest.MonkeyPatch, room: str
) -> None:
    flow = library.load("quest").flow.with_knobs(page_size=16, budget="0.125 * length", dense_layers=())
    real, tried = Screener.score, []

    def score(self: Screener, flow: Flow, *, own: bool = True) -> ScreenScore:
        tried.append(len(held._held))
        if room == "never" or len(tried) == 1:
            raise RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 660602880 bytes."
            )
        return real(self, flow, own=own)

    assert screen("screen", flow, MODEL, plan, 0, (str(recording),), 2).passed
    assert held._held, "rows are kept for the next program"
    monkeypatch.setattr(Screener, "score", score)
    result = screen("screen", flow, MODEL, plan, 0, (str(recording),), 2)
    assert tried[0] > 0 and tried[1:] == [0], "once more, with nothing held"
    assert result.passed == (room != "never")
    if not result.passed:
        assert result.failure is not None and result.failure.kind == "candidate"
        assert result.failure.error["code"] == "VE053"
        assert "660602880 bytes" in result.failure.error["message"]


@pytest.mark.parametrize("name", ["quest", "twilight", "h2o", "lserve"])
def test_pieces_say_what_the_whole_says(recording: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    flow = library.load(name).flow.with_knobs(page_size=16, dense_layers=())
    screener = Screener(AttentionRecording.load(recording), layers=2)
    whole = screener.score(flow).to_json()
    monkeypatch.setattr("evaluators.screen.select._AT_ONCE", 1)
    pieces = screener.score(flow).to_json()
    for a, b in zip(whole["points"], pieces["points"], strict=True):
        assert a["density"] == b["density"]
        assert a["beyond"] == pytest.approx(b["beyond"], abs=1e-5)
        assert a["output_error"] == pytest.approx(b["output_error"], abs=1e-5)


def test_rows_that_are_held_stay_within_their_bound(recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held.free_rows()
    screener = Screener(AttentionRecording.load(recording), layers=2)
    flow = library.load("quest").flow.with_knobs(dense_layers=())
    screener.score(flow.with_knobs(page_size=16))
    one = next(iter(held._held.values())).nbytes
    monkeypatch.setattr(held, "MOST_BYTES", int(2.5 * one))
    for size in (32, 64, 8, 16, 32):
        screener.score(flow.with_knobs(page_size=size))
        assert sum(rows.nbytes for rows in held._held.values()) <= max(
            held.MOST_BYTES, next(reversed(held._held.values())).nbytes
        )
    assert next(reversed(held._held.values())).size == 32


def test_a_workers_memory_is_its_share_of_the_machine() -> None:
    gib = 1 << 30
    assert workers.share_of_memory(1, 16 * gib) == 8 * gib, "half of it beside one engine"
    assert workers.share_of_memory(14, 200 * gib) == int(0.6 * 200 * gib / 14)
    assert workers.share_of_memory(64, 64 * gib) == 2 * gib
    assert workers.share_of_memory(8, 2 * gib) == gib


def test_parts_that_are_too_many_to_keep_are_made_anew(
    recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = library.load("quest").flow.with_knobs(page_size=16, dense_layers=())
    screener = Screener(AttentionRecording.load(recording), layers=2)
    kept = screener.score(flow).own
    held.free_rows()
    monkeypatch.setattr("evaluators.screen.dense._PARTS", 0)
    anew = screener.score(flow).own
    assert kept is not None and anew is not None
    assert anew.output_error == pytest.approx(kept.output_error, rel=1e-4)
    assert "parts" not in next(iter(held._held.values())).__dict__

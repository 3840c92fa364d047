from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from evaluators.bench import Bench
from evaluators.plan import EvaluationPlan
from evaluators.recall import RecallScore, Recorder, measure_recall
from evaluators.screen import AttentionRecording, Screener
from evaluators.screen.dense import DenseRows
from evaluators.screen.record import _DifferentiatedStep, record_attention
from evaluators.screen.select import Selector, evenly_among
from evaluators.worker import EvaluationWorker
from tests.cpu.evaluators.conftest import PLAN, candidate
from vortex_core.compiler import backends
from vortex_core.compiler.interface import BatchView
from vortex_core.engine import Engine
from vortex_core.errors import VortexError
from vortex_core.ir.flow import Flow
from vortex_core.runtime.torch_attention import sparse_decode

STEPS = 4


@pytest.fixture(scope="module")
def ids() -> list[list[int]]:
    random = torch.Generator().manual_seed(5)
    # At 254 tokens the second of four steps completes a page of 16 and a block of 128.
    return [torch.randint(0, 256, (n,), generator=random).tolist() for n in (254, 301)]


@pytest.fixture(scope="module")
def recording(engine: Engine, ids: list[list[int]]) -> AttentionRecording:
    engine.load_flow(None)
    prompts = [engine.prefill(tokens) for tokens in ids]
    found = record_attention(
        engine, prompts, ["a", "b"], steps=STEPS, at=STEPS, key="k", scale=engine.geometry.head_dim**-0.5
    )
    for prompt in prompts:
        engine.release(prompt)
    return found


@pytest.fixture(scope="module")
def screener(recording: AttentionRecording) -> Screener:
    return Screener(recording, budgets=("64", "length"))


def decoded(engine: Engine, ids: list[list[int]], flow: Flow) -> RecallScore:
    """What a flow captures by the engine's own selections."""
    prompts = [engine.prefill(tokens) for tokens in ids]
    engine.load_flow(None)
    recorder = Recorder(engine.geometry, STEPS, engine.geometry.head_dim**-0.5)
    engine.decode(prompts, max_new_tokens=STEPS, recorder=recorder)
    for prompt in prompts:
        engine.release(prompt)
    compiled = backends.get("torch").compile(flow.program, flow.knobs, engine.geometry)
    return measure_recall(compiled, recorder.finish())


@pytest.mark.parametrize("knobs", [{}, {"page_size": 32}, {"dense_layers": (0, 1)}, {"reuse_steps": 2}])
@pytest.mark.parametrize("reuse_layers", [1, 64])
def test_it_captures_what_a_decode_by_the_mass_of_a_dense_layer_captures(
    engine: Engine, ids: list[list[int]], screener: Screener, knobs: dict[str, Any], reuse_layers: int
) -> None:
    settings = {"dense_layers": (0,), "keep_last": 1, "budget": "64", "reuse_layers": reuse_layers} | knobs
    flow = candidate("tidaldecode", **settings)
    sparse = tuple(layer for layer in range(3) if layer not in flow.knobs.dense_layers)
    wanted = decoded(engine, ids, flow)
    score = screener.score(flow)
    assert score.own is not None and score.layers == sparse
    assert score.own.recall == pytest.approx(float(wanted.recall[list(sparse)].mean()), abs=1e-5)


@pytest.mark.parametrize("flow", ["quest", "running_average", "h2o", "freekv", "snapkv", "sparq", "lserve"])
@pytest.mark.parametrize(
    "knobs", [{}, {"page_size": 32, "keep_first": 0}, {"reuse_layers": 3}, {"reuse_steps": 2}]
)
def test_it_captures_what_a_decode_on_the_same_queries_captures(
    engine: Engine, ids: list[list[int]], screener: Screener, flow: str, knobs: dict[str, Any]
) -> None:
    """Against the engine's own selections, states and reuse, which run step by step and layer by layer."""
    program = candidate(flow, budget="64", **({"reuse_steps": 1} | knobs))
    wanted = decoded(engine, ids, program)
    score = screener.score(program)
    assert score.own is not None and score.layers == (0, 1, 2)
    assert score.own.recall == pytest.approx(float(wanted.recall.mean()), abs=1e-5)
    # Ours weighs steps by their pages.
    assert score.own.density == pytest.approx(float(wanted.density.mean()), rel=0.01)
    assert score.at("64").recall == pytest.approx(score.own.recall, abs=1e-6)


@pytest.mark.parametrize("at_once", [True, False])
def test_an_entry_for_each_page_left_out_is_counted_in_the_output(
    recording: AttentionRecording, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the merge that backends do, row by row."""
    if not at_once:
        monkeypatch.setattr("evaluators.screen.select.remembers", lambda flow: True)
    flow = candidate("retroinfer", budget="64", keep_last=1, page_size=16)
    score = Screener(recording, budgets=("64",)).score(flow).at("64")
    rows = DenseRows(recording, 16, (0, 1, 2), recording.at)
    compiled = backends.get("torch").compile(flow.program, flow.knobs, recording.geometry)
    states = compiled.new_states(rows.kv.k.shape[1], torch.device("cpu"))
    every = torch.arange(rows.kv.k.shape[1])
    compiled.update(states, rows.kv, every, 0)
    budgets = torch.tensor([flow.knobs.pages(int(n)) for n in rows.lengths])
    view = BatchView(rows.table, rows.lengths, budgets, int(rows.lengths.max()))
    selected = compiled.select(rows.q, states, view, 0)
    lse = torch.empty(rows.q.shape[:2])
    out, _ = sparse_decode(rows.q.float(), rows.kv, selected, recording.scale, lse=lse)
    out = compiled.merge_residual(out, lse, selected, states, view)
    wanted = (out - rows.out).square().sum() / rows.out.square().sum()
    assert score.output_error == pytest.approx(float(wanted), rel=1e-3)
    without = Screener(recording, budgets=("64",)).score(
        candidate("block_topk", budget="64", keep_last=1, page_size=16)
    )
    assert score.output_error != pytest.approx(without.at("64").output_error, rel=0.01)


@pytest.mark.parametrize("flow", ["quest", "h2o", "dense"])
def test_with_everything_selected_nothing_is_lost(screener: Screener, flow: str) -> None:
    point = screener.score(candidate(flow)).at("length")
    assert point.density == 1
    assert point.beyond == pytest.approx(1, abs=1e-5)
    assert point.output_error == pytest.approx(0, abs=1e-9)
    assert point.logit_error == pytest.approx(0, abs=1e-6)


def test_all_steps_at_once_is_the_same_as_one_after_another(recording: AttentionRecording) -> None:
    rows = DenseRows(recording, 16, (0, 1, 2), recording.at)
    for name in ("quest", "shadowkv", "nsa"):
        flow = candidate(name, page_size=16, reuse_layers=1, reuse_steps=1)
        compiled = backends.get("torch").compile(flow.program, flow.knobs, recording.geometry)
        selector = Selector(flow, compiled, rows, ["64", None])  # type: ignore[arg-type]
        assert torch.equal(selector._at_once(), selector._in_order())


def test_hindsight_bounds_and_budgets_order(screener: Screener) -> None:
    wide = Screener(screener.recording, budgets=("64", "128", "192"))
    for name in ("quest", "block_topk", "sparq"):
        points = wide.score(candidate(name), own=False).points
        assert all(p.beyond <= 1 + 1e-6 for p in points)
        assert points[0].recall <= points[1].recall <= points[2].recall
        assert points[0].output_error >= points[2].output_error


@pytest.mark.parametrize("page", [16, 32])
def test_what_hindsight_chooses_has_all_the_mass_and_the_least_error(
    recording: AttentionRecording, page: int
) -> None:
    screener = Screener(recording, budgets=("96", "128", "length"))
    best = screener.hindsight(candidate("block_topk", page_size=page))
    assert [p.beyond for p in best] == pytest.approx([1, 1, 1], abs=1e-5)
    assert best[2].output_error == pytest.approx(0, abs=1e-9)
    assert best[0].output_error > best[1].output_error > 1e-3
    for name in ("quest", "block_topk", "streaming"):
        for hindsight, found in zip(
            best[:2], screener.score(candidate(name, page_size=page), own=False).points, strict=False
        ):
            assert found.recall < hindsight.recall and found.density == hindsight.density
            assert found.output_error > hindsight.output_error


def test_a_flow_may_not_shine_in_the_layers_looked_at(recording: AttentionRecording) -> None:
    """Sampled layers are drawn from the sparse ones, and a budget that knows layers is scored in all of them."""
    one = Screener(recording, budgets=("64",), layers=1)
    plain = one.score(candidate("quest", budget="64"))
    assert plain.layers == (1,)
    dense_there = one.score(candidate("quest", budget="64", dense_layers=plain.layers))
    assert dense_there.layers and not set(dense_there.layers) & set(plain.layers)
    assert dense_there.own is not None and dense_there.own.density > 1 / 3
    rich_there = one.score(candidate("quest", budget="length if layer == 1 else 64"))
    assert rich_there.layers == (0, 1, 2)
    assert evenly_among(range(30), 8) == (1, 5, 9, 13, 16, 20, 24, 28)


def test_slopes_say_how_logits_move(
    engine: Engine, ids: list[list[int]], recording: AttentionRecording
) -> None:
    assert recording.slopes is not None and recording.logprobs is not None
    generator = torch.Generator().manual_seed(1)
    g = recording.geometry
    inputs = torch.tensor([[tokens[-1]] for tokens in ids])
    positions = torch.tensor([[len(tokens) - 1] for tokens in ids])

    def logits(added: list[torch.Tensor]) -> torch.Tensor:
        step = _DifferentiatedStep(recording, [(0, 0), (0, 1)])
        step.added = added
        with torch.no_grad():
            output: Any = engine.model(
                input_ids=inputs, position_ids=positions, use_cache=False, vortex_step=step
            )
        found: torch.Tensor = output.logits[:, -1]
        return found

    change = [1e-3 * torch.randn(2, g.q_heads, g.value_dim, generator=generator) for _ in range(g.layers)]
    plain, up = logits([torch.zeros_like(x) for x in change]), logits(change)
    top = plain.log_softmax(-1).topk(8)
    assert torch.allclose(recording.logprobs[:, 0].T, top.values, atol=1e-4)
    moved = (up - up.mean(-1, keepdim=True)) - (plain - plain.mean(-1, keepdim=True))
    wanted = moved.gather(-1, top.indices)
    predicted = torch.einsum("kblhd,lbhd->bk", recording.slopes[:, 0], torch.stack(change))
    assert torch.allclose(predicted, wanted, atol=0.05 * float(wanted.abs().max()))


def test_a_file_is_the_recording(recording: AttentionRecording, screener: Screener, tmp_path: Path) -> None:
    path = tmp_path / "attention.safetensors"
    recording.save(path)
    again = Screener(AttentionRecording.load(path), budgets=("64", "length")).score(candidate("quest"))
    first = screener.score(candidate("quest"))
    assert again.points == first.points
    path.write_bytes(path.read_bytes()[:1000])
    for bad in (path, tmp_path / "none.safetensors"):
        with pytest.raises(VortexError) as caught:
            AttentionRecording.load(bad)
        assert caught.value.code == "VV016"


def test_the_stage_records_once_and_stops_what_is_too_low(engine: Engine) -> None:
    data: dict[str, Any] = PLAN | {
        "screen": {"most_tokens": 700, "steps": 6, "at": 2, "budgets": ["64", "128"], "min_beyond": 0.0},
        "stages": ["static", "screen"],
    }
    plan = EvaluationPlan.model_validate(data)
    worker = EvaluationWorker.of_engine(engine, plan)
    result = worker.run("screen", candidate("quest", budget="64"))
    assert result.passed and result.metrics["screen_own_beyond"].how == "recorded"
    assert set(result.info["budgets"]) == {"64", "128"}
    bench: Bench = worker.bench
    assert bench.attention(0).kinds == ("needle_single", "held_text")
    assert worker.screen_file() is None  # a worker without a folder keeps nothing
    strict = EvaluationPlan.model_validate(data | {"screen": {**data["screen"], "min_beyond": 1.0}})
    stopped = EvaluationWorker.of_engine(engine, strict).run("screen", candidate("streaming", budget="64"))
    assert not stopped.passed and stopped.failure is not None
    assert stopped.failure.error["code"] == "VV104" and stopped.metrics

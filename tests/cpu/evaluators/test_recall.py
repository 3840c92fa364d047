from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from evaluators.recall import Recorder, Recording, measure_recall
from vortex_core import library
from vortex_core.compiler import backends
from vortex_core.engine import Engine

STEPS = 4


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    random = torch.Generator().manual_seed(5)
    # At 254 tokens the second of four steps completes a page of 16 and a block of 128.
    return [torch.randint(0, 256, (n,), generator=random).tolist() for n in (254, 301)]


@pytest.fixture(scope="module")
def recording(engine: Engine, prompts: list[list[int]]) -> Recording:
    engine.load_flow(None)
    pinned = [engine.prefill(ids) for ids in prompts]
    recorder = Recorder(engine.geometry, STEPS, engine.geometry.head_dim**-0.5)
    engine.decode(pinned, max_new_tokens=STEPS + 1, recorder=recorder)
    for prompt in pinned:
        engine.release(prompt)
    return recorder.finish()


def compiled(engine: Engine, flow: str, **knobs: Any) -> Any:
    traced = library.load(flow).with_knobs(**knobs)
    return backends.get("torch").compile(traced.program, traced.knobs, engine.geometry)


def test_recorded_probabilities_are_those_of_the_model(
    plain_model: LlamaForCausalLM, recording: Recording, prompts: list[list[int]]
) -> None:
    assert recording.lengths == (254 + STEPS - 1, 301 + STEPS - 1)
    for b, ids in enumerate(prompts):
        with torch.inference_mode():
            attentions = plain_model(torch.tensor([ids]), output_attentions=True).attentions
        for layer, expected in enumerate(attentions):
            found = recording.probabilities[layer][0][b]
            assert torch.allclose(found[:, : len(ids)], expected[0, :, -1], atol=1e-4)
            assert float(found[:, len(ids) :].abs().max()) == 0


def test_dense_recalls_everything(engine: Engine, recording: Recording) -> None:
    score = measure_recall(compiled(engine, "dense"), recording)
    assert torch.all(score.recall == 1)
    assert torch.all(score.density == 1)


@pytest.mark.parametrize("flow", ["block_topk", "quest", "streaming"])
def test_a_budget_for_everything_recalls_everything(engine: Engine, recording: Recording, flow: str) -> None:
    score = measure_recall(compiled(engine, flow, budget="length"), recording)
    assert torch.allclose(score.recall, torch.ones_like(score.recall), atol=1e-5)
    assert torch.allclose(score.oracle, torch.ones_like(score.oracle), atol=1e-5)
    assert torch.allclose(score.density, torch.ones(3))


def test_streaming_recall_equals_the_sum_over_sinks_and_recent_pages(
    engine: Engine, recording: Recording
) -> None:
    flow = compiled(engine, "streaming", budget="64", keep_first=1, keep_last=2)
    score = measure_recall(flow, recording)
    expected = torch.zeros_like(score.recall)
    for layer in range(3):
        for step in range(STEPS):
            for b, length in enumerate(recording.lengths_at(step)):
                total = -(-length // 16)
                # The partial page comes on top of the last complete ones, all within a budget of four pages.
                kept = {0, *range(total - 3, total)}
                p = recording.probabilities[layer][step][b]
                for page in kept:
                    expected[layer, :, b] += p[:, page * 16 : min((page + 1) * 16, length)].sum(-1) / STEPS
    assert torch.allclose(score.recall, expected, atol=1e-5)


@pytest.mark.parametrize("flow", ["block_topk", "quest", "streaming"])
def test_hindsight_is_never_worse_and_more_budget_never_recalls_less(
    engine: Engine, recording: Recording, flow: str
) -> None:
    before = torch.zeros(())
    for budget in ("64", "128", "192"):
        score = measure_recall(compiled(engine, flow, budget=budget), recording)
        # Per kv head: hindsight chooses for the query heads of a group together.
        per_row = (score.oracle - score.recall).unflatten(1, (2, 2)).mean(2)
        assert float(per_row.min()) > -1e-5
        assert score.recall.mean() >= before - 1e-6
        before = score.recall.mean()


def test_dense_layers_count_as_complete(engine: Engine, recording: Recording) -> None:
    score = measure_recall(compiled(engine, "quest", budget="64", dense_layers=(1,)), recording)
    assert torch.all(score.recall[1] == 1)
    assert float(score.density[1]) == 1
    assert float(score.density[0]) < 0.3


def test_a_layer_recalls_what_lies_where_the_layer_before_attends(
    engine: Engine, recording: Recording
) -> None:
    flow = compiled(engine, "tidaldecode", budget="64", dense_layers=(0, 1), keep_last=1, page_size=16)
    score = measure_recall(flow, recording)
    assert torch.all(score.recall[:2] == 1)
    expected = torch.zeros_like(score.recall[2])
    for step in range(STEPS):
        for b, length in enumerate(recording.lengths_at(step)):
            before, here = (
                recording.probabilities[layer][step][b].unflatten(-1, (-1, 16)).sum(-1) for layer in (1, 2)
            )
            last = -(-length // 16) - 1
            for head in range(2):
                pair = slice(2 * head, 2 * head + 2)
                best = before[pair, 1:last].sum(0).topk(2).indices + 1
                expected[pair, b] += here[pair][:, [0, *best.tolist(), last]].sum(-1) / STEPS
    assert torch.allclose(score.recall[2], expected, atol=1e-5)


def test_layers_that_share_a_selection_recall_what_it_holds(engine: Engine, recording: Recording) -> None:
    alone = measure_recall(compiled(engine, "quest", budget="64"), recording)
    shared = measure_recall(compiled(engine, "quest", budget="64", reuse_layers=3), recording)
    assert torch.equal(alone.recall[0], shared.recall[0])
    assert not torch.equal(alone.recall[1], shared.recall[1])


def test_a_kept_selection_keeps_the_newest_page(engine: Engine, recording: Recording) -> None:
    fresh = measure_recall(compiled(engine, "quest", budget="64"), recording)
    kept = measure_recall(compiled(engine, "quest", budget="64", reuse_steps=4), recording)
    assert not torch.equal(fresh.recall, kept.recall)
    assert float((kept.recall - fresh.recall).mean()) < 0.02  # an old selection is seldom better
    assert float(kept.recall.min()) > 0


def test_the_recording_survives_what_the_engine_does_next(
    engine: Engine, recording: Recording, prompts: list[list[int]]
) -> None:
    before = measure_recall(compiled(engine, "quest", budget="64"), recording)
    prompt = engine.prefill(prompts[1][::-1])
    engine.decode([prompt], max_new_tokens=2)
    engine.release(prompt)
    after = measure_recall(compiled(engine, "quest", budget="64"), recording)
    assert torch.equal(before.recall, after.recall)

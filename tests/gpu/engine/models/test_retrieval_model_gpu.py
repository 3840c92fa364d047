"""The retrieval model on a GPU, in bf16 through captured graphs: it answers as it does on the CPU in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from evaluators.tasks.base import Question
from evaluators.tasks.pairs import pair_item
from vortex_core import library
from vortex_core.engine.engine import Engine

ITEMS = 64


def _items(context: int) -> list[Question]:
    return [pair_item(context=context, seed=11, index=i, distractors=31) for i in range(ITEMS)]


def _engine(device: str, context: int) -> Engine:
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    blocks = ITEMS * (context // 128 + 1) + ITEMS
    return Engine.from_model("retrieval-mla", device=device, dtype=dtype, max_tokens=128 * blocks)


def _right(engine: Engine, items: list[Question], flow: str | None, budget: int) -> list[bool]:
    if flow is None:
        engine.load_flow(None)
    else:
        traced = library.load(flow).with_knobs(budget=str(budget), page_size=16)
        engine.load_flow(traced.program, traced.knobs)
    prompts: list[Any] = [engine.prefill(item.prompt) for item in items]
    answers = engine.decode(prompts, max_new_tokens=1).tokens
    for prompt in prompts:
        engine.release(prompt)
    return [item.score(engine.tokenizer.decode(t)) == 1 for item, t in zip(items, answers, strict=True)]


@pytest.mark.parametrize("context", [1024, 4096])
def test_dense_answers_and_streaming_does_not(context: int) -> None:
    engine, items = _engine("cuda", context), _items(context)
    dense = sum(_right(engine, items, None, 0))
    assert dense >= 0.9 * ITEMS
    assert sum(_right(engine, items, "streaming", context // 8)) <= 0.4 * ITEMS


@pytest.mark.parametrize("flow", ["block_topk", "quest", "rope_unaware_block_topk"])
def test_a_flow_loses_the_same_answers_as_on_the_cpu(flow: str) -> None:
    items = _items(512)
    there = _right(_engine("cuda", 512), items, flow, 128)
    here = _right(_engine("cpu", 512), items, flow, 128)
    # Rounding moves pages whose scores lie close; it cannot move many answers.
    assert sum(a != b for a, b in zip(here, there, strict=True)) <= 6

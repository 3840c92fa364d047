"""The weights that ship: what training reported holds in the engine, and flows can be told apart by them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from evaluators import stats
from evaluators.plan import load_plan
from evaluators.results import Metric
from evaluators.tasks.base import Question
from evaluators.tasks.items import FRESH_SEEDS, build_items
from evaluators.tasks.pairs import pair_item
from search.campaign.archive import Verdict, check
from search.config import load_campaign
from vortex_core import library
from vortex_core.engine.engine import Engine
from vortex_core.engine.models.status import model_status
from vortex_core.engine.models.weights import resolve_model
from vortex_core.specs import load_model

CONTEXT, ITEMS = 512, 48


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_model(
        "retrieval-mla", dtype=torch.float32, max_tokens=(ITEMS * CONTEXT // 128 + 64) * 128
    )


@pytest.fixture(scope="module")
def items() -> list[Question]:
    return [pair_item(context=CONTEXT, seed=7, index=i, distractors=31) for i in range(ITEMS)]


@pytest.fixture(scope="module")
def prompts(engine: Engine, items: Sequence[Question]) -> list[Any]:
    return [engine.prefill(item.prompt) for item in items]


def right(engine: Engine, prompts: Sequence[Any], items: Sequence[Question], flow: str | None) -> float:
    """Share of right answers with a flow at a quarter of the tokens (None: dense)."""
    if flow is None:
        engine.load_flow(None)
    else:
        traced = library.load(flow).with_knobs(budget=str(CONTEXT // 4), page_size=16)
        engine.load_flow(traced.program, traced.knobs)
    answers = engine.decode(prompts, max_new_tokens=1).tokens
    return sum(i.score(engine.tokenizer.decode(t)) for i, t in zip(items, answers, strict=True)) / len(items)


def test_it_is_the_described_model_and_always_here() -> None:
    found = resolve_model("retrieval-mla", fetch=False)
    by_directory = resolve_model(str(found.directory)).spec
    described = load_model("retrieval-mla")
    changed = {"name": by_directory.name, "hf_id": by_directory.hf_id, "shipped": None}
    assert by_directory == described.model_copy(update=changed)
    assert model_status("retrieval-mla").present
    assert sum(file.stat().st_size for file in found.directory.iterdir()) < 4e6


def test_dense_answers_as_training_reported_and_flows_lose(
    engine: Engine, prompts: list[Any], items: list[Question]
) -> None:
    report = json.loads((resolve_model("retrieval-mla").directory / "training.json").read_text())
    reported = report["accuracy"]["fp32"]  # the type of this engine
    assert min(reported.values()) >= 0.95
    dense = right(engine, prompts, items, None)
    # Three standard errors of 48 items, and the same again for a reported value near 1.
    assert dense >= reported[str(CONTEXT)] - 3 * (0.05 * 0.95 / ITEMS) ** 0.5
    streaming = right(engine, prompts, items, "streaming")
    quest = right(engine, prompts, items, "quest")
    assert streaming <= 0.5
    assert dense - streaming >= 0.4
    assert quest >= streaming + 0.1


def test_training_reported_on_what_the_plan_asks() -> None:
    report = json.loads((resolve_model("retrieval-mla").directory / "training.json").read_text())
    plan = load_plan("retrieval")
    reported = report["accuracy"][plan.engine.cpu_dtype]
    for task in plan.accuracy.tasks:
        assert reported[str(task.context)] >= 0.99, "dense answers nearly every item"
        assert report["pairs"] == 1 + task.distractors
    assert report["pairs"] == 1 + plan.perplexity.distractors


@pytest.mark.parametrize("seed", [0, FRESH_SEEDS])
def test_the_campaigns_gate_can_be_proven_and_broken(engine: Engine, seed: int) -> None:
    config = load_campaign("mla")
    asked = build_items(load_plan(config.evaluation), engine.tokenizer, seed).needles
    count = sum(map(len, asked.values()))
    (gate,) = config.objective.gates
    verdicts = []
    for lost in (0, 3, 8):
        found = stats.paired_difference([0.0] * lost + [1.0] * (count - lost), [1.0] * count)
        verdicts.append(check(gate, Metric(found.value, found.low, found.high, n=count))[0])
    assert verdicts == [Verdict.PROVEN, Verdict.UNCLEAR, Verdict.FAILED]


def test_tokens_equal_transformers(engine: Engine, prompts: list[Any], items: list[Question]) -> None:
    from transformers import AutoModelForCausalLM

    directory = resolve_model("retrieval-mla").directory
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    engine.load_flow(None)
    ours = engine.decode(prompts[:4], max_new_tokens=6).tokens
    for tokens, item in zip(ours, items, strict=False):
        out = model.generate(
            torch.tensor([item.prompt]), max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=1
        )
        assert tokens == out[0, len(item.prompt) :].tolist()

"""The second model that ships: what training reported holds in the engine, over long answers too, and flows lose."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from evaluators.answers import Answers
from evaluators.bench import Bench, capacity
from evaluators.plan import EvaluationPlan, load_plan
from evaluators.stages.base import Deadline
from evaluators.tasks.items import build_items
from vortex_core import library
from vortex_core.engine import Engine
from vortex_core.engine.models.status import model_status
from vortex_core.engine.models.weights import resolve_model
from vortex_core.specs import load_model

MODEL = "retrieval-gqa"
ASKED = (
    {"task": "pair_recall", "context": 512, "items": 16, "distractors": 15},
    {"task": "key_hop", "context": 512, "items": 16, "distractors": 15},
    {"task": "key_walk", "context": 256, "items": 2, "distractors": 7, "steps": 24},
    {
        "task": "key_dialogue",
        "context": 256,
        "items": 4,
        "distractors": 3,
        "told": 4,
        "questions": 2,
        "tokens": 160,
    },
)


@pytest.fixture(scope="module")
def plan() -> EvaluationPlan:
    data = load_plan("skills").model_dump(mode="json")
    data["accuracy"]["tasks"] = ASKED
    data["perplexity"]["items"] = 2
    return EvaluationPlan.model_validate(data | {"stages": ["static", "accuracy"], "fresh": {"share": 0.01}})


@pytest.fixture(scope="module")
def bench(plan: EvaluationPlan) -> Bench:
    torch.set_num_threads(1)
    engine = Engine.from_model(MODEL, dtype=torch.float32, max_tokens=capacity(plan))
    return Bench(engine, plan, "weights")


def answers(bench: Bench, flow: str | None, **knobs: Any) -> dict[str, float]:
    """Share right by task."""
    chosen = (
        None if flow is None else library.load(flow).with_knobs(page_size=16, dense_layers=(), **knobs).flow
    )
    places = bench.prompts(0).items.in_order(1)
    found: Answers = bench.answer(chosen, 0, places, Deadline("test", None))
    by_task: dict[str, list[float]] = {}
    for (key, _), score in found.scores.items():
        by_task.setdefault(key.split("@")[0], []).append(score)
    return {task: sum(scores) / len(scores) for task, scores in by_task.items()}


def test_it_is_the_described_model_and_always_here() -> None:
    found = resolve_model(MODEL, fetch=False)
    by_directory = resolve_model(str(found.directory)).spec
    described = load_model(MODEL)
    changed = {"name": by_directory.name, "hf_id": by_directory.hf_id, "shipped": None}
    assert by_directory == described.model_copy(update=changed)
    assert model_status(MODEL).present
    assert (described.head_dim, described.q_heads // described.kv_heads) == (128, 2)
    assert sum(file.stat().st_size for file in found.directory.iterdir()) < 3e6


def test_the_plan_asks_what_training_reported() -> None:
    report = json.loads((resolve_model(MODEL).directory / "training.json").read_text())
    plan = load_plan("skills")
    reported = report["accuracy"][plan.engine.cpu_dtype]
    for skill, task in (("lookup", "pair_recall"), ("hop", "key_hop")):
        for asked in plan.accuracy.tasks:
            if asked.task == task:
                assert all(
                    share >= 0.95
                    for length, share in reported[skill].items()
                    if int(length) <= 2 * asked.context
                )
                assert asked.parameters.model_dump()["distractors"] + 1 == report["pairs"]


@pytest.mark.slow
def test_dense_has_every_skill_and_flows_lose(bench: Bench) -> None:
    dense = answers(bench, None)
    assert min(dense["pair_recall"], dense["key_hop"]) >= 0.9
    assert min(dense["key_walk"], dense["key_dialogue"]) >= 0.5
    everything = answers(bench, "quest", budget="length")
    assert everything == dense
    streaming = answers(bench, "streaming", budget="64")
    assert streaming["pair_recall"] <= 0.5 and streaming["key_hop"] <= 0.3
    assert streaming["key_walk"] == 0


def test_its_words_are_its_own() -> None:
    """The model of pairs alone cannot read two hops."""
    plan = load_plan("skills")
    from vortex_core.errors import VortexError

    other = Engine.from_model("retrieval-mla", dtype=torch.float32, max_tokens=1024)
    with pytest.raises(VortexError) as caught:
        build_items(plan, other.tokenizer, 0)
    assert caught.value.code == "VV007"

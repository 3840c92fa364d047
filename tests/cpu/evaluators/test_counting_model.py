"""The model that counts: what training reported holds in the engine, and a flow that drops copies miscounts."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from evaluators.bench import Bench, capacity
from evaluators.plan import EvaluationPlan, load_plan
from evaluators.stages.base import Deadline
from vortex_core import library
from vortex_core.engine import Engine
from vortex_core.engine.models.status import model_status
from vortex_core.engine.models.weights import resolve_model
from vortex_core.specs import load_model

MODEL = "retrieval-count"
ITEMS = 24


@pytest.fixture(scope="module")
def bench() -> Bench:
    data = load_plan("counting").model_dump(mode="json")
    data["accuracy"]["tasks"] = [
        {"task": task, "context": 512, "items": ITEMS, "distractors": 15} for task in ("key_count", "key_hop")
    ]
    data["perplexity"]["items"] = 2
    plan = EvaluationPlan.model_validate(data | {"stages": ["static", "accuracy"], "fresh": {"share": 0.05}})
    torch.set_num_threads(1)
    engine = Engine.from_model(MODEL, dtype=torch.float32, max_tokens=capacity(plan))
    return Bench(engine, plan, "weights")


def right(bench: Bench, flow: str | None, **knobs: Any) -> dict[str, float]:
    """Share right by task."""
    chosen = (
        None if flow is None else library.load(flow).with_knobs(page_size=16, dense_layers=(), **knobs).flow
    )
    places = bench.prompts(0).items.in_order(1)
    found = bench.answer(chosen, 0, places, Deadline("test", None)).scores
    return {
        task: sum(score for (key, _), score in found.items() if key.startswith(task)) / ITEMS
        for task in ("key_count", "key_hop")
    }


def test_it_is_the_described_model_and_always_here() -> None:
    found = resolve_model(MODEL, fetch=False)
    by_directory = resolve_model(str(found.directory)).spec
    described = load_model(MODEL)
    changed = {"name": by_directory.name, "hf_id": by_directory.hf_id, "shipped": None}
    assert by_directory == described.model_copy(update=changed)
    assert model_status(MODEL).present
    assert sum(file.stat().st_size for file in found.directory.iterdir()) < 3e6


def test_the_plan_asks_what_training_reported() -> None:
    report = json.loads((resolve_model(MODEL).directory / "training.json").read_text())
    plan = load_plan("counting")
    reported = report["accuracy"][plan.engine.cpu_dtype]
    for skill, task, least in (
        ("count", "key_count", 0.9),
        ("lookup", "pair_recall", 0.95),
        ("hop", "key_hop", 0.95),
    ):
        asked = [one for one in plan.accuracy.tasks if one.task == task]
        assert asked
        for one in asked:
            assert one.parameters.model_dump()["distractors"] + 1 == report["pairs"]
            lengths = [n for n in reported[skill] if int(n) <= 2 * one.context]
            assert lengths and all(reported[skill][n] >= least for n in lengths)


def test_dense_counts_and_flows_that_drop_copies_do_not(bench: Bench) -> None:
    dense = right(bench, None)
    assert min(dense.values()) >= 0.85  # 24 items of a share of 0.97 or more
    assert right(bench, "quest", budget="length") == dense
    streaming = right(bench, "streaming", budget="64")
    assert streaming["key_count"] <= 0.4  # a count of what is left; chance is 0.125

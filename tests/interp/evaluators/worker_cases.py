"""The stages on the engine's GPU path under the Triton interpreter: the same findings as on the torch backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evaluators.plan import EvaluationPlan
from evaluators.results import StageResult
from evaluators.worker import EvaluationWorker
from tests.null.evaluators.test_pairs import PairTokenizer
from vortex_core import library
from vortex_core.engine import Engine
from vortex_core.ir.flow import Flow

torch.set_num_threads(1)
PLAN = {
    "name": "interpreted",
    "parity": {"pages": [0.1, 1, 3.4], "seeds": [0], "tie_tolerance": 1e-4},
    "recall": {"needle_items": 1, "perplexity_items": 0, "steps": 1, "min_recall": 0.01},
    "accuracy": {
        "tasks": [{"task": "pair_recall", "context": 150, "items": 2, "distractors": 3}],
        "batch": 2,
        "gate_items": 2,
        "gate_margin": 0.9,
        "margin": 0.9,
    },
    "perplexity": {"task": "pair_answers", "context": 140, "distractors": 3, "items": 2, "max_ratio": 1e9},
    "decode": {"batch": 1, "steps": 1, "warmup": 0, "rounds": 2},
    "modelled": {"gpus": ["h200"]},
    "fresh": {"share": 1},
}


def worker(backend: str) -> EvaluationWorker:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=384, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=64, max_position_embeddings=512, initializer_range=0.2,
        )
    )  # fmt: skip
    engine = Engine(model, PairTokenizer(), max_tokens=4096, backend=backend)
    return EvaluationWorker.of_engine(engine, EvaluationPlan.model_validate(PLAN))


@pytest.fixture(scope="module")
def workers() -> dict[str, EvaluationWorker]:
    return {backend: worker(backend) for backend in ("torch", "triton")}


def run(workers: dict[str, EvaluationWorker], stage: str, flow: Flow) -> dict[str, StageResult]:
    found = {name: w.run(stage, flow) for name, w in workers.items()}
    for result in found.values():
        assert result.passed, result.failure
    return found


def flow(name: str, **knobs: Any) -> Flow:
    return library.load(name).with_knobs(page_size=16, **knobs)


@pytest.mark.parametrize(
    ("name", "knobs"),
    [("quest", {"budget": "64"}), ("h2o", {"budget": "64"}), ("quest", {"budget": "64", "reuse_steps": 2})],
)
def test_every_stage_finds_the_same(workers: dict[str, EvaluationWorker], name: str, knobs: Any) -> None:
    wanted = flow(name, **knobs)
    compiled = run(workers, "compile", wanted)
    assert {backend: r.info["backend"] for backend, r in compiled.items()} == {
        "torch": "torch",
        "triton": "triton",
    }
    assert run(workers, "parity", wanted)["triton"].metrics["parity"].value == 1
    recall = run(workers, "recall", wanted)
    assert recall["triton"].metrics["recall"].value == pytest.approx(
        recall["torch"].metrics["recall"].value, abs=1e-4
    )
    answered = run(workers, "accuracy", wanted)
    assert answered["triton"].items == answered["torch"].items
    text = run(workers, "perplexity", wanted)
    assert text["triton"].items["perplexity"] == pytest.approx(text["torch"].items["perplexity"], abs=1e-3)
    assert text["triton"].metrics["density"].value == pytest.approx(
        text["torch"].metrics["density"].value, abs=1e-9
    )


def test_decode_says_what_ran(workers: dict[str, EvaluationWorker]) -> None:
    wanted = flow("quest", budget="64")
    found = run({"triton": workers["triton"]}, "decode", wanted)["triton"]
    assert found.info["ir_hash"] == wanted.ir_hash
    assert 0 < found.info["points"]["150"]["density"] < 0.6
    assert found.info["points"]["150"]["inputs"] == "random keys and values"
    assert "triton" in found.info["measured_on"]


def test_a_threshold_is_timed_on_the_items(workers: dict[str, EvaluationWorker]) -> None:
    found = run({"triton": workers["triton"]}, "decode", flow("twilight", budget="128"))["triton"]
    assert found.info["points"]["150"]["inputs"] == "items"

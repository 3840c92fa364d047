"""A tiny random Llama behind the real engine, with a byte tokenizer and a plan that fits it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evaluators.plan import EvaluationPlan
from vortex_core import library
from vortex_core.engine import Engine
from vortex_core.ir.flow import Flow


class ByteTokenizer:
    """One token per byte; 256 begins a text, 257 ends one."""

    chat_template: Any = None
    bos_token_id = 256
    eos_token_id = 257

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [256] * add_special_tokens + list(text.encode())

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        return bytes(i for i in token_ids if i < 256).decode("utf-8", errors="replace")

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> str:
        raise AssertionError("a base model has no turns")


PLAN = {
    "name": "tiny",
    "parity": {"pages": [0.1, 1, 2.3, 9], "seeds": [0], "tie_tolerance": 1e-4},
    "recall": {"needle_items": 1, "perplexity_items": 1, "steps": 3, "min_recall": 0.05},
    "accuracy": {
        "tasks": [
            {"task": "needle_single", "context": 700, "items": 3},
            {"task": "needle_multikey", "context": 800, "items": 3, "distractors": 1},
        ],
        "batch": 4,
        "gate_items": 1,
        "gate_margin": 0.5,
        "margin": 0.2,
    },
    "perplexity": {"context": 600, "continuation": 5, "items": 2, "max_ratio": 2},
    "decode": {"batch": 2, "steps": 2, "warmup": 1, "rounds": 3},
    "modelled": {"gpus": ["h200"]},
    "fresh": {"share": 0.5},
}


def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=258,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            initializer_range=0.3,
            attn_implementation="eager",
        )
    )


def candidate(flow: str, **knobs: Any) -> Flow:
    traced = library.load(flow).with_knobs(**knobs)
    return traced.flow


@pytest.fixture(scope="session")
def plan() -> EvaluationPlan:
    return EvaluationPlan.model_validate(PLAN)


@pytest.fixture(scope="session")
def plain_model() -> LlamaForCausalLM:
    """The engine's model with transformers' own attention."""
    return tiny_model().eval()


@pytest.fixture(scope="session")
def engine() -> Engine:
    torch.set_num_threads(1)
    return Engine(tiny_model(), ByteTokenizer(), max_tokens=24_000)

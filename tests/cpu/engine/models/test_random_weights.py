"""Random weights: true shapes, an honest name, and a model that runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from vortex_core.engine.engine import Engine
from vortex_core.engine.models.hf_config import reference_config, spec_from_hf_config
from vortex_core.engine.models.random_weights import random_model
from vortex_core.specs import ModelSpec

Make = Callable[..., Any]
NAMES = ("llama", "qwen3", "qwen3_moe", "glm4_moe_lite", "minimax_m2")


@pytest.fixture(scope="module")
def spec_of(tiny: Make) -> Callable[[str], ModelSpec]:
    """The dimensions of a tiny model."""
    return lambda name: spec_from_hf_config(tiny(name).config, name=name)


@pytest.mark.parametrize("name", NAMES)
def test_every_shape_and_every_buffer_is_as_transformers_makes_it(spec_of: Make, name: str) -> None:
    spec = spec_of(name)
    model, _ = random_model(spec, dtype=torch.float32)
    plain = AutoModelForCausalLM.from_config(reference_config(spec), dtype=torch.float32)
    expected, found = plain.state_dict(), model.state_dict()
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in expected.items()}
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == spec.tie_embeddings
    for (where, buffer), (_, other) in zip(model.named_buffers(), plain.named_buffers(), strict=True):
        torch.testing.assert_close(buffer, other, msg=where)
    matrices = torch.cat([p.flatten() for p in model.parameters() if p.dim() > 1])
    assert matrices.std() == pytest.approx(0.02, rel=0.02)
    assert all(p.eq(1).all() for n, p in model.named_parameters() if p.dim() == 1 and "bias" not in n)


def test_rows_differ_and_the_seed_decides(spec_of: Make) -> None:
    spec = spec_of("glm4_moe_lite")
    (a, _), (b, _), (c, _) = (random_model(spec, seed=seed) for seed in (1, 1, 2))
    weights = [model.model.layers[1].mlp.experts.gate_up_proj for model in (a, b, c)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    rows = weights[0].flatten(0, 1)
    assert len(rows.unique(dim=0)) == len(rows)
    embedding = a.model.embed_tokens.weight
    assert len(embedding.unique(dim=0)) == len(embedding)


def test_its_name_says_what_it_is_and_it_runs(spec_of: Make, ids: Make) -> None:
    model, spec = random_model(spec_of("glm4_moe_lite"), dtype=torch.float32)
    assert spec.name == "glm4_moe_lite (random weights, throughput only)"
    engine = Engine(model, spec=spec, max_tokens=512)
    result = engine.decode([engine.prefill(ids(40, 0))], max_new_tokens=4)
    assert all(-20 < logprob < 0 for logprob in result.logprobs[0])

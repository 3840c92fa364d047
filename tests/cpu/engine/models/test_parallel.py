"""Tensor parallelism: two ranks decode what one does; heads are divided without loss or overlap."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from vortex_core import library
from vortex_core.engine.engine import Engine
from vortex_core.engine.models.hf_config import spec_from_hf_config
from vortex_core.engine.models.parallel import (
    Ranks,
    Sharding,
    check_flow,
    divide,
    divide_channels,
    divide_heads,
)
from vortex_core.engine.models.random_weights import random_model
from vortex_core.errors import VortexError
from vortex_core.sandbox.load import trace_source
from vortex_core.specs import ModelSpec, list_models, load_model

Make = Callable[..., Any]

# Models, and flows that must select the same pages on two ranks as on one.
CASES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "tied": ("llama", {"tie_word_embeddings": True}, ["dense", "quest"]),
    "one_kv_head": (
        "qwen3",
        {"num_key_value_heads": 1, "num_attention_heads": 5},
        ["dense", "block_topk", "h2o"],
    ),
    "experts": ("qwen3_moe", {}, ["dense", "block_topk"]),
    "latent": ("glm4_moe_lite", {}, ["dense", "rope_weighted_block_topk", "h2o"]),
    "wide_norm": ("minimax_m2", {"num_key_value_heads": 3, "num_attention_heads": 9}, ["dense", "quest"]),
}
SHARED = '''
from vortex_core import ops, register, vFlow

@register("shared")
class Shared(vFlow):
    """One selection for all kv heads."""

    def create_cache(self, page):
        return {"c": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"c": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        return ops.topk((q.mean("head") * cache["c"]).sum("dim"), share="max")
'''


# ---- who holds what


@given(total=st.integers(1, 5000), parts=st.integers(1, 8))
def test_spans_are_even_and_cover_everything(total: int, parts: int) -> None:
    for spans in (divide(total, parts), divide_channels(total, parts)):
        assert [n for a, b in spans for n in range(a, b)] == list(range(total))
    lengths = {b - a for a, b in divide(total, parts)}
    assert max(lengths) - min(lengths) <= 1


_SPECS = [load_model(n) for n in list_models() if load_model(n).weights_of is None]


def _fits(spec: ModelSpec, size: int) -> bool:
    return size <= spec.kv_heads or (size % spec.kv_heads == 0 and size <= spec.q_heads)


@pytest.mark.parametrize("spec", _SPECS, ids=lambda spec: spec.name)
def test_each_query_head_is_on_one_rank_beside_its_kv_head(spec: ModelSpec) -> None:
    for size in (n for n in range(1, 9) if _fits(spec, n)):
        heads = divide_heads(spec, size)
        assert [h for a, b in heads.q for h in range(a, b)] == list(range(spec.q_heads))
        assert sorted({h for a, b in heads.kv for h in range(a, b)}) == list(range(spec.kv_heads))
        for (a, b), kv in zip(heads.q, heads.kv, strict=True):
            assert b > a
            assert {h // spec.group for h in range(a, b)} == set(range(*kv))
        assert heads.replicas * spec.kv_heads == max(size, spec.kv_heads)


def test_heads_that_do_not_divide_are_refused_with_what_works() -> None:
    with pytest.raises(VortexError, match="4 ranks cannot hold") as caught:
        divide_heads(load_model("smollm2-135m"), 4)
    assert caught.value.code == "VE020"
    assert caught.value.remedy == "use one of 1, 2, 3, 6 ranks"


@pytest.mark.parametrize("name", ["glm-4.7-flash", "minimax-m2.7", "qwen3-8b"])
def test_large_models_divide_over_eight(name: str) -> None:
    assert len(divide_heads(load_model(name), 8).q) == 8


# ---- two ranks


@pytest.fixture(scope="module")
def answers(tiny: Make, ids: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two ranks decoded, by case: started together, and they decode while this process does the same."""
    folder = tmp_path_factory.mktemp("ranks")
    jobs = []
    for name, (architecture, changes, flows) in CASES.items():
        tiny(architecture, **changes).save_pretrained(folder / name)
        jobs.append({"model": name, "flows": flows, "prompts": [ids(n, n) for n in (5, 200, 301)]})
    (folder / "jobs.json").write_text(json.dumps(jobs))
    script = str(Path(__file__).with_name("one_rank.py"))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[4]), "GLOO_SOCKET_IFNAME": "lo"}
    children = [
        subprocess.Popen(
            [sys.executable, script, str(folder), str(rank), "2"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [child.communicate(timeout=150)[1] for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0, 0], "\n".join(errors)[-3000:]
    found = [json.loads((folder / f"answers-{rank}.json").read_text()) for rank in range(2)]
    return {
        name: {"job": job, "ranks": ranks, "directory": folder / name}
        for name, job, *ranks in zip(CASES, jobs, *found, strict=True)
    }


@pytest.mark.parametrize("name", CASES)
@pytest.mark.slow
def test_two_ranks_decode_what_one_does(answers: dict[str, Any], name: str) -> None:
    job, ranks = answers[name]["job"], answers[name]["ranks"]
    model = AutoModelForCausalLM.from_pretrained(answers[name]["directory"], dtype=torch.float32)
    engine = Engine(model, max_tokens=2048)
    pinned = [engine.prefill(prompt) for prompt in job["prompts"]]
    for flow in job["flows"]:
        if flow != "dense":
            traced = library.load(flow).with_knobs(budget="96", page_size=16)
            engine.load_flow(traced.program, traced.knobs)
        expected = engine.decode(pinned, max_new_tokens=8)
        assert (flow == "dense") == (expected.density == 1.0)
        for rank in ranks:
            found = rank["decoded"][flow]
            assert found["tokens"] == expected.tokens, flow
            torch.testing.assert_close(
                torch.tensor(found["logprobs"]), torch.tensor(expected.logprobs), atol=2e-4, rtol=1e-4
            )
        assert ranks[0]["decoded"][flow]["tokens"] == ranks[1]["decoded"][flow]["tokens"]
    whole = sum(p.numel() for p in model.parameters())
    assert all(rank["parameters"] < 0.75 * whole for rank in ranks), "each holds about a half"


def test_kv_heads_are_divided_where_there_are_enough(answers: dict[str, Any]) -> None:
    held = {name: [rank["kv_heads"] for rank in found["ranks"]] for name, found in answers.items()}
    assert held == {
        "tied": [1, 1], "one_kv_head": [1, 1], "experts": [1, 1], "latent": [1, 1], "wide_norm": [1, 2],
    }  # fmt: skip


# ---- what is refused


def test_a_flow_that_selects_for_all_kv_heads_at_once_is_refused_where_they_are_apart(tiny: Make) -> None:
    program = trace_source(SHARED).program
    geometry = spec_from_hf_config(tiny("qwen3").config, name="q").geometry()
    check_flow(program, Sharding(Ranks(0, 2), geometry, divides_kv_heads=False))
    with pytest.raises(VortexError, match="different ranks") as caught:
        check_flow(program, Sharding(Ranks(0, 2), geometry, divides_kv_heads=True))
    assert caught.value.code == "VE022"
    check_flow(library.load("quest").program, Sharding(Ranks(0, 2), geometry, divides_kv_heads=True))


def test_a_grouped_model_in_disguise_is_refused() -> None:
    with pytest.raises(VortexError, match="cached as one row") as caught:
        random_model(load_model("smollm2-135m-mla"), ranks=Ranks(0, 2))
    assert caught.value.code == "VE021"

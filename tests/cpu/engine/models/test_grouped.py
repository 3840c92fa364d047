"""A grouped-query model as MLA is the same model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from vortex_core import library
from vortex_core.engine.engine import Engine
from vortex_core.engine.models import status, weights
from vortex_core.engine.models.hf_config import ATTENTION_KEY, spec_from_directory
from vortex_core.engine.models.status import model_status
from vortex_core.engine.models.weights import ModelPath, fetch_model, resolve_model
from vortex_core.errors import VortexError
from vortex_core.specs import ModelSpec, load_model

Make = Callable[..., Any]


def _as_latent(model: Any) -> Any:
    model = copy.deepcopy(model)
    setattr(model.config, ATTENTION_KEY, "latent")
    return model


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_logits_and_tokens_are_those_of_the_original(tiny: Make, ids: Make, name: str) -> None:
    latent, plain = Engine(_as_latent(tiny(name)), max_tokens=2048), Engine(tiny(name), max_tokens=2048)
    assert (latent.geometry.is_mla, plain.geometry.is_mla) == (True, False)
    assert (latent.geometry.kv_heads, latent.geometry.group, latent.geometry.head_dim) == (1, 6, 64)
    assert latent.cache.pool.k.nbytes == plain.cache.pool.k.nbytes + plain.cache.pool.v.nbytes
    found = []
    for engine in (plain, latent):
        prompts = [engine.prefill(ids(n, n)) for n in (1, 200, 333)]
        free = engine.decode(prompts, max_new_tokens=12)
        found.append((free.tokens, torch.tensor(free.logprobs)))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-4, rtol=1e-4)


def test_flows_see_a_latent_with_its_channel_groups(tiny: Make, ids: Make) -> None:
    engine = Engine(_as_latent(tiny("llama")), max_tokens=2048)
    pinned = [engine.prefill(ids(400, 0))]
    dense = engine.decode(pinned, max_new_tokens=10)
    for flow in ("rope_weighted_block_topk", "block_topk"):
        traced = library.load(flow).with_knobs(budget="128", page_size=16)
        engine.load_flow(traced.program, traced.knobs)
        sparse = engine.decode(pinned, max_new_tokens=10)
        assert 0.25 < sparse.density < 0.4
        assert sparse.logprobs != dense.logprobs
    plain = Engine(tiny("llama"), max_tokens=256)
    unaware = library.load("rope_unaware_block_topk")
    with pytest.raises(VortexError) as caught:  # only MLA models have those groups
        plain.load_flow(unaware.program, unaware.knobs)
    assert caught.value.code == "VF013"


# ---- as a model that users name


@pytest.fixture
def described(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """A described model whose weights are another described model's, which lies in a directory."""
    monkeypatch.setenv("VORTEX_CACHE", str(tmp_path / "cache"))
    directory = tmp_path / "base"
    tiny("llama").save_pretrained(directory)
    base = spec_from_directory(directory, name="base")
    model = AutoModelForCausalLM.from_pretrained(directory)
    setattr(model.config, ATTENTION_KEY, "latent")
    from vortex_core.engine.models.hf_config import spec_from_hf_config

    spec = spec_from_hf_config(model.config, name="base-mla").model_copy(update={"weights_of": "base"})
    for module in (weights, status):
        monkeypatch.setattr(module, "load_model", {"base": base, "base-mla": spec}.__getitem__)
    monkeypatch.setattr(weights, "list_models", lambda: ("base", "base-mla"))
    monkeypatch.setattr(weights, "_snapshot", lambda hf_id: directory if hf_id == "base" else None)
    return spec


def test_it_gets_a_directory_of_its_own_with_the_same_weights(described: ModelSpec, tmp_path: Path) -> None:
    assert model_status("base-mla").present
    assert model_status("base-mla").command == "vortex-search models fetch base-mla"
    found = resolve_model("base-mla")
    assert found == fetch_model("base-mla") == ModelPath(described, found.directory)
    assert found.directory != tmp_path / "base"
    assert (found.directory / "model.safetensors").resolve() == tmp_path / "base" / "model.safetensors"
    assert spec_from_directory(found.directory, name="base-mla").mla == described.mla
    model = AutoModelForCausalLM.from_pretrained(found.directory)
    assert Engine(model, max_tokens=256).geometry == described.geometry()


def test_stale_links_are_made_again(described: ModelSpec) -> None:
    directory = resolve_model("base-mla").directory
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors").symlink_to("/nonexistent")
    again = resolve_model("base-mla").directory
    assert again == directory
    assert (again / "model.safetensors").is_file()


def test_a_hub_id_means_the_original() -> None:
    assert load_model("HuggingFaceTB/SmolLM2-135M-Instruct").name == "smollm2-135m"
    derived, base = load_model("smollm2-135m-mla"), load_model("smollm2-135m")
    assert derived.kv_bytes_per_token() == base.kv_bytes_per_token()
    assert derived.weight_bytes() == base.weight_bytes()


# ---- the real one


@pytest.mark.model
@pytest.mark.slow
def test_the_real_model_within_what_bf16_can_tell(smollm2: ModelPath) -> None:
    """In bf16 it is as far from the float32 logits as the original is."""
    engines = {name: Engine.from_model(name, max_tokens=256) for name in ("smollm2-135m", "smollm2-135m-mla")}
    assert all(engine.dtype == torch.bfloat16 for engine in engines.values())
    text = "The capital of France is Paris, and the capital of Italy is Rome. " * 3
    ids = engines["smollm2-135m"].tokenizer(text).input_ids
    exact = AutoModelForCausalLM.from_pretrained(smollm2.directory, dtype=torch.float32)
    with torch.inference_mode():
        logits = exact(torch.tensor([ids])).logits[0, -13:-1]
    expected = torch.log_softmax(logits, -1)[range(12), ids[-12:]]
    errors = {}
    for name, engine in engines.items():
        result = engine.decode([engine.prefill(ids[:-12])], max_new_tokens=12, forced=[ids[-12:]])
        errors[name] = float((torch.tensor(result.logprobs[0]) - expected).abs().mean())
    assert 0 < errors["smollm2-135m"] < 0.2
    assert errors["smollm2-135m-mla"] < 2 * errors["smollm2-135m"], errors

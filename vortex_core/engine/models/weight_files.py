"""The weight files of a model directory, looked at before anything is loaded.

Folders come from strangers, interrupted downloads and tools that save something else under the same names. What
transformers would load is found here by its own rules, and every file of it is opened as far as its header, which
says whether the file is whole. Which tensors are missing or of another shape, `models.loading` says.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from vortex_core.errors import VortexError
from vortex_core.files import read_json
from vortex_core.text import visible

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_INDEX_BYTES = 64 << 20  # that of a model of a hundred thousand tensors is 10 MB
# Files that say what a folder is, where it holds no weights of a model: how it is named, and what helps.
_OTHERS = (
    ("adapter_model.*", "an adapter, not a model", "Merge it into its base model and save that."),
    (
        "model-*-of-*.safetensors",
        f"shards, and no {INDEX} that says what they hold",
        "Fetch the index, too; or save the model again.",
    ),
    (
        "*.bin",
        "pickled weights, which are not read: unpickling may run code",
        "Convert it where you trust it: load it with transformers and save_pretrained().",
    ),
    ("*.pt*", "pickled weights, which are not read: unpickling may run code", "Save it as safetensors."),
    ("*.gguf", "a GGUF file", "Give the path of the file itself."),
    (
        "*.safetensors",
        f"safetensors under another name than {SINGLE}",
        "Save the model in Hugging Face layout (save_pretrained).",
    ),
)


def weight_files(directory: Path) -> list[Path]:
    """The files that hold a model's weights, each whole as far as its header says.

    Raises:
        VortexError: `VM006`, naming the file that is missing or damaged, or what the directory holds instead.
    """
    if (directory / "adapter_config.json").exists():  # transformers would load the model it names instead
        raise _unfit(directory, "is an adapter, not a model", _OTHERS[0][2])
    if os.path.lexists(directory / SINGLE):
        files = [directory / SINGLE]
    elif os.path.lexists(directory / INDEX):
        files = [directory / name for name in _shards(directory)]
    else:
        raise _instead(directory)
    for file in files:
        _check(file)
    return files


def first_dtype(directory: Path) -> str | None:
    """The dtype of most bytes of a model's first weight file, as safetensors spells it; None without weights."""
    from safetensors import safe_open

    try:
        file = weight_files(directory)[0]
    except VortexError:
        return None
    sizes: dict[str, int] = {}
    with safe_open(file, framework="np") as opened:
        for name in opened.keys():  # noqa: SIM118  safetensors' own object is no mapping
            part = opened.get_slice(name)
            count = 1
            for n in part.get_shape():
                count *= n
            sizes[part.get_dtype()] = sizes.get(part.get_dtype(), 0) + count
    return max(sizes, key=lambda dtype: sizes[dtype]) if sizes else None


def _shards(directory: Path) -> list[str]:
    """Names of the shards in an index, in order."""
    index = directory / INDEX
    try:
        found = read_json(index, _INDEX_BYTES)
    except OSError as error:
        raise _damaged(index, error.strerror or str(error)) from error
    shards: Any = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise _damaged(index, "it maps no tensors to files")
    for name in shards.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise _damaged(index, f"{visible(name, 60)!r} is no weight file of this folder")
    return sorted(set(shards.values()))


def _check(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        found = file.stat()  # through links, as a hub's cache has them
    except OSError as error:
        raise _damaged(file, error.strerror or str(error)) from error
    if not stat.S_ISREG(found.st_mode):
        raise _damaged(file, "it is no regular file")
    with file.open("rb") as handle:
        start = handle.read(64)
    if start.startswith(b"version https://git-lfs"):
        why = "it is a pointer of Git LFS, and the weights were not fetched"
        raise _damaged(file, why, "Fetch them: git lfs pull, or hf download.")
    try:
        with safe_open(file, framework="np"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(file, f"it is damaged or incomplete ({visible(error, 150)})") from error


def _instead(directory: Path) -> VortexError:
    for pattern, what, remedy in _OTHERS:
        found = sorted(path.name for path in directory.glob(pattern))
        if found:
            return _unfit(directory, f"has no weights ({SINGLE}): {found[0]} is {what}", remedy)
    return _unfit(directory, f"has no weights (*.safetensors): neither {SINGLE} nor {INDEX}", "")


def _unfit(directory: Path, what: str, remedy: str) -> VortexError:
    return VortexError("VM006", f"{directory} {what}", remedy or "Give a complete directory.")


def _damaged(file: Path, why: str, remedy: str = "") -> VortexError:
    return VortexError("VM006", f"{file}: {why}", remedy or "Fetch or save the model again.")

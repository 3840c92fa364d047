"""What a measured answer depends on, as digests: weights and tokenizer by content, items, engine, device, versions.

A folder's name is no part of it: a model that is moved keeps its results, and another model under the same name does
not inherit them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluators.device import device_kind

if TYPE_CHECKING:
    from evaluators.tasks.items import ItemSet
    from vortex_core.engine import Engine

# Part of every identity: raise it when the engine's answers change (its attention, sampling or prefill).
ENGINE_REVISION = 1

# Files of a model directory that decide what it answers: weights, dimensions, tokenizer and chat template.
_WEIGHTS = ("*.safetensors",)
_WORDS = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")


def model_digest(directory: Path, known: Path | None = None) -> str:
    """16 hex digits of a model directory's content.

    Args:
        known: a file that keeps digests of files by path, size, inode and times, so that weights are read once.
    """
    files = sorted({f.resolve(): f.name for p in (*_WEIGHTS, *_WORDS) for f in directory.glob(p)}.items())
    found = hashlib.sha256()
    for (_, name), digest in zip(files, _digests([path for path, _ in files], known), strict=True):
        found.update(f"{name}:{digest}\n".encode())
    return found.hexdigest()[:16]


def engine_identity(engine: Engine, weights: str) -> str:
    """16 hex digits of an engine's part in a result: weights, revision, dtypes, device kind, backend and versions.

    Args:
        weights: `model_digest` of what it loaded, or words for weights that are in no file.
    """
    return _short(engine_facts(engine) | {"weights": weights})


def engine_facts(engine: Engine) -> dict[str, Any]:
    """The same in words, without the weights."""
    ranks = 1 if engine.sharding is None else engine.sharding.ranks.size
    return {
        "engine": ENGINE_REVISION,
        "dtype": _plain(engine.dtype),
        "kv_dtype": _plain(engine.kv_dtype),
        "device": device_kind(engine.device),
        "backend": engine.backend,
        "tensor_parallel": ranks,
        "torch": version("torch"),
        "triton": version("triton") if engine.backend == "triton" else None,
        "transformers": version("transformers"),
    }


def items_digest(items: ItemSet) -> str:
    """16 hex digits of everything a seed asks: prompts, answers and how they are judged, continuations, lengths, where
    answers end, what is fed meanwhile, and how they are drawn."""
    asked = {
        key: [
            [
                q.prompt,
                q.answers,
                q.judge,
                q.max_new_tokens,
                q.stops,
                q.script,
                q.samples,
                q.temperature,
                q.top_p,
            ]
            for q in found
        ]
        for key, found in items.needles.items()
    }
    passages = [[item.prompt, item.continuation] for item in items.passages]
    return _short({"needles": asked, "passages": passages})


def _short(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _plain(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def _digests(files: list[Path], known: Path | None) -> list[str]:
    """SHA-256 of files' contents, by several threads (hashing releases the interpreter's lock)."""
    cached = _read(known)
    keys = [_key(path) for path in files]
    missing = [(key, path) for key, path in zip(keys, files, strict=True) if key not in cached]
    with ThreadPoolExecutor(8) as pool:
        fresh = dict(
            zip((key for key, _ in missing), pool.map(_content, [p for _, p in missing]), strict=True)
        )
    if fresh and known is not None:
        _write(known, cached | fresh)
    return [fresh.get(key) or cached[key] for key in keys]


def _content(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _key(path: Path) -> str:
    """Changes whenever a file does: a program may set its size and modification time, not its change time."""
    stat = path.stat()
    return f"{path}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}:{stat.st_ino}"


def _read(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, digests: dict[str, str]) -> None:
    """Atomic; entries of files that are gone are dropped. A folder that cannot be written costs a second reading."""
    kept = {key: value for key, value in digests.items() if Path(key.rsplit(":", 4)[0]).exists()}
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            json.dump(kept, out)
        Path(name).replace(path)

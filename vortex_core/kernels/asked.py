"""What kernels were asked for when they were compiled, so that one compiled again says what was different.

An engine that compiles a kernel holds a GPU meanwhile, and what was compiled for it beforehand was then not what it
launches. Beside Triton's cache lies a line for every kernel of ours that was compiled: its text, its constants, its
arguments' types and alignments, its options. What a later process has to compile is told by how it differs from the
nearest of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from triton import knobs
from triton.backends.nvidia.compiler import CUDAOptions

Parts = dict[str, str]

_OPTIONS = [f.name for f in dataclasses.fields(CUDAOptions)]
_TOLD = 4


def parts_of(src: Any, metadata: Mapping[str, Any]) -> Parts:
    """What Triton's key of a kernel is made of, by name.

    Args:
        src: a kernel as Triton's compilation listener gets it.
        metadata: likewise.
    """
    names = src.fn.arg_names

    def of(path: Any) -> str:
        return ".".join([names[path[0]], *map(str, path[1:])]) if isinstance(path, tuple) else str(path)

    found = {"text": src.fn.cache_key}
    found |= {f"type of {name}": str(kind) for name, kind in src.signature.items()}
    found |= {of(path): str(value) for path, value in src.constants.items()}
    found |= {f"alignment of {of(path)}": str(value) for path, value in src.attrs.items()}
    found |= {name: str(metadata[name]) for name in _OPTIONS if name in metadata}
    return found


def note(src: Any, metadata: Mapping[str, Any]) -> None:
    """Leave a line for a kernel that was compiled. Where it cannot be written nothing depends on it."""
    path, parts = _path(src), parts_of(src, metadata)
    if parts in _known(path):
        return
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(parts) + "\n")


def difference(src: Any, metadata: Mapping[str, Any]) -> str:
    """How a kernel differs from the nearest of the same text that was compiled before, in words."""
    asked, known = parts_of(src, metadata), _known(_path(src))
    if not known:
        return "none of its text was compiled before"
    apart = [
        [f"{k} {asked.get(k)}, not {p.get(k)}" for k in sorted(asked | p) if asked.get(k) != p.get(k)]
        for p in known
    ]
    nearest = min(apart, key=len)
    if not nearest:
        return "the same was compiled before and is not in the cache"
    more = f" and {len(nearest) - _TOLD} more" if len(nearest) > _TOLD else ""
    return "; ".join(nearest[:_TOLD]) + more


def _known(path: Path) -> list[Parts]:
    found: list[Parts] = []
    with suppress(OSError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):  # half of one, of a process that was killed
                found.append(dict(json.loads(line)))
    return found


def _path(src: Any) -> Path:
    name = f"{src.fn.__module__}.{src.fn.__name__}"
    return Path(knobs.cache.dir) / "vortex_asked" / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.jsonl"

"""The cache of generated modules: files named by content, imported once a process.

Triton reads a kernel's source from its file, so generated code must be one. Files are written atomically and never
changed; Triton's own cache beside them holds the machine code.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType


def cache_root() -> Path:
    """`$VORTEX_CACHE`, by default `~/.cache/vortex-search`."""
    base = os.environ.get("VORTEX_CACHE")
    return Path(base) if base else Path.home() / ".cache" / "vortex-search"


def cache_dir() -> Path:
    """The folder in which generated modules are kept."""
    return cache_root() / "kernels"


def load_module(text: str) -> ModuleType:
    """Import generated source, from its file in the cache."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:24]
    name = f"vortex_kernels_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    path = cache_dir() / f"{digest}.py"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as f:
            f.write(text)
        Path(temporary).replace(path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module

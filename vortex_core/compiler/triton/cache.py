"""The cache of generated modules: files named by content, imported once a process.

Triton reads a kernel's source from its file, so generated code must be one. Files are written atomically and never
changed; Triton's own cache beside them holds the machine code.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from vortex_core.files import named_path


def cache_root() -> Path:
    """`$VORTEX_CACHE`, by default `~/.cache/vortex-search`."""
    return named_path(os.environ.get("VORTEX_CACHE") or "~/.cache/vortex-search")


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
    _make_private(path.parent)
    if not _holds(path, text):
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as f:
            f.write(text)
        Path(temporary).replace(path)
    # Our own text runs, never what lies in the file or in bytecode beside it; Triton reads the same from the file.
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    try:
        exec(compile(text, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _make_private(folder: Path) -> None:
    """Make the folder, and take it from everybody but its owner."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid == os.geteuid():
        folder.chmod(0o700)


def _holds(path: Path, text: str) -> bool:
    """Whether a regular file holds exactly `text`; another's text under the same name is written over."""
    try:
        return path.is_file() and not path.is_symlink() and path.read_bytes() == text.encode()
    except OSError:
        return False

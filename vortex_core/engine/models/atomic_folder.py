"""Folders that one process makes while others wait, and that are seen whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def lock(target: Path) -> Iterator[None]:
    """Keep other processes from making `target` meanwhile."""
    import fcntl

    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # released when the file closes, also by a kill
        yield


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A scratch folder beside `target` (same file system, so a rename is atomic); the lock must be held."""
    for stale in target.parent.glob(f".{target.name}-*"):  # left by a killed process
        shutil.rmtree(stale, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)

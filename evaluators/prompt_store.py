"""Prefilled prompts and dense answers on disk: a restarted worker is ready in seconds instead of minutes.

Keys and values of a prompt follow from the engine's identity (`identity.engine_identity`) and the token ids, so a file
is named by a hash of these. Files are written under a temporary name and renamed; what cannot be read is computed
again. When the store outgrows its limit the least recently used files go, but never those that this process read or
wrote: a set of prompts larger than the limit keeps a part of itself instead of replacing itself in a circle.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from vortex_core.engine import Engine, Prompt

_LOG = logging.getLogger(__name__)
_FORMAT = "2"


class PromptStore:
    """A folder of prefilled prompts and dense references of one engine.

    Args:
        folder: created on first use.
        identity: of the engine; where a model is divided over several, of this part.
        limit: bytes of prompts the folder may hold; 0: prompts are not kept, dense answers are.
    """

    def __init__(self, folder: Path, identity: str, limit: int) -> None:
        self.folder = folder
        self.identity = identity
        self.limit = limit
        self._in_use: set[Path] = set()  # read or written by this process

    @property
    def keeps_prompts(self) -> bool:
        """Whether prompts are kept, and not only answers."""
        return self.limit > 0

    # ---- prompts

    def prefill(self, engine: Engine, token_ids: Sequence[int]) -> Prompt:
        """`Engine.prefill`, from disk where possible. Pins as that does."""
        ids = tuple(token_ids)
        if ids in engine.cache.prompts:
            return engine.prefill(ids)
        path = self._path(ids)
        stored = self._read(path, len(ids) - 1)
        self._in_use.add(path)
        if stored is None:
            prompt = engine.prefill(ids)
            self._write(engine, prompt, path)
            return prompt
        engine.prompts.check(ids)
        prompt, start = engine.cache.open(ids)
        slots = _slots(prompt)[start:]
        for layer in range(engine.geometry.layers):
            engine.cache.pool.write(
                layer, slots, stored["k"][layer, :, start:], stored["v"][layer, :, start:]
            )
        engine.cache.seal(prompt)
        return prompt

    def _path(self, ids: tuple[int, ...]) -> Path:
        about = f"{_FORMAT}:{self.identity}:".encode()
        digest = hashlib.sha256(about + array("q", ids).tobytes()).hexdigest()
        return self.folder / f"{digest[:32]}.safetensors"

    def _read(self, path: Path, tokens: int) -> dict[str, torch.Tensor] | None:
        try:
            stored = load_file(path)
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            _LOG.warning("cannot read %s, computing it again: %s", path, error)
            return None
        return stored if stored.keys() == {"k", "v"} and stored["k"].shape[2] == tokens else None

    def _write(self, engine: Engine, prompt: Prompt, path: Path) -> None:
        pool, slots = engine.cache.pool, _slots(prompt)
        tensors = {
            name: torch.stack(
                [pool.layer(layer)[i][:, slots] for layer in range(engine.geometry.layers)]
            ).cpu()
            for i, name in enumerate(("k", "v"))
        }
        if self._make_room(sum(t.nbytes for t in tensors.values())):
            self._replace(path, lambda temporary: save_file(tensors, temporary))

    # ---- dense answers

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A document stored under a name, or None."""
        try:
            found = json.loads((self.folder / f"{name}-{self.identity}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def write_json(self, name: str, document: dict[str, Any]) -> None:
        """Store a document under a name."""
        text = json.dumps(document)
        path = self.folder / f"{name}-{self.identity}.json"
        self._replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    # ---- space

    def _make_room(self, wanted: int) -> bool:
        """Delete the least recently used prompts of others until `wanted` bytes fit; whether they do."""
        files = []
        for path in self.folder.glob("*.safetensors"):
            with contextlib.suppress(FileNotFoundError):  # another worker may be deleting, too
                stat = path.stat()
                files.append((stat.st_mtime_ns, stat.st_size, path))
        held = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if held + wanted <= self.limit:
                break
            if path not in self._in_use:
                path.unlink(missing_ok=True)
                held -= size
        return held + wanted <= self.limit

    def _replace(self, path: Path, write: Callable[[Path], object]) -> None:
        """Write a temporary file and rename it. A full disk or a read-only folder costs time, not the run."""
        temporary = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.folder, prefix=".new-")
            os.close(handle)
            temporary = Path(name)
            write(temporary)
            temporary.replace(path)
        except (OSError, SafetensorError) as error:
            _LOG.warning("cannot keep %s: %s", path, error)
            if temporary is not None:
                temporary.unlink(missing_ok=True)


def _slots(prompt: Prompt) -> torch.Tensor:
    """Pool slots of a prompt's cached tokens, int64 `[cached]`."""
    from vortex_core.engine.kv.blocks import BLOCK_TOKENS

    at = torch.arange(prompt.cached)
    return torch.tensor(prompt.blocks)[at // BLOCK_TOKENS] * BLOCK_TOKENS + at % BLOCK_TOKENS

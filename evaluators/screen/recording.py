"""Recorded attention of a model: queries, keys and values of a few prompts, and what reaches the logits. One file."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from evaluators.errors import bad_recording
from vortex_core.geometry import Geometry

FORMAT = 2
_TENSORS = ("k", "v", "q", "slopes", "logprobs")


@dataclass(frozen=True)
class AttentionRecording:
    """Dense attention of some prompts over consecutive decode steps: the first at the prompt's end, the others while
    the model generates.

    Attributes:
        key: of what was recorded: weights, engine, items, settings (`record.recording_key`).
        model: its name, for people.
        geometry: of the model.
        scale: what q·k is multiplied by before the softmax.
        kinds: by prompt, the task that it came from.
        lengths: tokens of each prompt at the last step.
        starts: first slot of each prompt; multiples of 128.
        steps: decode steps recorded.
        at: those of them, from 0, at which programs without memory of steps are looked at.
        k: `[layer, kv_head, slot, dim]`, rotated, in the pool's dtype.
        v: likewise; for latent attention the first channels of `k`.
        q: `[step, prompt, layer, q_head, dim]`, rotated (latent attention: absorbed).
        slopes: how the logits of the likeliest tokens, less the mean of all logits, change with the attention output:
            float32 `[token, at, prompt, layer, q_head, value_dim]`; None where the engine cannot differentiate.
        logprobs: of the same tokens, dense, float32 `[token, at, prompt]`; None likewise.
    """

    key: str
    model: str
    geometry: Geometry
    scale: float
    kinds: tuple[str, ...]
    lengths: tuple[int, ...]
    starts: tuple[int, ...]
    steps: int
    at: tuple[int, ...]
    k: torch.Tensor
    v: torch.Tensor
    q: torch.Tensor
    slopes: torch.Tensor | None
    logprobs: torch.Tensor | None

    @property
    def prompts(self) -> int:
        """Prompts recorded."""
        return len(self.lengths)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(x.nbytes for x in self._tensors().values())

    def lengths_at(self, step: int) -> list[int]:
        """Tokens of each prompt at a step."""
        return [length - (self.steps - 1 - step) for length in self.lengths]

    def to(self, device: torch.device | str) -> AttentionRecording:
        """The same on another device."""
        moved = {name: x.to(device) for name, x in self._tensors().items()}
        return self._of(self._about(), moved)

    def save(self, path: Path) -> None:
        """Write a safetensors file, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
        os.close(handle)
        try:
            tensors = {n: x.detach().cpu().contiguous() for n, x in self._tensors().items()}
            save_file(tensors, name, metadata={"about": json.dumps(self._about())})
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path | str) -> AttentionRecording:
        """Read a file that `save` wrote; no model is needed.

        Raises:
            VortexError: `VV012` for a file that is missing, cut, or of another format.
        """
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {}).get("about", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
            if about.pop("format", None) != FORMAT:
                raise bad_recording(str(path), "it is of another format")
            return cls._of(about, tensors)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise bad_recording(str(path), str(error)) from error

    def _tensors(self) -> dict[str, torch.Tensor]:
        held = {name: getattr(self, name) for name in _TENSORS}
        if self.geometry.is_mla:
            del held["v"]
        return {name: x for name, x in held.items() if x is not None}

    def _about(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "key": self.key,
            "model": self.model,
            "geometry": asdict(self.geometry),
            "scale": self.scale,
            "kinds": self.kinds,
            "lengths": self.lengths,
            "starts": self.starts,
            "steps": self.steps,
            "at": self.at,
        }

    @classmethod
    def _of(cls, about: dict[str, Any], tensors: dict[str, torch.Tensor]) -> AttentionRecording:
        shape = about["geometry"]
        geometry = Geometry(**{**shape, "rotary": tuple(shape["rotary"])})
        k = tensors["k"]
        return cls(
            key=about["key"],
            model=about["model"],
            geometry=geometry,
            scale=about["scale"],
            kinds=tuple(about["kinds"]),
            lengths=tuple(about["lengths"]),
            starts=tuple(about["starts"]),
            steps=about["steps"],
            at=tuple(about["at"]),
            k=k,
            v=k[..., : geometry.value_dim] if geometry.is_mla else tensors["v"],
            q=tensors["q"],
            slopes=tensors.get("slopes"),
            logprobs=tensors.get("logprobs"),
        )

"""Whether a described model can run on this machine, and what is missing if not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vortex_core.engine.models.memory import Memory, gib, memory_found
from vortex_core.engine.models.weights import fetch_command, reads, weights_here
from vortex_core.specs import load_model


@dataclass(frozen=True)
class ModelStatus:
    """Whether a described model can run here, and what is missing if not."""

    name: str
    hf_id: str
    parameters: int
    directory: Path | None  # None: the weights are not on this machine
    disk_bytes: int | None
    memory_needed: int  # bytes of bf16 weights; the KV cache comes on top
    memory: Memory
    command: str  # fetches the weights

    @property
    def present(self) -> bool:
        """Whether the weights are on this machine."""
        return self.directory is not None

    @property
    def fits(self) -> bool:
        """Whether the bf16 weights fit the memory found."""
        return self.memory_needed <= self.memory.bytes

    @property
    def missing(self) -> list[str]:
        """One sentence for each thing that keeps the model from running here."""
        reasons = []
        if not self.present:
            reasons.append(f"the weights of {self.hf_id} are not on this machine")
        if not self.fits:
            found = f"{self.memory.device} has {gib(self.memory.bytes)}"
            reasons.append(f"its bf16 weights need {gib(self.memory_needed)}, {found}{self._divided()}")
        if not reads(load_model(self.name)):
            reasons.append(
                "transformers widens its fp8 weights with the package accelerate, which is not installed"
            )
        return reasons

    def _divided(self) -> str:
        """How many of the GPUs here would do, where one does not."""
        from vortex_core.engine.models.parallel import divisible

        spec = load_model(self.name)
        for count in range(2, self.memory.others + 2):
            if divisible(spec, count) and self.memory_needed <= count * self.memory.bytes:
                return f" (divided over {count} of the GPUs here it fits: torchrun --nproc-per-node {count})"
        return ""


def model_status(name: str) -> ModelStatus:
    """What `vortex-search models` tells about one described model (`VM001` for others)."""
    spec = load_model(name)
    directory = weights_here(spec)
    disk = None if directory is None else sum(f.stat().st_size for f in directory.iterdir() if f.is_file())
    return ModelStatus(
        name=spec.name,
        hf_id=spec.hf_id,
        parameters=spec.parameters,
        directory=directory,
        disk_bytes=disk,
        memory_needed=spec.weight_bytes("bf16"),
        memory=memory_found(),
        command=fetch_command(spec),
    )

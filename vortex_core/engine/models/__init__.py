"""What the engine adds to transformers' models: latent attention, random weights, tensor parallelism."""

from __future__ import annotations

from vortex_core.engine.models.adapt import adapt

__all__ = ["adapt"]

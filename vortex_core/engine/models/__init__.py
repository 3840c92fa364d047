"""What the engine adds to transformers' models: latent attention, random weights, tensor parallelism."""

from __future__ import annotations

from vortex_core.engine.models.adapt import adapt
from vortex_core.engine.models.parallel import check_flow, least_of_ranks, sharding_of

__all__ = ["adapt", "check_flow", "least_of_ranks", "sharding_of"]

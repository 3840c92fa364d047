"""The embedded serving engine: transformers' models over a paged KV pool, with hot-swappable flows.

Names load on first use, so that reading a model's description does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vortex_core.engine.engine import DecodeResult, Engine, SwapReport
    from vortex_core.engine.prompts import Prompt
    from vortex_core.engine.sampling import Sampling

__all__ = ["DecodeResult", "Engine", "Prompt", "Sampling", "SwapReport"]


def __getattr__(name: str) -> Any:
    if name == "Prompt":
        from vortex_core.engine import prompts

        return prompts.Prompt
    if name == "Sampling":
        from vortex_core.engine import sampling

        return sampling.Sampling
    if name in __all__:
        from vortex_core.engine import engine

        return getattr(engine, name)
    raise AttributeError(f"module 'vortex_core.engine' has no attribute {name!r}")

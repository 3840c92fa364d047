"""The embedded serving engine: transformers' models over a paged KV pool, with hot-swappable flows.

Names load on first use, so that reading a model's description does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vortex_core.engine.decode.sampling import Sampling
    from vortex_core.engine.engine import Engine
    from vortex_core.engine.kv.cache import Prompt
    from vortex_core.engine.results import DecodeResult, SwapReport
    from vortex_core.engine.scheduler import Request, RequestOutput, Scheduler

__all__ = [
    "DecodeResult",
    "Engine",
    "RequestOutput",
    "Prompt",
    "Request",
    "Sampling",
    "Scheduler",
    "SwapReport",
]

_HOME = {
    "DecodeResult": "results",
    "Prompt": "kv.cache",
    "Sampling": "decode.sampling",
    "RequestOutput": "scheduler",
    "Request": "scheduler",
    "Scheduler": "scheduler",
    "SwapReport": "results",
}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"vortex_core.engine.{_HOME.get(name, 'engine')}"), name)
    raise AttributeError(f"module 'vortex_core.engine' has no attribute {name!r}")

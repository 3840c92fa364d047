"""Backends by name: `oracle`, `torch`, `triton`, and those of installed distributions."""

from __future__ import annotations

from collections.abc import Callable

from vortex_core.compiler.interface import Backend
from vortex_core.registry import Registry

# An entry point of the group `vortex_core.backends` names a class like these, called without arguments.
REGISTRY: Registry[Callable[[], Backend]] = Registry(
    "backend",
    {
        "oracle": "vortex_core.compiler.oracle:OracleBackend",
        "torch": "vortex_core.compiler.torch_backend:TorchBackend",
        "triton": "vortex_core.compiler.triton.backend:TritonBackend",
    },
    group="vortex_core.backends",
    code="VE001",
)


def get(name: str) -> Backend:
    """A backend. No name ever stands for another.

    Raises:
        VortexError: `VE001` for an unknown name, `VX001` and `VX002` for entry points that cannot be used.
    """
    return REGISTRY.get(name)()

"""Backends by name."""

from __future__ import annotations

import difflib

from vortex_core.compiler.interface import Backend
from vortex_core.errors import VortexError

NAMES = ("oracle", "torch", "triton")


def get(name: str) -> Backend:
    """A backend. No name ever stands for another.

    Raises:
        VortexError: `VE001` for an unknown name.
    """
    if name == "oracle":
        from vortex_core.compiler.oracle import OracleBackend

        return OracleBackend()
    if name == "torch":
        from vortex_core.compiler.torch_backend import TorchBackend

        return TorchBackend()
    if name == "triton":
        from vortex_core.compiler.triton.backend import TritonBackend

        return TritonBackend()
    near = difflib.get_close_matches(name, NAMES)
    raise VortexError("VE001", f"no backend {name!r}", f"use one of: {', '.join(near or NAMES)}")

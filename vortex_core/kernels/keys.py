"""Keys of kernels in Triton's cache do not depend on what a process did before.

Triton's key of a kernel holds the constants of the functions that it calls, as far as their own keys were made already:
it takes a function's constants before it makes that function's key. The first kernel of a process to call a function
thus has another key than the same kernel has in a process in which a second one came first, and is compiled again
though it lies in the cache: an engine would compile what a worker had compiled for it. Here the key is made first.
Kernels of other packages keep the keys that Triton gives them.
"""

from __future__ import annotations

from typing import Any

from triton.runtime.jit import DependenciesFinder

OURS = ("vortex_core.", "vortex_kernels_")
"""What the modules of our kernels are named, generated ones too."""
_update_hash = DependenciesFinder._update_hash


def _with_its_key_made(finder: Any, function: Any) -> None:
    if str(finder.globals.get("__name__", "")).startswith(OURS):
        getattr(function, "cache_key", None)  # of whatever has one
    _update_hash(finder, function)


def settle_keys() -> None:
    """Make keys so from now on in this process; a second call changes nothing."""
    DependenciesFinder._update_hash = _with_its_key_made

"""What keeps a model from running on a device, found before anything is loaded. Called where the engine will be."""

from __future__ import annotations

from search.errors import no_memory
from search.executors.workers import EngineSetup
from vortex_core.specs import ModelSpec


def require(setup: EngineSetup, *, memory: bool = True, fetch: bool = True) -> None:
    """Weights that are here or can be fetched, and memory that holds them.

    Args:
        memory: whether to look at this process's device. A driver does not: its engines have GPUs of their own.
        fetch: whether to fetch weights that are missing, which else is an error.

    Raises:
        VortexError: as `resolve_model` (`VM...`), `VS042` for too little memory, `VE020` for heads that the
            ranks cannot divide.
    """
    from vortex_core.engine.models.parallel import divide_heads
    from vortex_core.engine.models.weights import describe_model, resolve_model

    if setup.random_weights:
        spec = describe_model(setup.model)
    else:
        spec = resolve_model(setup.model, fetch=fetch, check_memory=False).spec
    if setup.ranks > 1:
        divide_heads(spec, setup.ranks)
    if setup.accuracy_model is not None:
        resolve_model(setup.accuracy_model, fetch=fetch, check_memory=False)
    if memory:
        require_memory(spec, setup)


def require_memory(spec: ModelSpec, setup: EngineSetup) -> None:
    """Raise `VS042` where the device of one rank cannot hold its part of the weights."""
    from vortex_core.engine.models.memory import gib, ram_found

    needed = spec.weight_bytes("bf16") // setup.ranks
    if setup.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return  # the engine says why CUDA does not start
        properties = torch.cuda.get_device_properties(0)
        found, name = properties.total_memory, properties.name
    else:
        memory = ram_found()
        found, name = memory.bytes, memory.device
    if needed > found:
        part = f"{gib(needed)} in bf16" + (f" on each of {setup.ranks} devices" if setup.ranks > 1 else "")
        fits = next(
            (n for n in (2, 4, 8, 16) if n > setup.ranks and spec.weight_bytes("bf16") // n < found), None
        )
        remedy = (
            f"divide it over GPUs: --tp {fits}"
            if fits and setup.device == "cuda"
            else "choose a smaller model"
        )
        raise no_memory(spec.name, part, f"{name} has {gib(found)}", remedy)

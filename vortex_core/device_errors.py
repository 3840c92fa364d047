"""The edge of the device: what Triton, torch and CUDA raise, as errors that say whose fault it is.

There is one place for each boundary: an engine that is loaded (`Engine.from_model`), a flow that is compiled and
loaded (`Engine.load_compiled`), a step that is captured (`GraphRunner.capture`) and a stage that launches kernels
(`evaluators.stages.base.run_stage`). Each runs in `device_errors(...)` or asks `translate`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from vortex_core.errors import VortexError, place_of

_LIMITS = {
    "shared memory": "bytes of shared memory",
    "tensor memory": "columns of tensor memory",
    "threads": "threads",
}
SMALLER = (
    "take a smaller page_size, store states in fewer bits (bf16, int8), or reduce a dimension before it is "
    "combined with others"
)
"""What an author can do about a kernel that wants too much."""
_TRIED = re.compile(r"[Tt]ried to allocate ([\d.]+ \w+)")
_FREE = re.compile(r"total capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free")
# Of the driver, through torch (`CUDA error: an illegal memory access ...`) or Triton (`Triton Error [CUDA]: ...`).
_DRIVER = re.compile(r"CUDA (driver )?error|Triton Error \[CUDA\]|CUBLAS_STATUS|CUDNN_STATUS")
_RAM = re.compile(r"DefaultCPUAllocator: (?:can't|not enough)")
_FULL = re.compile(r"out of memory|CUBLAS_STATUS_ALLOC_FAILED")


class DeviceLostError(VortexError):
    """The process cannot use its GPU any more (`VE055`): whatever it holds must be built anew in another one."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__("VE055", message, remedy)


def translate(error: BaseException, doing: str, *, flow: bool) -> VortexError | None:
    """The typed error for an exception of Triton, torch or CUDA; None for any other.

    Args:
        doing: what was being done, as the beginning of a sentence: `loading smollm2-135m`, `stage recall`.
        flow: whether a flow was being run. What does not fit is then the flow's fault: the engine ran the same
            work densely before.
    """
    if isinstance(error, VortexError):
        return error
    found = _typed(error, doing, flow=flow)
    if found is not None:
        found.place = place_of(error.__traceback__)
    return found


def _typed(error: BaseException, doing: str, *, flow: bool) -> VortexError | None:
    names = {kind.__name__ for kind in type(error).__mro__ if kind.__module__.startswith(("triton", "torch"))}
    said = str(error).strip() or type(error).__name__
    if "OutOfResources" in names:
        return _too_large(error, doing, flow=flow)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _RAM.search(said)):
        return _full(said, doing, flow=flow)
    if "OutOfMemoryError" in names or (_DRIVER.search(said) and _FULL.search(said)):
        return _full(said, doing, flow=flow)
    if "AcceleratorError" in names or (isinstance(error, RuntimeError) and _DRIVER.search(said)):
        return DeviceLostError(
            f"{doing}: {_first_line(said)}",
            "the worker is replaced; if it comes back, run the program once with CUDA_LAUNCH_BLOCKING=1 and report it",
        )
    if "TritonError" in names:
        return VortexError(
            "VE052",
            f"{doing}: Triton does not compile a kernel: {_line_with_reason(said)}",
            "rewrite the step it names, and report the program: what is legal should compile"
            if flow
            else "report this: it is a defect of the engine's own kernels",
            fault=None if flow else "infrastructure",
        )
    return None


@contextmanager
def device_errors(doing: str, *, flow: bool) -> Iterator[None]:
    """Run a block in which exceptions of Triton, torch and CUDA become typed errors. See `translate`.

    Raises:
        VortexError: `VE051` to `VE055`. Everything else passes through.
    """
    try:
        yield
    except Exception as error:
        found = translate(error, doing, flow=flow)
        if found is None or found is error:
            raise
        raise found from error


def no_room_for_pool(tokens: int, needed: int, free: int, fits: int) -> VortexError:
    """`VE054`: a KV pool that does not fit the GPU. Sizes in bytes, `fits` in tokens."""
    return VortexError(
        "VE054",
        f"a KV pool of {tokens:,} tokens needs {needed / 2**30:.2f} GiB, "
        f"{free / 2**30:.2f} GiB are free beside the weights",
        f"with room for page states {fits:,} tokens fit: lower max_tokens, or take an evaluation plan with fewer or "
        "shorter prompts; nvidia-smi shows what else is on this GPU",
    )


def _too_large(error: BaseException, doing: str, *, flow: bool) -> VortexError:
    """Triton's OutOfResources: `required` of `name`, of which one block has `limit`."""
    name = str(getattr(error, "name", "resources"))
    required, limit = getattr(error, "required", 0), getattr(error, "limit", 0)
    return more_than_there_is(doing, required, _LIMITS.get(name, name), limit, flow=flow)


def more_than_there_is(doing: str, required: int, unit: str, limit: int, *, flow: bool) -> VortexError:
    """`VE051`: a kernel that wants more of something than one block of the GPU has."""
    return VortexError(
        "VE051",
        f"{doing}: a kernel needs {required:,} {unit}, this GPU has {limit:,} for one block",
        SMALLER
        if flow
        else "load the model in a narrower dtype (bf16): rows of fp32 latents take twice the shared memory",
        fault=None if flow else "infrastructure",
    )


def _full(said: str, doing: str, *, flow: bool) -> VortexError:
    tried, free = _TRIED.search(said), _FREE.search(said)
    wanted = f"{tried[1]} more" if tried else "more memory"
    left = f", {free[2]} of {free[1]} are free" if free else ""
    if flow:
        return VortexError(
            "VE053",
            f"{doing}: the flow needs {wanted}{left}; dense attention fits here",
            "keep fewer states, or states and intermediates of fewer numbers a page",
        )
    return VortexError(
        "VE054",
        f"{doing} needs {wanted}{left}",
        "end what else runs on this GPU (nvidia-smi), ask for fewer or shorter prompts, or lower max_tokens",
    )


def _first_line(text: str) -> str:
    return text.splitlines()[0][:300]


def _line_with_reason(text: str) -> str:
    """Triton quotes the kernel first and says what is wrong last."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and set(line.strip()) != {"^"}]
    return lines[-1][:300] if lines else "no reason given"

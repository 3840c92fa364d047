"""Compiles the kernels of a step side by side before the step runs, for the GPU that is here or for one that is not.

A flow that is swapped in brings half a dozen kernels, and a launch that finds none compiles its own, one after the
other. Most of that time is spent outside of Python's lock (LLVM, ptxas), so threads share it well. What was compiled
lies in Triton's cache on disk: processes on the same machine find it there, an engine for example what a worker
without a GPU compiled for it.
"""

from __future__ import annotations

import ast
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from triton import AsyncCompileMode, knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime._async_compile import FutureKernel
from triton.runtime.jit import JITFunction

from vortex_core.kernels import asked
from vortex_core.kernels.keys import OURS
from vortex_core.kernels.runtime import AbsentGPU, as_if_on

_ONE_TREE = threading.RLock()


@contextmanager
def _parsing_in_turn() -> Iterator[None]:
    """Inside, syntax trees are made one after the other, whoever makes them.

    CPython counts the depth of all trees under construction in one place: two threads that make theirs side by side
    may get `SystemError: AST constructor recursion depth mismatch`. Triton's threads make those of kernels and of
    functions that are constants to them, the thread that launches those of budgets.
    """
    parse = ast.parse

    def parse_in_turn(*arguments: Any, **options: Any) -> Any:
        with _ONE_TREE:
            return parse(*arguments, **options)

    ast.parse = parse_in_turn
    try:
        yield
    finally:
        ast.parse = parse


@contextmanager
def compiling_ahead(*, threads: int = 16, strict: bool = False) -> Iterator[dict[str, list[Any]]]:
    """Inside, Triton launches compile what they need in parallel and run nothing; at the end all of it is there.

    What a launch would have written stays as it was, so whatever else happens inside must bear that.

    Args:
        threads: at most so many compile at once, and no more than there are cores.
        strict: raise what a kernel that does not compile raises. By default it is passed over: its own launch says why.

    Yields:
        The compiled kernels by name, as Triton keeps them, once the block has been left.
    """
    run = JITFunction.run
    met: dict[str, dict[int, Any]] = {}
    found: dict[str, list[Any]] = {}

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        met.setdefault(self.__name__, {})[id(kernel)] = kernel
        return kernel

    with (
        _parsing_in_turn(),
        ThreadPoolExecutor(min(threads, len(os.sched_getaffinity(0)))) as pool,
        # Errors are raised below: one raised on the way out would leave the mode on, and every later one refused.
        AsyncCompileMode(pool, ignore_errors=True),
    ):
        JITFunction.run = compile_only
        try:
            yield found
        finally:
            JITFunction.run = run
    for name, kernels in met.items():
        made = [k.result(not strict) if isinstance(k, FutureKernel) else k for k in kernels.values()]
        found[name] = [k for k in made if k is not None]


class _AbsentDriver:
    """As much of a Triton driver as a launch asks for that only compiles."""

    def __init__(self, gpu: AbsentGPU) -> None:
        major, minor = gpu.capability
        self._target = GPUTarget("cuda", 10 * major + minor, 32)

    def get_current_device(self) -> int:
        """A number that no device has, under which Triton keeps the kernels."""
        return -int(self._target.arch)

    def get_current_stream(self, device: int) -> int:
        """None is needed."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """What is compiled for."""
        return self._target


@contextmanager
def compiling_for(gpu: AbsentGPU, *, threads: int = 4) -> Iterator[dict[str, list[Any]]]:
    """`compiling_ahead` for a GPU that need not be here: launches take tensors without storage (device `meta`).

    Types, alignments and options are those of a launch there, so an engine finds the kernels in Triton's cache.

    Raises:
        Whatever Triton raises for a kernel that does not compile.
    """
    before = driver._active
    driver.set_active(_AbsentDriver(gpu))
    try:
        with as_if_on(gpu), kernels_compiled(), compiling_ahead(threads=threads, strict=True) as found:
            yield found
    finally:
        driver._active = before


@contextmanager
def kernels_compiled() -> Iterator[list[str]]:
    """Yields a list that gets a line for every kernel this process compiles inside: its name, and how it differs from
    what was compiled before (`asked`). Not those found in the cache."""
    lines: list[str] = []

    def listen(*, src: Any, metadata: Any, cache_hit: bool, **rest: Any) -> None:
        if before is not None:
            before(src=src, metadata=metadata, cache_hit=cache_hit, **rest)
        if not cache_hit and str(src.fn.__module__).startswith(OURS):
            lines.append(f"{src.name}: {asked.difference(src, metadata)}")
            asked.note(src, metadata)

    before = knobs.compilation.listener
    knobs.compilation.listener = listen
    try:
        yield lines
    finally:
        knobs.compilation.listener = before

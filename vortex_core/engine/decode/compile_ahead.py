"""Compiles the kernels of a step side by side before the step runs.

A flow that is swapped in brings half a dozen kernels, and a launch that finds none compiles its own, one after the
other. Most of that time is spent outside of Python's lock (LLVM, ptxas), so threads share it well.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from triton import AsyncCompileMode
from triton.runtime.jit import JITFunction


@contextmanager
def _parsing_in_turn() -> Iterator[None]:
    """Inside, kernels' syntax trees are made one after the other.

    CPython counts the depth of all trees under construction in one place: two threads that make theirs side by side
    may get `SystemError: AST constructor recursion depth mismatch`.
    """
    parse, one = JITFunction.parse, threading.Lock()

    def parse_in_turn(self: Any) -> Any:
        with one:
            return parse(self)

    JITFunction.parse = parse_in_turn
    try:
        yield
    finally:
        JITFunction.parse = parse


@contextmanager
def compiling_ahead() -> Iterator[None]:
    """Inside, Triton launches compile what they need in parallel and run nothing; at the end all of it is there.

    What a launch would have written stays as it was, so whatever else happens inside must bear that. A kernel that
    does not compile is passed over: its own launch says why.
    """
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        return run(self, *args, grid=grid, warmup=True, **options)

    threads = min(16, len(os.sched_getaffinity(0)))
    with (
        _parsing_in_turn(),
        ThreadPoolExecutor(threads) as pool,
        AsyncCompileMode(pool, ignore_errors=True),
    ):
        JITFunction.run = compile_only
        try:
            yield
        finally:
            JITFunction.run = run

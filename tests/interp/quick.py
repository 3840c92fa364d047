"""Triton's interpreter without what it computes for nothing. Import it in a process that interprets kernels.

Every sum and product of integers is worked out a second time in 64 bits for a check of overflow that reports in debug
mode alone, and every call of a device function lists all members of `triton.language` to find the same built-ins again.
Together they are half of the time; results are the same.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import triton.language as tl
from triton.runtime import interpreter

PATCHED = (tl, tl.core, tl.tensor, tl.math, tl.core.tensor_descriptor_base)
BUILTINS = {
    package: [name for name, member in inspect.getmembers(package) if tl.core.is_builtin(member)]
    for package in PATCHED
}


def _patch_builtin(package: Any, builder: Any, scope: Any) -> None:
    """As Triton's own, over the names that were built-ins before any kernel ran."""
    for name in BUILTINS[package]:
        member = getattr(package, name)
        if tl.core.is_builtin(member):
            interpreter._patch_attr(package, name, member, builder, scope)


options = interpreter.interpreter_builder.options
assert not options.debug, "a check that reports is not for nothing"
interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)
assert all(BUILTINS[package] for package in PATCHED)
interpreter._patch_builtin = _patch_builtin

"""Triton's interpreter without what it computes for nothing. Import it in a process that interprets kernels.

Every sum and product of integers is worked out a second time in 64 bits for a check of overflow that reports in debug
mode alone; every call of a device function replaces the built-ins of `triton.language` that its kernel's launch has
replaced; and the table of numpy's types is written anew for each number. Results are the same without.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

Scope = interpreter._LangPatchScope
PATCHED = (tl, tl.core, tl.tensor, tl.math, tl.core.tensor_descriptor_base)
BUILTINS = {
    package: [name for name, member in inspect.getmembers(package) if tl.core.is_builtin(member)]
    for package in PATCHED
}
_replace, _restore, _numpy_type = interpreter._patch_lang, Scope.restore, interpreter._get_np_dtype
_replaced: set[tuple[int, ...]] = set()  # by the launch that is running


def _patch_builtin(package: Any, builder: Any, scope: Scope) -> None:
    """As Triton's own, over the names that were built-ins before any kernel ran."""
    for name in BUILTINS[package]:
        member = getattr(package, name)
        if tl.core.is_builtin(member):
            interpreter._patch_attr(package, name, member, builder, scope)


@cache
def _modules(function: Callable[..., Any]) -> tuple[int, ...]:
    """Those of Triton that a function sees, which is what is replaced for it."""
    seen = [value for value in function.__globals__.values() if inspect.ismodule(value)]
    return tuple(id(value) for value in seen if value in (tl, tl.core))


def _patch_lang(function: Callable[..., Any]) -> Scope:
    modules = _modules(function)
    if modules in _replaced:
        return Scope()
    _replaced.add(modules)
    return _replace(function)


def _restore_all(scope: Scope) -> None:
    _replaced.clear()
    _restore(scope)


@cache
def _type_by_name(name: str) -> np.dtype[Any]:
    return _numpy_type(tl.dtype(name))


def _get_np_dtype(kind: Any) -> np.dtype[Any]:
    kind = kind.element_ty if isinstance(kind, tl.block_type) else kind
    return np.dtype(np.uint64) if isinstance(kind, tl.pointer_type) else _type_by_name(kind.name)


options = interpreter.interpreter_builder.options
assert not options.debug, "a check that reports is not for nothing"
assert all(BUILTINS[package] for package in PATCHED)
interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)
interpreter._patch_builtin, interpreter._patch_lang = _patch_builtin, _patch_lang
interpreter._get_np_dtype, Scope.restore = _get_np_dtype, _restore_all

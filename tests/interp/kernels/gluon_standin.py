"""Runs a Gluon kernel's Python text on torch tensors, one program at a time: Triton does not interpret Gluon.

It shows that a kernel computes what it should; not that its layouts are legal, nor that its barriers suffice.
Asynchronous copies arrive as late as their wait allows, so that a wait too few shows.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch


class Pointer:
    """Elements of a flat tensor at an offset or a tensor of offsets."""

    def __init__(self, data: torch.Tensor, at: Any = 0) -> None:
        self.data, self.at = data, at
        self.dtype = types.SimpleNamespace(element_ty=data.dtype)

    def __add__(self, offset: Any) -> Pointer:
        return Pointer(self.data, self.at + offset)

    def __getitem__(self, index: Any) -> Pointer:
        return Pointer(self.data, self.at[index])


class Shared:
    """Shared memory, or a view of it. Starts as NaN: nobody may read what nobody wrote."""

    def __init__(self, data: torch.Tensor) -> None:
        self.data = data

    def index(self, i: int) -> Shared:
        return Shared(self.data[i])

    def permute(self, order: list[int]) -> Shared:
        return Shared(self.data.permute(order))

    def store(self, value: torch.Tensor) -> None:
        self.data.copy_(value)


def _load(pointer: Pointer, mask: Any = None, other: float = 0) -> torch.Tensor:
    at = torch.as_tensor(pointer.at)
    ok = torch.ones_like(at, dtype=torch.bool) if mask is None else torch.as_tensor(mask)
    at, ok = torch.broadcast_tensors(at, ok)
    inside = torch.where(ok, at, 0)
    assert bool((inside >= 0).all()) and bool((inside < pointer.data.numel()).all()), "out of bounds"
    return torch.where(ok, pointer.data[inside], torch.tensor(other, dtype=pointer.data.dtype))


def _store(pointer: Pointer, value: torch.Tensor, mask: Any = None) -> None:
    at, value = torch.broadcast_tensors(torch.as_tensor(pointer.at), torch.as_tensor(value))
    ok = torch.ones_like(at, dtype=torch.bool) if mask is None else torch.as_tensor(mask).expand(at.shape)
    pointer.data[at[ok]] = value[ok].to(pointer.data.dtype)


def _mma(
    a: Shared, b: Shared, acc: torch.Tensor, use_acc: bool = True, is_async: bool = False
) -> torch.Tensor:
    product = a.data.float() @ b.data.float()
    return acc + product if use_acc else product


class _Copies:
    def __init__(self) -> None:
        self.open: list[Callable[[], None]] = []
        self.groups: list[list[Callable[[], None]]] = []

    def async_copy_global_to_shared(self, to: Shared, pointer: Pointer, mask: Any) -> None:
        self.open.append(lambda: to.store(_load(pointer, mask)))

    def commit_group(self) -> None:
        self.groups.append(self.open)
        self.open = []

    def wait_group(self, left: int) -> None:
        while len(self.groups) > left:
            for copy in self.groups.pop(0):
                copy()


def _namespace(program: int) -> dict[str, Any]:
    def two(f: Callable[..., Any]) -> Callable[..., Any]:
        return lambda a, b: f(torch.as_tensor(a), torch.as_tensor(b))

    def where(ok: torch.Tensor, a: torch.Tensor, b: torch.Tensor | float) -> torch.Tensor:
        return torch.where(ok, a, torch.as_tensor(b, dtype=a.dtype))

    gl: dict[str, Any] = {
        name: lambda *a, **k: None
        for name in ("BlockedLayout", "SliceLayout", "NVMMADistributedLayout", "NVMMASharedLayout")
    }
    gl |= {
        "constexpr": None, "int32": torch.int32, "int64": torch.int64, "float32": torch.float32,
        "program_id": lambda axis: torch.tensor(program, dtype=torch.int32),
        "static_range": range,
        "arange": lambda a, b, layout: torch.arange(a, b),
        "full": lambda shape, value, dtype, layout: torch.full(shape, value, dtype=dtype),
        "zeros": lambda shape, dtype, layout: torch.zeros(shape, dtype=dtype),
        "allocate_shared_memory": lambda dtype, shape, layout: Shared(torch.full(shape, torch.nan, dtype=dtype)),
        "load": _load, "store": _store, "where": where,
        "maximum": two(torch.maximum), "minimum": two(torch.minimum),
        "max": lambda x, axis: x.amax(axis), "sum": lambda x, axis: x.sum(axis, dtype=x.dtype),
        "exp2": torch.exp2, "log2": torch.log2,
        "associative_scan": lambda x, axis, f: x.cumsum(axis),
        "convert_layout": lambda x, layout: x,
    }  # fmt: skip
    return {
        "gl": types.SimpleNamespace(**gl),
        "async_copy": _Copies(),
        "fence_async_shared": lambda: None,
        "block_barrier": lambda: None,
        "warpgroup_mma": _mma,
        "warpgroup_mma_wait": lambda left, deps: deps[0],
    }


class StandIn:
    """Takes a Gluon kernel's place: `StandIn(kernel)[(programs,)](*arguments, **constants)`."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(*arguments: Any, num_warps: int, **constants: Any) -> None:
            for program in range(grid[0]):
                self._run(program, arguments, constants)

        return launch

    def _run(self, program: int, arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
        fields: dict[str, Any] = {}
        kernel = self.kernel.fn
        for name, value in kernel.__globals__.items():
            inner = getattr(value, "fn", None)
            if isinstance(inner, types.FunctionType) and inner.__module__ == kernel.__module__:
                fields[name] = types.FunctionType(inner.__code__, fields, inner.__name__)
            else:
                fields[name] = getattr(value, "value", value)  # constants are wrapped
        fields.update(_namespace(program))
        body = types.FunctionType(kernel.__code__, fields, kernel.__name__)
        body(*(Pointer(_flat(x)) if isinstance(x, torch.Tensor) else x for x in arguments), **constants)


def _flat(x: torch.Tensor) -> torch.Tensor:
    """All of a tensor's storage: views are passed from their first element, which these tests' are."""
    assert x.storage_offset() == 0
    return torch.as_strided(x, (x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)

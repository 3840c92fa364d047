"""Storage of page states: dtype by dtype, packed, with exact byte counts."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from vortex_core.compiler.columns import column_bytes
from vortex_core.ir.definitions import torch_dtype
from vortex_core.ir.program import SCALED, Program, StateDecl
from vortex_core.ir.types import PLANES, packed_bytes

SCALE_DTYPE = torch.float16
# Largest error of a stored number x: relative to |x| for floats (from the smallest normal number up to the
# largest, beyond which they saturate), to the largest |x| of its row for integers (plus 2**-25 a step, 4e-6 for
# int8 and 3e-7 for int4 to int2: the scale is fp16, so rows of numbers below 0.01 lose precision).
ERROR = {
    "fp32": 2.0**-24,
    "bf16": 2.0**-8,
    "fp16": 2.0**-11,
    "fp8_e4m3": 2.0**-4,
    "fp8_e5m2": 2.0**-3,
    "int8": 0.5 / 127 + 2.0**-10,
    "int4": 0.5 / 7 + 2.0**-10,
    "int3": 1 / 7 + 2.0**-10,
    "int2": 1 / 3 + 2.0**-10,
}
_TOP = {"int8": 127.0, "int4": 7.0, "int3": 7.0, "int2": 3.0}


@dataclass
class Field:
    """The storage of one state of one layer.

    Attributes:
        decl: its declaration.
        shape: concrete extents of its dims.
        data: `[kv_head, page, *stored]`, of a state of requests `[kv_head, seat, *stored]`; the dimension that shares
            a scale comes last; fp8 as uint8; int4 packed along the last dimension, int3, int2 and bits as planes of
            bits along it, the lowest first. Packed rows lie by columns where there are many (`columns.py`):
            `[kv_head, page, *stored[:-2], column, row, byte]`.
        scale: integers only, `[kv_head, page, *stored[:-1]]`.
    """

    decl: StateDecl
    shape: tuple[int, ...]
    data: torch.Tensor
    scale: torch.Tensor | None

    @classmethod
    def allocate(
        cls, decl: StateDecl, shape: tuple[int, ...], heads: int, pages: int, device: torch.device
    ) -> Field:
        """Allocate zeroed storage for a number of pages or seats."""
        stored = _moved(shape, decl)
        kind, width = storage(decl.dtype, stored)
        column = column_bytes(decl.dtype, stored)
        if column:
            width = (*width[:-2], width[-1] // column, width[-2], column)
        data = torch.zeros((heads, pages, *width), dtype=kind, device=device)
        scaled = decl.dtype in SCALED
        scale = (
            torch.zeros((heads, pages, *stored[:-1]), dtype=SCALE_DTYPE, device=device) if scaled else None
        )
        return cls(decl, shape, data, scale)

    def write(self, heads: slice | int, pages: torch.Tensor | int, value: torch.Tensor) -> None:
        """Store `value` (`heads, pages, *dims`, any float dtype) rounded to the state's dtype."""
        order = _order(self.decl)
        if order is not None:
            value = value.permute(*range(value.dim() - len(order)), *(n - len(order) for n in order))
        data, scale = encode(value, self.decl.dtype)
        column = column_bytes(self.decl.dtype, _moved(self.shape, self.decl))
        if column:
            data = data.unflatten(-1, (-1, column)).transpose(-3, -2)
        self.data[heads, pages] = data
        if self.scale is not None and scale is not None:
            self.scale[heads, pages] = scale

    def read(self, heads: slice | int, pages: torch.Tensor | int, dtype: torch.dtype) -> torch.Tensor:
        """Values of some pages, in a computation dtype."""
        return self._decoded(
            self.data[heads, pages], None if self.scale is None else self.scale[heads, pages], dtype
        )

    def rows(self, entries: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Values of `entries` (int64, any shape; `kv_head * pages + page`), in their order, so that nothing that is
        computed from them has to lay them out anew."""

        def taken(stored: torch.Tensor) -> torch.Tensor:
            found = stored.flatten(0, 1).index_select(0, entries.flatten())
            return found.view(*entries.shape, *stored.shape[2:])

        return self._decoded(taken(self.data), None if self.scale is None else taken(self.scale), dtype)

    def _decoded(self, data: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        stored = _moved(self.shape, self.decl)
        if column_bytes(self.decl.dtype, stored):
            data = data.transpose(-3, -2).flatten(-2)
        value = decode(data, scale, self.decl.dtype, stored, dtype)
        order = _order(self.decl)
        if order is None:
            return value
        back = sorted(range(len(order)), key=order.__getitem__)
        return value.permute(*range(value.dim() - len(order)), *(n - len(order) for n in back))

    @property
    def nbytes(self) -> int:
        """Bytes of storage held."""
        return self.data.nbytes + (0 if self.scale is None else self.scale.nbytes)


def _order(decl: StateDecl) -> list[int] | None:
    """Where each stored dimension is among the declared ones, None where they lie as declared."""
    names = [n for n, _ in decl.dims]
    order = [names.index(n) for n, _ in decl.stored]
    return None if order == sorted(order) else order


def _moved(shape: tuple[int, ...], decl: StateDecl) -> tuple[int, ...]:
    """Concrete extents of the dims in the order in which they are stored."""
    sizes = dict(zip((n for n, _ in decl.dims), shape, strict=True))
    return tuple(sizes[n] for n, _ in decl.stored)


def storage(dtype: str, shape: tuple[int, ...]) -> tuple[torch.dtype, tuple[int, ...]]:
    """Torch dtype and stored shape of one page's value."""
    if dtype in ("fp32", "bf16", "fp16"):
        return torch_dtype(torch, dtype), shape
    if dtype in ("fp8_e4m3", "fp8_e5m2"):
        return torch.uint8, shape
    if dtype == "int8":
        return torch.int8, shape
    return torch.uint8, (*shape[:-1], packed_bytes(dtype, shape[-1] if shape else 1))


def encode(value: torch.Tensor, dtype: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Storage form of `value`; finite values beyond a dtype's range saturate."""
    if dtype in ("fp32", "bf16", "fp16", "fp8_e4m3", "fp8_e5m2"):
        kind = torch_dtype(torch, dtype)
        top = torch.finfo(kind).max
        small = value.clamp(-top, top).to(kind)
        return (small.view(torch.uint8) if kind.itemsize == 1 else small), None
    if dtype == "bits":
        flat = value.unsqueeze(-1) if value.dim() == 2 else value
        return _pack((flat >= 0).to(torch.uint8), 1), None
    top = _TOP[dtype]
    # The scale is rounded first and divided by as stored, so that encoding is exactly reproducible.
    scale = (value.abs().amax(-1) / top).clamp(max=6.0e4).to(SCALE_DTYPE)
    wide = scale.to(value.dtype).unsqueeze(-1)
    ratio = torch.where(wide > 0, value / torch.where(wide > 0, wide, 1.0), 0.0)
    if dtype in PLANES:
        codes = ((ratio + top + 1) / 2).floor().clamp(0, top).to(torch.uint8)
        return torch.cat([_pack((codes >> b) & 1, 1) for b in range(PLANES[dtype])], -1), scale
    steps = ratio.round().clamp(-top, top)
    if dtype == "int8":
        return steps.to(torch.int8), scale
    return _pack((steps + 8).to(torch.uint8), 4), scale


def decode(
    data: torch.Tensor, scale: torch.Tensor | None, dtype: str, shape: tuple[int, ...], out: torch.dtype
) -> torch.Tensor:
    """Inverse of `encode`, up to rounding."""
    if dtype in ("fp8_e4m3", "fp8_e5m2"):
        return data.view(torch_dtype(torch, dtype)).to(out)
    if dtype in ("fp32", "bf16", "fp16"):
        return data.to(out)
    count = shape[-1] if shape else 1
    if dtype == "bits":
        signs = _looked_up(data, "bits", 0, count, out)
        return signs if shape else signs.squeeze(-1)
    assert scale is not None
    if dtype in PLANES:
        planes = data.chunk(PLANES[dtype], -1)
        steps = _looked_up(planes[0], dtype, 0, count, out)
        for b, plane in enumerate(planes[1:], 1):
            steps = steps + _looked_up(plane, dtype, b, count, out)
    else:
        steps = data.to(out) if dtype == "int8" else _looked_up(data, dtype, 0, count, out)
    return steps * scale.to(out).unsqueeze(-1)


def _pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Numbers of `bits` bits (uint8) side by side, the first in the lowest bits of a byte."""
    values = torch.nn.functional.pad(values, (0, -values.shape[-1] % (8 // bits))).contiguous()
    if bits == 1:
        # One product moves bit 0 of byte i to bit 56 + i: no two of its terms meet, so nothing is carried.
        eight = values.view(torch.int64)
        return ((eight * 0x0102040810204080) >> 56 & 255).to(torch.uint8)
    pairs = values.view(torch.int16)
    return ((pairs | pairs >> 4) & 255).to(torch.uint8)


def _looked_up(data: torch.Tensor, dtype: str, plane: int, count: int, out: torch.dtype) -> torch.Tensor:
    """What the first `count` numbers of rows of bytes stand for; one look-up a byte is several times as fast as
    shifting, masking and converting every number."""
    table = _numbers(dtype, plane, out, data.device)
    numbers = table.index_select(0, data.flatten().int())
    return numbers.view(*data.shape[:-1], data.shape[-1] * table.shape[-1])[..., :count]


@functools.cache
def _numbers(dtype: str, plane: int, out: torch.dtype, device: torch.device) -> torch.Tensor:
    """`[256, numbers a byte]`: what the bits of a byte stand for in a plane, before the scale.

    The planes of a number add up; the lowest brings its offset with it.
    """
    bits = 4 if dtype == "int4" else 1
    shifts = torch.arange(0, 8, bits, device=device)
    codes = (torch.arange(256, device=device).unsqueeze(-1) >> shifts) & (2**bits - 1)
    if dtype == "int4":
        return (codes - 8).to(out)
    offset = 2 ** PLANES[dtype] - 1 if plane == 0 else 0
    return (2 * (codes << plane) - offset).to(out)


class TorchStates:
    """All states of one layer, with the attention mass of the last step where the program reads it.

    Args:
        seats: requests that can run at once, each with its own states; of account where the program has such.
    """

    def __init__(
        self,
        program: Program,
        shapes: dict[str, tuple[int, ...]],
        heads: int,
        group: int,
        pages: int,
        device: torch.device,
        seats: int = 1,
    ) -> None:
        self.pages, self.seats, self._heads = pages, seats, heads
        self.fields = {
            s.name: Field.allocate(s, shapes[s.name], heads, seats if s.of_request else pages, device)
            for s in program.states
        }
        self.begin(torch.arange(seats, device=device))
        self.mass = torch.zeros((heads, pages, group), device=device) if program.needs_mass else None

    def nbytes(self) -> int:
        """Bytes of storage held."""
        return sum(f.nbytes for f in self.fields.values()) + (0 if self.mass is None else self.mass.nbytes)

    @property
    def requests(self) -> list[Field]:
        """The states of requests."""
        return [f for f in self.fields.values() if f.decl.of_request]

    def begin(self, seats: torch.Tensor) -> None:
        """See `StateStore`."""
        for field in self.requests:
            start = torch.full((self._heads, len(seats), *field.shape), field.decl.init, device=seats.device)
            field.write(slice(None), seats, start)

    def hold(self, seats: int) -> bool:
        """See `StateStore`."""
        if seats <= self.seats or not self.requests:
            return False
        old, self.seats = self.seats, seats
        for field in self.requests:
            data = field.data
            more = data.new_zeros(data.shape[0], seats - old, *data.shape[2:])
            field.data = torch.cat([data, more], 1)
        self.begin(torch.arange(old, seats, device=data.device))
        return True

    def bytes_per_page(self) -> int:
        """Bytes of all states of one page, over all kv heads."""
        return (self.nbytes() - self.bytes_of_requests()) // max(1, self.pages)

    def bytes_of_requests(self) -> int:
        """Bytes of storage that states of requests hold."""
        return sum(f.nbytes for f in self.requests)

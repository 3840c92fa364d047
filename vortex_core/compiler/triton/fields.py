"""How kernels read and write page states: one text template a storage dtype.

The layout is that of `compiler.states`: `[kv_head, page, *stored]`, fp8 as bytes, int4 two a byte along the last dimension;
int3, int2 and bits as planes of bits along it, eight numbers a byte. Packed rows of which there are many in a page lie by
columns (`compiler.columns`). Integers have one fp16 scale a row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from vortex_core.compiler.columns import column_bytes
from vortex_core.compiler.triton.emitter import rounded
from vortex_core.compiler.triton.tile import Axis, Tile, order
from vortex_core.ir.program import SCALED, StateDecl
from vortex_core.ir.types import PLANES, packed_bytes

PER_BYTE = {"int8": 1, "int4": 2, **dict.fromkeys(PLANES, 8)}
"""Numbers that share a byte."""
_TOP = {"int8": 127, "int4": 7, "int3": 7, "int2": 3}


def stored_shape(state: StateDecl, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Concrete stored extents of one page's value."""
    shape = tuple(e.resolve(sizes) for _, e in state.stored)
    if state.dtype not in PER_BYTE:
        return shape
    return (*shape[:-1], packed_bytes(state.dtype, shape[-1])) if shape else (1,)


def _offset(indices: Sequence[Tile], shape: Sequence[int], axes: Sequence[Axis]) -> str:
    """Row-major offset of an element."""
    strides = [math.prod(shape[n + 1 :]) for n in range(len(shape))]
    parts = [
        f"({t.to(axes)}) * {s}" if s != 1 else f"({t.to(axes)})"
        for t, s in zip(indices, strides, strict=True)
    ]
    return " + ".join(parts) or "0"


def state_column(state: StateDecl, sizes: Mapping[str, int]) -> int:
    """Bytes of a column of a state, 0 where its rows lie whole."""
    return column_bytes(state.dtype, [e.resolve(sizes) for _, e in state.stored])


def _packed_offset(
    state: StateDecl, sizes: Mapping[str, int], indices: Sequence[Tile], byte: Tile, axes: Sequence[Axis]
) -> str:
    """Offset of a byte of a packed row; `indices` of the dimensions before the packed one."""
    stored = stored_shape(state, sizes)
    column = state_column(state, sizes)
    if not column:
        return _offset([*indices, byte], stored, axes)
    at = [
        Tile(f"({byte.text}) // {column}", byte.axes),
        indices[-1],
        Tile(f"({byte.text}) % {column}", byte.axes),
    ]
    return _offset([*indices[:-1], *at], (*stored[:-2], stored[-1] // column, stored[-2], column), axes)


def load_text(
    name: str,
    state: StateDecl,
    sizes: Mapping[str, int],
    row: Tile,
    indices: Sequence[Tile],
    mask: str | None,
) -> tuple[str, tuple[Axis, ...]]:
    """Expression that reads a state as fp32.

    Args:
        name: pointer argument (`NAME_ptr`, `NAME_scale_ptr`).
        row: index of the page's row, `kv_head * pages + page`, as a tile.
        indices: one tile a dimension of the state, as stored.
        mask: condition text over the result's axes, made by `mask_text`.
    """
    code, axes = code_text(name, state, sizes, row, indices, mask)
    if state.dtype not in SCALED:
        return (code if state.dtype == "fp32" else f"{code}.to(tl.float32)"), axes
    number = f"{code}.to(tl.float32)" if state.dtype == "int8" else code
    return f"({number} * {_scale(name, state, sizes, row, indices, axes, mask)}.to(tl.float32))", axes


def code_text(
    name: str,
    state: StateDecl,
    sizes: Mapping[str, int],
    row: Tile,
    indices: Sequence[Tile],
    mask: str | None,
) -> tuple[str, tuple[Axis, ...]]:
    """Expression that reads a state without its scale, in whatever type it has. Arguments as of `load_text`."""
    shape = tuple(e.resolve(sizes) for _, e in state.stored)
    stored = stored_shape(state, sizes)
    axes = order([*row.axes, *(a for t in indices for a in t.axes)])
    base = f"{name}_ptr + ({row.to(axes)}) * {math.prod(stored)}"
    guard = "" if mask is None else f", mask={mask}, other=0"
    if PER_BYTE.get(state.dtype, 1) > 1:
        per = PER_BYTE[state.dtype]
        bits, planes = 8 // per, PLANES.get(state.dtype, 1)
        last = indices[-1] if indices else Tile("0")
        codes = []
        for plane in range(planes):
            start = f" + {plane * (stored[-1] // planes)}" if plane else ""
            place = _packed_offset(
                state, sizes, indices[:-1], Tile(f"({last.text}) // {per}{start}", last.axes), axes
            )
            byte = f"tl.load({base} + {place}{guard}).to(tl.int32)"
            code = f"(({byte} >> ((({last.to(axes)}) % {per}) * {bits})) & {2**bits - 1})"
            codes.append(f"{code} * {2**plane}" if plane else code)
        value = f"({' + '.join(codes)}).to(tl.float32)" if planes > 1 else f"{codes[0]}.to(tl.float32)"
        return (f"({value} - 8.0)" if state.dtype == "int4" else f"({value} * 2.0 - {2**planes - 1}.0)"), axes
    text = f"tl.load({base} + {_offset(indices, stored, axes)}{guard})"
    if state.dtype.startswith("fp8"):
        kind = "tl.float8e4nv" if state.dtype == "fp8_e4m3" else "tl.float8e5"
        return f"{text}.to({kind}, bitcast=True)", axes
    assert len(shape) == len(indices)
    return text, axes


def unit_text(
    name: str,
    state: StateDecl,
    sizes: Mapping[str, int],
    row: Tile,
    indices: Sequence[Tile],
    mask: str | None,
    bits: int,
    plane: int = 0,
) -> tuple[str, tuple[Axis, ...]]:
    """Expression that reads packed numbers `bits` bits at a time; the last index counts such units of a plane. Where
    rows lie by columns, `bits` are a column's."""
    stored = stored_shape(state, sizes)
    units = (*stored[:-1], stored[-1] * 8 // bits)
    columns = bool(state_column(state, sizes))
    if columns:
        assert bits == 8 * state_column(state, sizes), (state, bits)
        first = plane * (units[-1] // PLANES.get(state.dtype, 1))
        last = indices[-1] if not first else Tile(f"{first} + {indices[-1].text}", indices[-1].axes)
        indices = [*indices[:-2], last, indices[-2]]
        units = (*units[:-2], units[-1], units[-2])
    axes = order([*row.axes, *(a for t in indices for a in t.axes)])
    pointer = f"{name}_ptr" if bits == 8 else f"{name}_ptr.to(tl.pointer_type(tl.int{bits}))"
    guard = "" if mask is None else f", mask={mask}, other=0"
    start = f" + {plane * (units[-1] // PLANES[state.dtype])}" if plane and not columns else ""
    place = f"({row.to(axes)}) * {math.prod(units)} + {_offset(indices, units, axes)}{start}"
    return f"tl.load({pointer} + {place}{guard})", axes


def flat_bytes(state: StateDecl, sizes: Mapping[str, int], count: int) -> int:
    """Bytes of a row of signs along its last `count` dimensions."""
    return math.prod(stored_shape(state, sizes)[-count:])


def flat_indices(state: StateDecl, sizes: Mapping[str, int], count: int, bit: str) -> list[str]:
    """Indices of the last `count` dimensions of the sign at a bit of a row along all of them. Bits that only fill a byte
    have a last one that is none."""
    *_, width = stored_shape(state, sizes)
    outer = [e.resolve(sizes) for _, e in state.stored[-count:-1]]
    column = state_column(state, sizes) or width
    byte = f"({bit}) // 8"
    part = f"{byte} % {column}"
    if width > column:
        part = f"{byte} // {column * outer[-1]} % {width // column} * {column} + {part}"
    found = [f"{byte} // {column} % {outer[-1]}", f"({part}) * 8 + ({bit}) % 8"]
    inner = width * outer[-1]
    for extent in reversed(outer[:-1]):
        found.insert(0, f"{byte} // {inner} % {extent}")
        inner *= extent
    return found


def flat_text(
    state: StateDecl,
    sizes: Mapping[str, int],
    row: Tile,
    indices: Sequence[Tile],
    unit: Tile,
    mask: str | None,
    bits: int,
) -> tuple[str, tuple[Axis, ...]]:
    """Expression that reads a row of signs `bits` bits at a time, along all dimensions after those of `indices`."""
    stored = stored_shape(state, sizes)
    count = len(stored) - len(indices)
    units = (*stored[: len(indices)], flat_bytes(state, sizes, count) * 8 // bits)
    axes = order([*row.axes, *unit.axes, *(a for t in indices for a in t.axes)])
    pointer = f"{state.name}_ptr" if bits == 8 else f"{state.name}_ptr.to(tl.pointer_type(tl.int{bits}))"
    guard = "" if mask is None else f", mask={mask}, other=0"
    place = f"({row.to(axes)}) * {math.prod(units)} + {_offset([*indices, unit], units, axes)}"
    return f"tl.load({pointer} + {place}{guard})", axes


def scale_text(
    name: str,
    state: StateDecl,
    sizes: Mapping[str, int],
    row: Tile,
    indices: Sequence[Tile],
    mask: str | None,
) -> tuple[str, tuple[Axis, ...]]:
    """Expression that reads the scale of a row as fp32; `indices` and `mask` without the last dimension."""
    axes = order([*row.axes, *(a for t in indices for a in t.axes)])
    return f"{_scale(name, state, sizes, row, [*indices, Tile('0')], axes, mask)}.to(tl.float32)", axes


def _scale(
    name: str,
    state: StateDecl,
    sizes: Mapping[str, int],
    row: Tile,
    indices: Sequence[Tile],
    axes: Sequence[Axis],
    mask: str | None,
) -> str:
    rows = tuple(e.resolve(sizes) for _, e in state.stored)[:-1]
    guard = "" if mask is None else f", mask={mask}, other=0"
    return f"tl.load({name}_scale_ptr + ({row.to(axes)}) * {math.prod(rows)} + {_offset(indices[:-1], rows, axes)}{guard})"


def store_lines(
    name: str,
    state: StateDecl,
    sizes: Mapping[str, int],
    row: Tile,
    indices: Sequence[Tile],
    value: Tile,
    mask: str | None,
) -> list[str]:
    """Statements that write a float or fp8 state. Scaled and packed dtypes need whole rows: see `store_row_lines`."""
    stored = stored_shape(state, sizes)
    axes = order([*row.axes, *(a for t in indices for a in t.axes)])
    pointer = f"{name}_ptr + ({row.to(axes)}) * {math.prod(stored)} + {_offset(indices, stored, axes)}"
    text = rounded(f"({value.to(axes)})", state.dtype)
    if state.dtype.startswith("fp8"):
        text = f"{text}.to(tl.uint8, bitcast=True)"
    guard = "" if mask is None else f", mask={mask}"
    return [f"tl.store({pointer}, {text}{guard})"]


def store_row_lines(
    name: str,
    state: StateDecl,
    sizes: Mapping[str, int],
    row: str,
    others: Sequence[Tile],
    groups: Sequence[Tile],
    lane: Axis,
    mask: str | None,
) -> list[str]:
    """Statements that write one page's state of integers or bits.

    Args:
        row: text of the page's row (a scalar).
        others: indices of all dimensions but the last.
        groups: the value at packed position `p` and sub-position `n` along the last dimension, for each `n`
            (one entry for int8), a tile over `others` and `lane`; or one entry, the value along all of that dimension,
            whose padding counts as zero, as negative for bits.
        lane: axis over packed positions.
        mask: condition on real lanes of the tile that is stored.
    """
    shape = tuple(e.resolve(sizes) for _, e in state.stored)
    stored = stored_shape(state, sizes)
    axes = groups[0].axes
    (axis,) = (a for a in axes if all(a not in t.axes for t in others))
    at = axes.index(axis)
    outer = tuple(a for a in axes if a != axis)
    whole = PER_BYTE[state.dtype] if axis != lane else 0
    lines: list[str] = []
    guard = "" if mask is None else f", mask={mask}"
    stored_axes = tuple(lane if a == axis else a for a in axes)
    place = _packed_offset(state, sizes, others, Tile(lane.index, (lane,)), stored_axes)
    pointer = f"{name}_ptr + ({row}) * {math.prod(stored)} + {place}"

    def packed_bytes(codes: Sequence[str], bits: int, zero: int) -> str:
        if whole:
            return _together(codes[0], axes, at, whole, bits, zero)
        return " + ".join(f"{code} * {1 << bits * n}" for n, code in enumerate(codes))

    if state.dtype == "bits":
        packed = packed_bytes([f"(({g.text}) >= 0).to(tl.int32)" for g in groups], 1, 0)
        return [f"tl.store({pointer}, ({packed}).to(tl.uint8){guard})"]
    top = _TOP[state.dtype]
    biggest = f"tl.abs({groups[0].text})"
    for g in groups[1:]:
        biggest = f"tl.maximum({biggest}, tl.abs({g.text}))"
    lines.append(f"{name}_big = tl.max({biggest}, axis={at})")
    lines.append(f"{name}_s = tl.minimum({name}_big / {top}.0, 6.0e4).to(tl.float16)")
    wide = Tile(f"{name}_w", outer)
    lines.append(f"{name}_w = {name}_s.to(tl.float32)")
    steps: list[str] = []
    for g in groups:
        ratio = f"tl.where({wide.to(axes)} > 0, {g.text} / tl.where({wide.to(axes)} > 0, {wide.to(axes)}, 1.0), 0.0)"
        # Round half to even, as torch does: floor(x + 0.5), less one on odd ties.
        lines.append(f"{name}_x = {ratio}")
        if state.dtype in PLANES:
            steps.append(f"{name}_q{len(steps)}")
            code = f"tl.floor(({name}_x + {top + 1}.0) * 0.5)"
            lines.append(f"{steps[-1]} = tl.minimum(tl.maximum({code}, 0.0), {top}.0).to(tl.int32)")
            continue
        lines.append(f"{name}_r = tl.floor({name}_x + 0.5)")
        lines.append(
            f"{name}_r = tl.where(({name}_r - {name}_x == 0.5) & ({name}_r - 2.0 * tl.floor({name}_r * 0.5) == 1.0), {name}_r - 1.0, {name}_r)"
        )
        steps.append(f"{name}_q{len(steps)}")
        lines.append(f"{steps[-1]} = tl.minimum(tl.maximum({name}_r, -{top}.0), {top}.0).to(tl.int32)")
    if state.dtype == "int8":
        lines.append(f"tl.store({pointer}, {steps[0]}.to(tl.int8){guard})")
    elif state.dtype in PLANES:
        width = stored[-1] // PLANES[state.dtype] * (stored[-2] if state_column(state, sizes) else 1)
        for plane in range(PLANES[state.dtype]):
            zero = (top + 1) // 2 >> plane & 1
            packed = packed_bytes([f"(({s} >> {plane}) & 1)" for s in steps], 1, zero)
            lines.append(f"tl.store({pointer} + {plane * width}, ({packed}).to(tl.uint8){guard})")
    else:
        packed = packed_bytes([f"({s} + 8)" for s in steps], 4, 8)
        lines.append(f"tl.store({pointer}, ({packed}).to(tl.uint8){guard})")
    scale_mask = " & ".join(f"({Tile(f'({a.mask})', (a,)).to(outer)})" for a in outer if a.mask)
    offset = _offset(others, shape[:-1], outer)
    lines.append(
        f"tl.store({name}_scale_ptr + ({row}) * {math.prod(shape[:-1])} + {offset}, {name}_s{f', mask={scale_mask}' if scale_mask else ''})"
    )
    return lines


def _together(text: str, axes: Sequence[Axis], at: int, per: int, bits: int, zero: int) -> str:
    """Neighbours along axis `at`, `per` of them, as one byte; a row that is shorter than a byte is filled up with `zero`."""
    there = min(per, axes[at].size)
    shape = [*(a.size for a in axes[:at]), axes[at].size // there, there, *(a.size for a in axes[at + 1 :])]
    place = ", ".join(":" if n == at + 1 else "None" for n in range(len(shape)))
    shifts = f"({bits} * tl.arange(0, {there}))[{place}]"
    rest = sum(zero << bits * n for n in range(there, per))
    found = f"tl.sum(tl.reshape({text}, {shape}) << {shifts}, axis={at + 1})"
    return f"({found} + {rest})" if rest else found

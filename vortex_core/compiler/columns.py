"""How packed numbers of many rows a page lie in memory: by columns.

A state of a few bits a channel and a row for every token has rows of odd lengths: 44 bytes, 6, 8. Loads of whole rows
are then narrow, and of lanes that share a row none has its numbers where a matrix product wants them. So the first few
bytes of every row lie together, then the next few: `[..., column, row, bytes of a column]`. Neighbouring lanes read
neighbouring rows, sixteen bytes at a time, whatever the length of a row.
"""

from __future__ import annotations

from collections.abc import Sequence

from vortex_core.ir.types import PLANES, packed_bytes

LEAST_ROWS = 8
PACKED = ("int4", *PLANES)


def column_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a column: 4, 2 or 1, whatever divides a row or a plane of it; 0 where rows lie whole.

    Args:
        shape: of a page's value as stored, rows before the packed dimension.
    """
    if dtype not in PACKED or len(shape) < 2:
        return 0
    rows = shape[-2]
    if rows < LEAST_ROWS or rows & (rows - 1):
        return 0
    width = packed_bytes(dtype, shape[-1]) // PLANES.get(dtype, 1)
    sizes = (4, 2, 1) if dtype in PLANES else (4, 2)  # two numbers a row are too few for a matrix product
    return next((size for size in sizes if width % size == 0), 0)

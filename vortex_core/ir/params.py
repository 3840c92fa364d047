"""Learned parameters: values supplied with a flow, identified by their content."""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vortex_core.ir import mistakes
from vortex_core.ir.types import PARAM_AXES, Dims, Extent, check_dim_name, make_dims

MAX_VALUES = 1 << 22
MAX_PARAMS = 16


@dataclass(frozen=True)
class Values:
    """An array of fp32 numbers.

    Attributes:
        shape: sizes, outermost first.
        data: fp32, little endian, row-major.
    """

    shape: tuple[int, ...]
    data: bytes = field(repr=False)

    @cached_property
    def numbers(self) -> array[float]:
        """The values in row-major order."""
        found = array("f")
        found.frombytes(self.data)
        if sys.byteorder == "big":
            found.byteswap()
        return found

    @classmethod
    def of(cls, name: str, nested: object) -> Values:
        """From nested lists of numbers.

        Raises:
            VortexError: `VF065` for ragged lists, values that are no finite fp32 numbers, or too many.
        """
        shape: list[int] = []
        level: list[Any] = [nested]
        while level and isinstance(level[0], list | tuple):
            sizes = {len(item) if isinstance(item, list | tuple) else -1 for item in level}
            if len(sizes) != 1 or 0 in sizes or len(shape) == 6:
                raise mistakes.BAD_PARAM.error(name=name, why="its lists are ragged, empty or too deep")
            shape.append(sizes.pop())
            if len(level) * shape[-1] > MAX_VALUES:
                raise mistakes.BAD_PARAM.error(name=name, why=f"more than {MAX_VALUES} values")
            level = [value for item in level for value in item]
        try:
            found = array("f", level)
        except (TypeError, OverflowError) as error:
            raise mistakes.BAD_PARAM.error(name=name, why=f"a value is not a number ({error})") from None
        if sys.byteorder == "big":
            found.byteswap()
        values = cls(tuple(shape), found.tobytes())
        values.check(name)
        return values

    def check(self, name: str) -> None:
        """Raises `VF065` unless sizes and bytes agree and every number is finite."""
        if not 0 < math.prod(self.shape) <= MAX_VALUES or len(self.data) != 4 * math.prod(self.shape):
            raise mistakes.BAD_PARAM.error(name=name, why=f"{len(self.data)} bytes for shape {self.shape}")
        if not all(map(math.isfinite, self.numbers)):
            raise mistakes.BAD_PARAM.error(name=name, why="a value is infinite or not a number")

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"shape": list(self.shape), "data": base64.b64encode(self.data).decode()}

    @classmethod
    def from_json(cls, name: str, data: dict[str, Any]) -> Values:
        """Inverse of `to_json`, checked."""
        try:
            shape = tuple(data["shape"])
            if len(shape) > 6 or any(type(n) is not int or not 0 < n <= MAX_VALUES for n in shape):
                raise ValueError("shape")
            values = cls(shape, base64.b64decode(data["data"], validate=True))
        except (binascii.Error, KeyError, TypeError, ValueError) as error:
            raise mistakes.BAD_IR.error(why=f"parameter {name!r}: {error}") from error
        values.check(name)
        return values


@dataclass(frozen=True)
class ParamDecl:
    """A learned parameter of a program.

    Attributes:
        name: as in `ops.param(name)`.
        axes: `(name, extent)` for every axis of the values, in the order written; `layer` and `kv_head` are
            reserved and pick one slice for each layer and kv head.
        values: the numbers.
    """

    name: str
    axes: tuple[tuple[str, Extent], ...]
    values: Values

    @property
    def dims(self) -> Dims:
        """Dimensions of the value a flow sees."""
        return make_dims([(n, e) for n, e in self.axes if n not in PARAM_AXES])

    @cached_property
    def digest(self) -> str:
        """24 hex digits of axes and values."""
        head = repr(([(n, str(e)) for n, e in self.axes], self.values.shape))
        return hashlib.sha256(head.encode() + self.values.data).hexdigest()[:24]

    def check(self) -> None:
        """Raises `VF015` or `VF065` unless names, sizes and values fit together."""
        names = [n for n, _ in self.axes]
        for n in (self.name, *names):
            check_dim_name(n)
        if len(set(names)) != len(names) or {"page", "token"} & set(names):
            raise mistakes.BAD_PARAM.error(name=self.name, why=f"axes {', '.join(names)}")
        if len(names) != len(self.values.shape):
            raise mistakes.BAD_PARAM.error(
                name=self.name, why=f"axes ({', '.join(names)}) for values of shape {self.values.shape}"
            )
        for (n, extent), size in zip(self.axes, self.values.shape, strict=True):
            if extent.symbol == "P" or (not extent.symbol and extent.factor != size):
                raise mistakes.BAD_PARAM.error(name=self.name, why=f"axis {n}={extent}, but {size} values")

    def check_model(self, sizes: dict[str, int], layers: int, kv_heads: int) -> None:
        """Raises `VF065` unless the values are those of a model with these shapes."""
        wanted = {"layer": layers, "kv_head": kv_heads}
        for (n, extent), size in zip(self.axes, self.values.shape, strict=True):
            want = wanted.get(n) or extent.resolve(sizes)
            if want != size:
                raise mistakes.BAD_PARAM.error(
                    name=self.name, why=f"{size} values along {n}, this model has {want}"
                )

    def to_json(self, values: bool = True) -> dict[str, Any]:
        """Plain data; without `values`, only their shape."""
        numbers = self.values.to_json() if values else {"shape": list(self.values.shape)}
        return {"name": self.name, "axes": [[n, str(e)] for n, e in self.axes], **numbers}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ParamDecl:
        """Inverse of `to_json`, checked."""
        name = str(data["name"])
        axes: Sequence[Any] = data["axes"]
        found = cls(name, tuple((str(n), Extent.parse(e)) for n, e in axes), Values.from_json(name, data))
        found.check()
        return found

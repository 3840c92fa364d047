"""What statements of PTX compute, for all threads of a block at once; memory and order are `ptx_machine`'s."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Lanes = np.ndarray[Any, Any]
UNSIGNED = {1: np.bool_, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
WIDTHS = {"p": 1, "rs": 16, "r": 32, "rd": 64}
BASE = 1 << 20  # address of the first byte of global memory


class UnknownStatementError(Exception):
    """The machine does not know a statement, or threads part ways."""


def floats(bits: Lanes) -> Lanes:
    """The fp32 numbers of some bits."""
    return bits.view(np.float32)


def bits_of(numbers: Lanes) -> Lanes:
    """The bits of fp32 numbers."""
    return np.ascontiguousarray(numbers, dtype=np.float32).view(np.uint32)


def from_bf16(bits: Lanes) -> Lanes:
    """bf16 numbers as fp32."""
    return floats(bits.astype(np.uint32) << np.uint32(16))


def to_bf16(numbers: Lanes) -> Lanes:
    """The bits of numbers rounded to bf16, half to even."""
    wide = bits_of(numbers).astype(np.uint64)
    found = ((wide + np.uint64(0x7FFF) + ((wide >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)).astype(
        np.uint16
    )
    return np.where(np.isnan(numbers), np.uint16(0x7FFF), found)


def halves(word: Lanes) -> tuple[Lanes, Lanes]:
    return (word & np.uint32(0xFFFF)).astype(np.uint16), (word >> np.uint32(16)).astype(np.uint16)


def word(low: Lanes, high: Lanes) -> Lanes:
    return low.astype(np.uint32) | (high.astype(np.uint32) << np.uint32(16))


def listed(text: str) -> list[str]:
    return [part.strip() for part in text.strip("{} ").split(",")]


class Numbers:
    """Registers of all threads, and the statements on them."""

    threads: int
    lane: Lanes
    warp: Lanes
    registers: dict[str, Lanes]
    special: dict[str, Lanes]

    # ---- registers -----------------------------------------------------------------------------------------

    @staticmethod
    def width(name: str) -> int:
        """Bits of a register; those that inline assembly declares have 32."""
        found = re.match(r"%([a-z]+)", name)
        return WIDTHS[found.group(1)] if found else 32

    def get(self, name: str, width: int = 32) -> Lanes:
        """An operand as unsigned numbers of so many bits."""
        kind = UNSIGNED[width]
        if name in self.special:
            return self.special[name].astype(kind)
        if name in self.registers or name.startswith("%"):
            return self.registers.get(name, np.zeros(self.threads, kind)).astype(kind)
        if name == "global_smem":
            return np.zeros(self.threads, kind)
        value = int(name[2:], 16) if name.startswith("0f") else int(name.rstrip("U"), 0)
        return np.full(self.threads, value & ((1 << width) - 1), kind)

    def put(self, name: str, value: Lanes, mask: Lanes | None) -> None:
        """Write a register where `mask` says so."""
        if name == "_":
            return
        value = value.astype(UNSIGNED[self.width(name)]) if name.startswith("%") else value
        if mask is not None and not mask.all():
            value = np.where(mask, value, self.registers.get(name, np.zeros_like(value)))
        self.registers[name] = value.copy()

    # ---- moves ---------------------------------------------------------------------------------------------

    def do_mov(self, o: list[str], a: list[str], mask: Lanes | None, line: str) -> None:
        if a[0].startswith("{"):
            names = listed(a[0])
            width = self.width(a[1]) // len(names)
            value = self.get(a[1], self.width(a[1])).astype(np.uint64)
            for n, name in enumerate(names):
                self.put(name, ((value >> np.uint64(width * n)) & np.uint64((1 << width) - 1)), mask)
        elif a[1].startswith("{"):
            names = listed(a[1])
            width = self.width(a[0]) // len(names)
            parts = [
                self.get(s, width).astype(np.uint64) << np.uint64(width * n) for n, s in enumerate(names)
            ]
            self.put(a[0], np.bitwise_or.reduce(parts), mask)
        else:
            self.put(a[0], self.get(a[1], self.width(a[0])), mask)

    def do_selp(self, o: list[str], a: list[str], mask: Lanes | None, line: str) -> None:
        width = self.width(a[0])
        self.put(a[0], np.where(self.get(a[3], 1), self.get(a[1], width), self.get(a[2], width)), mask)

    def do_prmt(self, o: list[str], a: list[str], mask: Lanes | None, line: str) -> None:
        low, high, which = (self.get(k).astype(np.uint64) for k in a[1:])
        both, found = low | (high << np.uint64(32)), np.zeros(self.threads, np.uint64)
        for n in range(4):
            chosen = (which >> np.uint64(4 * n)) & np.uint64(15)
            byte = (both >> ((chosen & np.uint64(7)) * np.uint64(8))) & np.uint64(255)
            sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
            found |= np.where(chosen & np.uint64(8), sign, byte) << np.uint64(8 * n)
        self.put(a[0], found, mask)

    def do_shfl(self, o: list[str], a: list[str], mask: Lanes | None, line: str) -> None:
        by = self.get(a[2]).astype(np.int64)
        source = {"bfly": self.lane ^ by, "idx": by & 31}.get(o[2])
        if source is None:
            raise UnknownStatementError(line)
        self.put(a[0].split("|")[0], self.get(a[1])[self.warp * 32 + source], mask)

    def do_redux(self, o: list[str], a: list[str], mask: Lanes | None, line: str) -> None:
        if o[2:] != ["add", "s32"]:
            raise UnknownStatementError(line)
        sums = self.get(a[1]).reshape(-1, 32).sum(1, dtype=np.uint32)
        self.put(a[0], np.repeat(sums, 32), mask)

    # ---- numbers -------------------------------------------------------------------------------------------

    def compute(self, kind: str, a: list[str], mask: Lanes | None, what: Callable[..., Lanes]) -> None:
        """Apply `what` to all operands but the first, as numbers of a kind."""
        if kind == "pred":
            self.put(a[0], what(*(self.get(k, 1) for k in a[1:])), mask)
        elif kind == "f32":
            self.put(a[0], bits_of(what(*(floats(self.get(k)) for k in a[1:]))), mask)
        elif kind == "bf16":
            wide = (from_bf16(self.get(k, 16)).astype(np.float64) for k in a[1:])
            self.put(a[0], to_bf16(what(*wide).astype(np.float32)), mask)
        elif kind.endswith("x2"):
            pairs = [halves(self.get(k)) for k in a[1:]]
            sides = [[pair[n] for pair in pairs] for n in (0, 1)]
            if kind == "bf16x2":
                done = [what(*(from_bf16(x).astype(np.float64) for x in side)) for side in sides]
                self.put(a[0], word(*(to_bf16(x.astype(np.float32)) for x in done)), mask)
            elif kind in ("s16x2", "u16x2"):
                typed = [[x.view(np.int16) if kind[0] == "s" else x for x in side] for side in sides]
                self.put(a[0], word(*(what(*side).view(np.uint16) for side in typed)), mask)
            else:
                raise UnknownStatementError(kind)
        else:
            width = int(kind[1:])
            values = [self.get(k, width) for k in a[1:]]
            if kind[0] == "s":
                values = [x.view(SIGNED[width]) for x in values]
            self.put(a[0], what(*values).astype(values[0].dtype).view(UNSIGNED[width]), mask)

    def do_fma(self, o: list[str], a: list[str], mask: Lanes | None, line: str) -> None:
        def fused(x: Lanes, y: Lanes, z: Lanes) -> Lanes:
            return x.astype(np.float64) * y.astype(np.float64) + z.astype(np.float64)

        self.compute(o[-1], a, mask, fused)

    def do_mul(self, o: list[str], a: list[str], mask: Lanes | None, line: str) -> None:
        self._multiplied(o, a, mask, line, None)

    def do_mad(self, o: list[str], a: list[str], mask: Lanes | None, line: str) -> None:
        self._multiplied(o, a[:3], mask, line, a[3])

    def _multiplied(
        self, o: list[str], a: list[str], mask: Lanes | None, line: str, plus: str | None
    ) -> None:
        if o[1] == "wide":
            width = int(o[-1][1:])
            x, y = (self.get(k, width) for k in a[1:])
            signs = (x.view(SIGNED[width]).astype(np.int64), y.view(SIGNED[width]).astype(np.int64))
            found = signs[0] * signs[1] if o[-1][0] == "s" else x.astype(np.int64) * y.astype(np.int64)
            found = found + (0 if plus is None else self.get(plus, 2 * width).astype(np.int64))
            self.put(a[0], found.view(np.uint64), mask)
        elif o[1] == "hi" or (plus is not None and o[1] != "lo"):
            raise UnknownStatementError(line)
        elif plus is None:
            self.compute(o[-1], a, mask, lambda x, y: x * y)
        else:
            self.compute(o[-1], [*a, plus], mask, lambda x, y, z: x * y + z)

    def _extreme(self, o: list[str], a: list[str], mask: Lanes | None, exact: Any, other: Any) -> None:
        self.compute(o[-1], a, mask, exact if o[-1] != "f32" or "NaN" in o else other)

    def do_min(self, o: list[str], a: list[str], mask: Lanes | None, line: str) -> None:
        self._extreme(o, a, mask, np.minimum, np.fmin)

    def do_max(self, o: list[str], a: list[str], mask: Lanes | None, line: str) -> None:
        self._extreme(o, a, mask, np.maximum, np.fmax)

    def do_shl(self, o: list[str], a: list[str], mask: Lanes | None, line: str) -> None:
        self._shifted(o, a, mask, left=True)

    def do_shr(self, o: list[str], a: list[str], mask: Lanes | None, line: str) -> None:
        self._shifted(o, a, mask, left=False)

    def _shifted(self, o: list[str], a: list[str], mask: Lanes | None, *, left: bool) -> None:
        width = int(o[-1][1:])
        value, by = self.get(a[1], width), self.get(a[2]).astype(np.int64)
        least = np.minimum(by, width - 1).astype(np.uint64)
        if o[-1][0] == "s":
            found = (value.view(SIGNED[width]).astype(np.int64) >> least.astype(np.int64)).view(np.uint64)
        else:
            wide = value.astype(np.uint64)
            found = np.where(by >= width, np.uint64(0), wide << least if left else wide >> least)
        self.put(a[0], found.astype(UNSIGNED[width]), mask)

    def do_bfe(self, o: list[str], a: list[str], mask: Lanes | None, line: str) -> None:
        value, at, count = (self.get(k).astype(np.uint64) for k in a[1:])
        found = (value >> at) & ((np.uint64(1) << count) - np.uint64(1))
        if o[-1] == "s32":
            top = (found >> (count - np.uint64(1))) & np.uint64(1)
            found = np.where(top == 1, found | ~((np.uint64(1) << count) - np.uint64(1)), found)
        self.put(a[0], found, mask)

    def do_bfi(self, o: list[str], a: list[str], mask: Lanes | None, line: str) -> None:
        new, old, at, count = (self.get(k).astype(np.uint64) for k in a[1:])
        where = ((np.uint64(1) << count) - np.uint64(1)) << at
        self.put(a[0], (old & ~where) | ((new << at) & where), mask)

    def do_lop3(self, o: list[str], a: list[str], mask: Lanes | None, line: str) -> None:
        operands, table = [self.get(k) for k in a[1:4]], int(a[4], 0)
        found = np.zeros(self.threads, np.uint32)
        for n in range(8):
            if table >> n & 1:
                x, y, z = (v if n >> (2 - at) & 1 else ~v for at, v in enumerate(operands))
                found |= x & y & z
        self.put(a[0], found, mask)

    def do_setp(self, o: list[str], a: list[str], mask: Lanes | None, line: str) -> None:
        kind, unordered = o[-1], np.zeros(self.threads, bool)
        if kind == "bf16x2" and len(a) == 3 and o[1] in ("lt", "le", "gt", "ge", "eq"):
            ways = {
                "lt": np.less,
                "le": np.less_equal,
                "gt": np.greater,
                "ge": np.greater_equal,
                "eq": np.equal,
            }
            pairs = zip(*(halves(self.get(k)) for k in a[1:3]), strict=True)
            for name, (x, y) in zip(a[0].split("|"), pairs, strict=True):
                self.put(name, ways[o[1]](from_bf16(x), from_bf16(y)), mask)
            return
        if kind in ("f32", "f16", "bf16"):
            x, y = (self._numbers(kind, k) for k in a[1:3])
            unordered = np.isnan(x) | np.isnan(y)
        else:
            x, y = (self.get(k, int(kind[1:])) for k in a[1:3])
            x, y = (v.view(SIGNED[int(kind[1:])]) if kind[0] == "s" else v for v in (x, y))
        names = {"lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal"}
        names |= {"ne": "not_equal", "lo": "less", "ls": "less_equal", "hi": "greater", "hs": "greater_equal"}
        if o[1] in ("nan", "num"):
            compared = unordered if o[1] == "nan" else ~unordered
        else:
            compared = getattr(np, names[o[1][:2]])(x, y)
        if "f" in kind and o[1] not in ("nan", "num"):
            compared = compared | unordered if o[1].endswith("u") else compared & ~unordered
        if len(a) > 3:
            more = self.get(a[3], 1)
            compared = compared & more if o[2] == "and" else compared | more
        self.put(a[0], compared, mask)

    def do_cvt(self, o: list[str], a: list[str], mask: Lanes | None, line: str) -> None:
        if o[1:] == ["rna", "tf32", "f32"]:  # 10 bits after the first, half away from zero
            self.put(a[0], (self.get(a[1]) + np.uint32(0x1000)) & np.uint32(0xFFFFE000), mask)
            return
        kinds = [t for t in o[1:] if re.match(r"^(b?f|s|u)\d+(x2)?$", t) or t.startswith("e")]
        if len(kinds) < 2:
            raise UnknownStatementError(line)
        to, source = kinds[-2:]
        if to == "bf16x2":  # the upper half first
            high, low = (to_bf16(floats(self.get(k))) for k in a[1:3])
            self.put(a[0], word(low, high), mask)
        elif to == "f16x2" and source == "f32":
            high, low = (floats(self.get(k)).astype(np.float16).view(np.uint16) for k in a[1:3])
            self.put(a[0], word(low, high), mask)
        elif to in ("e4m3x2", "e5m2x2"):  # the upper half first; beyond the largest number is that number
            kind = torch.float8_e4m3fn if to == "e4m3x2" else torch.float8_e5m2
            top = torch.finfo(kind).max
            wide = [torch.from_numpy(floats(self.get(k)).copy()).clamp(-top, top) for k in (a[2], a[1])]
            low, high = (x.to(kind).view(torch.uint8).numpy().astype(np.uint16) for x in wide)
            self.put(a[0], low | high << np.uint16(8), mask)
        elif source in ("e4m3x2", "e5m2x2"):
            kind = torch.float8_e4m3fn if source == "e4m3x2" else torch.float8_e5m2
            pair = self.get(a[1], 16)
            two = np.stack([pair & np.uint16(255), pair >> np.uint16(8)], 1).astype(np.uint8)
            half = torch.from_numpy(two).view(kind).to(torch.float16).numpy().view(np.uint16)
            self.put(a[0], word(half[:, 0], half[:, 1]), mask)
        else:
            self.put(a[0], self._converted(self._numbers(source, a[1]), to, o), mask)

    def _numbers(self, kind: str, name: str) -> Lanes:
        width = int(re.sub(r"\D", "", kind.removeprefix("b")))
        value = self.get(name, max(16, width))
        if kind == "f32":
            return floats(value).astype(np.float64)
        if kind == "f16":
            return value.view(np.float16).astype(np.float64)
        if kind == "bf16":
            return from_bf16(value).astype(np.float64)
        value = value.astype(UNSIGNED[width])
        return value.view(SIGNED[width]) if kind[0] == "s" else value

    @staticmethod
    def _converted(value: Lanes, to: str, o: list[str]) -> Lanes:
        ways = {"rmi": np.floor, "rpi": np.ceil, "rni": np.rint, "rzi": np.trunc}
        value = next((ways[k](value) for k in o if k in ways), value)
        if to == "f32":
            return bits_of(value)
        if to == "bf16":
            return to_bf16(value.astype(np.float32))
        if to == "f16":
            return value.astype(np.float16).view(np.uint16)
        return (
            value.astype(np.int64)
            .astype((SIGNED if to[0] == "s" else UNSIGNED)[int(to[1:])])
            .astype(np.int64)
        )

    def do_mma(self, o: list[str], a: list[str], mask: Lanes | None, line: str) -> None:
        shapes = {"m16n8k16": ("bf16", 2), "m16n8k32": ("s8", 4), "m16n8k8": ("tf32", 1)}
        kind, per = next((shapes[k] for k in o if k in shapes), ("", 0))  # numbers of a register
        if not kind or o.count(kind) != 2:
            raise UnknownStatementError(line)
        results, lefts, rights, sums = (listed(k) for k in a)
        warps, lane = self.threads // 32, np.arange(32)
        group, thread = lane // 4, lane % 4
        left, right = np.zeros((warps, 16, 8 * per)), np.zeros((warps, 8 * per, 8))
        total = np.zeros((warps, 16, 8))

        def parts(name: str) -> list[Lanes]:
            found = self.get(name).reshape(warps, 32)
            if kind == "bf16":
                return [from_bf16(half) for half in halves(found)]
            if kind == "tf32":
                return [floats(found & np.uint32(0xFFFFE000))]
            return [(found >> np.uint32(8 * n)).astype(np.uint8).view(np.int8) for n in range(4)]

        for n, name in enumerate(lefts):
            for at, number in enumerate(parts(name)):
                left[:, group + 8 * (n & 1), thread * per + at + 4 * per * (n >> 1)] = number
        for n, name in enumerate(rights):
            for at, number in enumerate(parts(name)):
                right[:, thread * per + at + 4 * per * n, group] = number
        for n, name in enumerate(sums):
            place = (slice(None), group + 8 * (n >> 1), thread * 2 + (n & 1))
            bits = self.get(name)
            total[place] = (bits.view(np.int32) if kind == "s8" else floats(bits)).reshape(warps, 32)
        found = left @ right + total
        for n, name in enumerate(results):
            taken = found[:, group + 8 * (n >> 1), thread * 2 + (n & 1)].reshape(-1)
            whole = taken.astype(np.int32).view(np.uint32) if kind == "s8" else None
            bits = bits_of(taken.astype(np.float32)) if whole is None else whole
            self.put(name, bits, None)


def _plain(what: Callable[..., Lanes]) -> Callable[..., None]:
    def do(self: Numbers, o: list[str], a: list[str], mask: Lanes | None, line: str) -> None:
        self.compute(o[-1], a, mask, what)

    return do


for _name, _what in {
    "add": lambda x, y: x + y, "sub": lambda x, y: x - y, "div": lambda x, y: x / y, "neg": lambda x: -x,
    "and": lambda x, y: x & y, "or": lambda x, y: x | y, "xor": lambda x, y: x ^ y, "not": lambda x: ~x,
    "abs": np.abs, "ex2": np.exp2, "lg2": np.log2, "sqrt": np.sqrt, "rcp": lambda x: 1 / x,
}.items():  # fmt: skip
    setattr(Numbers, f"do_{_name}", _plain(_what))

"""A machine that runs the PTX of Triton's kernels on a CPU: one block, all its threads a statement at a time.

It knows the statements that generated scoring kernels have, warp-level matrix products among them, and stops at others.
Threads run in step, so it shows what a compiler made of a kernel and not what a race makes of it; but where a thread
reads or overwrites shared memory that one of another warp wrote or read since the last barrier, it says so (`hazards`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.ptx_numbers import (
    BASE,
    SIGNED,
    UNSIGNED,
    Lanes,
    Numbers,
    UnknownStatementError,
    halves,
    listed,
    word,
)


class Machine(Numbers):
    """One kernel.

    Args:
        ptx: its text.
        threads: of a block.
        shared: bytes of shared memory.
        memory: global memory, whose first byte has the address `BASE`; written in place.
    """

    def __init__(self, ptx: str, threads: int, shared: int, memory: Lanes) -> None:
        self.threads, self.memory = threads, memory
        self.shared = np.zeros(shared + 1024, np.uint8)
        self.lane, self.warp = np.arange(threads) % 32, np.arange(threads) // 32
        self.hazards: Counter[str] = Counter()
        self.code: list[tuple[str | None, bool, list[str], list[str], str]] = []
        self.labels: dict[str, int] = {}
        body = re.sub(r"//[^\n]*", "", ptx)
        body = body[body.index(".entry") :]
        self.params = re.findall(r"\.param [^\n]*?(\w+_param_\d+)", body[: body.index("{")])
        for raw in re.split(r"[;\n]", body[body.index("{") + 1 :]):
            line = raw.strip()
            while (label := re.match(r"^(\$\w+):\s*(.*)$", line)) is not None:
                self.labels[label.group(1)] = len(self.code)
                line = label.group(2)
            if line.startswith(".section"):
                break
            if not line or line[0] in ".{})":
                continue
            found = re.match(r"^(?:@(!?)(%p\d+)\s+)?([a-z][\w.:]*)\s*(.*)$", line)
            if found is None:
                raise UnknownStatementError(line)
            inverted, predicate, operation, arguments = found.groups()
            parts = re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,])+", arguments)
            self.code.append(
                (predicate, inverted == "!", operation.split("."), [p.strip() for p in parts], line)
            )

    def run(self, arguments: Sequence[int], block: tuple[int, int]) -> int:
        """Run one block; how many statements that took."""
        self.registers: dict[str, Lanes] = {}
        zero = np.zeros(self.threads, np.uint32)
        self.special = {
            "%tid.x": np.arange(self.threads, dtype=np.uint32),
            "%laneid": self.lane.astype(np.uint32),
            "%ctaid.x": zero + np.uint32(block[0]),
            "%ctaid.y": zero + np.uint32(block[1]),
            "%ctaid.z": zero,
        }
        self.arguments = dict(zip(self.params, arguments, strict=True))
        size = len(self.shared)
        self.epoch = 1  # barriers so far, and one
        self.written, self.writer = np.zeros(size, np.int64), np.full(size, -1)
        self.read, self.readers = np.zeros(size, np.int64), np.zeros(size, np.int64)
        at = steps = 0
        while at < len(self.code):
            predicate, inverted, operation, arguments_, line = self.code[at]
            at, steps = at + 1, steps + 1
            mask = None
            if predicate is not None:
                mask = self.registers.get(predicate, np.zeros(self.threads, bool)) ^ inverted
            whole = mask is None or bool(mask.all())
            if operation[0] in ("bra", "ret", "exit"):
                if not whole and mask is not None and mask.any():
                    raise UnknownStatementError(f"threads part ways: {line}")
                if whole and operation[0] != "bra":
                    break
                at = self.labels[arguments_[0]] if whole else at
                continue
            handler = getattr(self, f"do_{operation[0]}", None)
            if handler is None:
                raise UnknownStatementError(line)
            with np.errstate(all="ignore"):
                handler(operation, arguments_, mask, line)
        return steps

    # ---- memory --------------------------------------------------------------------------------------------

    def address(self, text: str, shared: bool) -> Lanes:
        """Indices into shared or global memory."""
        found = re.match(r"^\[\s*([%\w]+)\s*(?:\+\s*(-?\d+))?\s*\]$", text)
        if found is None:
            raise UnknownStatementError(text)
        start = self.get(found.group(1), 32 if shared else 64).astype(np.int64) - (0 if shared else BASE)
        return start + int(found.group(2) or 0)

    def load(self, shared: bool, at: Lanes, size: int, active: Lanes, line: str) -> Lanes:
        """Numbers of `size` bytes."""
        buffer = self.shared if shared else self.memory
        self._inside(buffer, at, size, active, line)
        at = np.where(active, at, 0)
        found = np.zeros(self.threads, np.uint64)
        for n in range(size):
            found |= buffer[at + n].astype(np.uint64) << np.uint64(8 * n)
            if shared:
                i, warp = (at + n)[active], self.warp[active]
                if ((self.written[i] == self.epoch) & (self.writer[i] != warp)).any():
                    self.hazards[f"read of what another warp wrote: {line}"] += 1
                self.readers[i[self.read[i] != self.epoch]] = 0
                self.read[i] = self.epoch
                np.bitwise_or.at(self.readers, i, 1 << warp)
        return found.astype(UNSIGNED[8 * size])

    def store(self, shared: bool, at: Lanes, size: int, value: Lanes, active: Lanes, line: str) -> None:
        """Numbers of `size` bytes."""
        buffer = self.shared if shared else self.memory
        self._inside(buffer, at, size, active, line)
        warp = self.warp[active]
        for n in range(size):
            byte = ((value.astype(np.uint64) >> np.uint64(8 * n)) & np.uint64(255)).astype(np.uint8)[active]
            i = (at + n)[active]
            if shared:
                others = (self.read[i] == self.epoch) & ((self.readers[i] & ~(1 << warp)) != 0)
                others |= (self.written[i] == self.epoch) & (self.writer[i] != warp) & (buffer[i] != byte)
                if others.any():
                    self.hazards[f"write over what another warp uses: {line}"] += 1
                self.written[i], self.writer[i] = self.epoch, warp
            buffer[i] = byte

    @staticmethod
    def _inside(buffer: Lanes, at: Lanes, size: int, active: Lanes, line: str) -> None:
        if active.any() and (at[active].min() < 0 or at[active].max() + size > len(buffer)):
            raise UnknownStatementError(f"outside of memory: {line}")

    def _active(self, mask: Lanes | None) -> Lanes:
        return np.ones(self.threads, bool) if mask is None else mask

    def do_ld(self, o: list[str], a: list[str], mask: Lanes | None, line: str) -> None:
        if o[1] == "param":
            value = self.arguments[a[1].strip("[] ")]
            self.put(a[0], np.full(self.threads, value, np.uint64), None)
            return
        shared, kind = "shared" in o[1], o[-1]
        size = int(kind[1:]) // 8
        at = self.address(a[1], shared)
        for n, name in enumerate(listed(a[0])):
            value = self.load(shared, at + n * size, size, self._active(mask), line)
            value = value.view(SIGNED[8 * size]).astype(np.int32) if kind[0] == "s" and size < 4 else value
            self.put(name, value, self._active(mask))

    def do_st(self, o: list[str], a: list[str], mask: Lanes | None, line: str) -> None:
        shared, size = "shared" in o[1], int(o[-1][1:]) // 8
        at = self.address(a[0], shared)
        for n, name in enumerate(listed(a[1])):
            value = self.get(name, max(16, 8 * size))
            self.store(shared, at + n * size, size, value, self._active(mask), line)

    def do_cp(self, o: list[str], a: list[str], mask: Lanes | None, line: str) -> None:
        if o[2] in ("commit_group", "wait_group", "wait_all"):
            return
        to, source, active = self.address(a[0], True), self.address(a[1], False), self._active(mask)
        real = self.get(a[3]).astype(np.int64) if len(a) > 3 else np.full(self.threads, int(a[2], 0))
        for n in range(int(a[2], 0)):
            there = active & (n < real)
            value = np.where(there, self.load(False, source + n, 1, there, line), 0)
            self.store(True, to + n, 1, value, active, line)

    def _matrices(self, o: list[str], address: str) -> list[tuple[int, int, Lanes]]:
        """Matrix, half and the address of each thread's number, of statements on 8 x 8 matrices."""
        count = next(int(k[1]) for k in o if re.match(r"^x\d$", k))
        at, lane = self.address(address, True).reshape(-1, 32), np.arange(32)
        found = []
        for n in range(count):
            for half in range(2):
                row, column = lane // 4, lane % 4 * 2 + half
                row, column = (column, row) if "trans" in o else (row, column)
                found.append((n, half, (at[:, n * 8 + row] + 2 * column).reshape(-1)))
        return found

    def do_stmatrix(self, o: list[str], a: list[str], mask: Lanes | None, line: str) -> None:
        names = listed(a[1])
        for n, half, at in self._matrices(o, a[0]):
            self.store(True, at, 2, halves(self.get(names[n]))[half], self._active(mask), line)

    def do_ldmatrix(self, o: list[str], a: list[str], mask: Lanes | None, line: str) -> None:
        names, found = listed(a[0]), {}
        for n, half, at in self._matrices(o, a[1]):
            found[n, half] = self.load(True, at, 2, self._active(mask), line)
        for n, name in enumerate(names):
            self.put(name, word(found[n, 0], found[n, 1]), None)

    def do_bar(self, o: list[str], a: list[str], mask: Lanes | None, line: str) -> None:
        self.epoch += o[1] != "warp"

    do_barrier = do_bar

    def do_fence(self, *_: Any) -> None:
        """What is written is there."""

    def do_griddepcontrol(self, *_: Any) -> None:
        """Kernels run one after another here."""

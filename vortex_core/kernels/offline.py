"""Compiles Triton kernels for Hopper and Blackwell without a GPU, and reads the machine code.

`compile_kernel` yields a real cubin for sm_90a (H100, H200) or sm_100a (B200) and a `KernelReport` of
registers, spills, shared memory and the instructions that matter: tensor-core products, asynchronous copies.

Triton decides at decoration time whether a kernel is interpreted, so a process started with
TRITON_INTERPRET=1 cannot compile: use `python -m vortex_core.kernels.variants` in a clean process there.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource, GluonJITFunction

from vortex_core.errors import VortexError

# Compute capability -> name of the architecture-specific target Triton generates for it.
TARGETS: dict[str, int] = {"sm_90a": 90, "sm_100a": 100}

# What a group of opcodes means for a memory-bound kernel.
INSTRUCTION_GROUPS: dict[str, str] = {
    "HGMMA": r"^(HGMMA|QGMMA|IGMMA)",  # Hopper warpgroup products
    "UTCMMA": r"^UTC\w*MMA",  # Blackwell tensor-memory products (UTCHMMA, UTCQMMA)
    "HMMA": r"^(HMMA|QMMA|IMMA)",  # warp-level products
    "TMA": r"^(UTMALDG|UTMASTG|UBLKCP)",  # bulk tensor copies
    "CP_ASYNC": r"^LDGSTS",  # 16-byte asynchronous copies
    "LDSM": r"^LDSM",  # shared memory to matrix fragments
    "LOCAL": r"^(LDL|STL)",  # local memory: spills
    "ATOM": r"^(ATOM\w*|RED)$",
    "PDL_WAIT": r"^ACQBULK",  # griddepcontrol.wait
    "PDL_NEXT": r"^PREEXIT",  # griddepcontrol.launch_dependents
    "BAR": r"^BAR",
}


class OfflineCompileError(VortexError):
    """A kernel does not compile for a target (VK002), or this process cannot compile (VK003)."""

    def __init__(self, message: str, remedy: str = "", code: str = "VK002") -> None:
        super().__init__(code, message, remedy)


def _no_compiler(message: str, remedy: str = "") -> OfflineCompileError:
    """`VK003`: it says nothing about the kernel."""
    return OfflineCompileError(message, remedy, code="VK003")


@dataclass(frozen=True)
class KernelReport:
    """What the compiler made of one kernel.

    registers: per thread. stack_bytes: local memory a thread (0 = no spills). shared_bytes: per block,
    static + dynamic.
    opcodes: counts in the machine code by `INSTRUCTION_GROUPS`. copy_bits: widest asynchronous copy in bits.
    memory_before_wait: accesses to global memory ahead of the wait for the kernel before (`dependent.py`), which
    must be none; None where the kernel does not wait.
    """

    name: str
    target: str
    num_warps: int
    num_stages: int
    registers: int
    stack_bytes: int
    shared_bytes: int
    instructions: int
    opcodes: dict[str, int] = field(default_factory=dict)
    copy_bits: int = 0
    memory_before_wait: int | None = None

    @property
    def spills(self) -> bool:
        return self.stack_bytes > 0 or self.opcodes.get("LOCAL", 0) > 0

    @property
    def uses_tensor_cores(self) -> bool:
        return any(self.opcodes.get(k, 0) for k in ("HGMMA", "UTCMMA", "HMMA"))

    @property
    def uses_async_copy(self) -> bool:
        return bool(self.opcodes.get("CP_ASYNC", 0) or self.opcodes.get("TMA", 0))


def _tool(name: str) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    if not path.exists():
        raise _no_compiler(f"{name} is missing from Triton's NVIDIA backend at {path}", "reinstall triton")
    return str(path)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise _no_compiler(f"{Path(command[0]).name} failed: {done.stderr.strip()[:500]}")
    return done.stdout


@contextmanager
def _as_file(cubin: bytes) -> Iterator[str]:
    handle, name = tempfile.mkstemp(suffix=".cubin")
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(cubin)
        yield name
    finally:
        Path(name).unlink()


def read_usage(cubin: bytes) -> dict[str, int]:
    """What a cubin's one kernel takes: REG a thread, STACK bytes a thread, SHARED static bytes a block."""
    with _as_file(cubin) as name:
        text = _run(_tool("cuobjdump"), "-res-usage", name)
    return {k: int(v) for k, v in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", text)}


def read_cubin(cubin: bytes) -> tuple[dict[str, int], list[str]]:
    """`read_usage`, and the opcodes, with modifiers, of a cubin's one kernel."""
    usage = read_usage(cubin)
    with _as_file(cubin) as name:
        sass = _run(_tool("nvdisasm"), "-c", name)
    opcodes = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P[T\d]+\s+)?([A-Z][A-Z0-9_.]*)", sass, re.MULTILINE)
    return usage, opcodes


def memory_before_wait(opcodes: list[str]) -> int | None:
    """Global memory accesses before `griddepcontrol.wait`, in the order of the machine code; None without one."""
    wait = next((i for i, opcode in enumerate(opcodes) if opcode.startswith("ACQBULK")), None)
    if wait is None:
        return None
    return sum(bool(re.match(r"(LDG|STG|LD\.|ST\.|ATOM|RED\.|UTMA|UBLKCP)", o)) for o in opcodes[:wait])


def build_kernel(
    fn: Any,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    *,
    target: str = "sm_90a",
    num_warps: int = 4,
    num_stages: int = 3,
    divisible_by_16: Iterable[str] | None = None,
    max_registers: int | None = None,
) -> Any:
    """Compiles `fn` to a cubin, Triton's own compiled kernel (from Triton's cache where it is there).

    signature: argument name -> Triton type ("*bf16", "i32", "fp32", ...) of every run-time argument.
    constexprs: argument name -> value of the others.
    divisible_by_16: arguments (pointers, strides) that launches will pass as multiples of 16; by default
        every pointer and every argument named `stride_*`. Without them Triton cannot vectorise and the
        report misleads.
    max_registers: per thread, where launches limit them.
    Raises OfflineCompileError.
    """
    if triton.knobs.runtime.interpret:
        raise _no_compiler(
            "this process interprets kernels (TRITON_INTERPRET=1) and cannot compile them",
            "compile in a process started without TRITON_INTERPRET",
        )
    if target not in TARGETS:
        raise _no_compiler(f"unknown target {target!r}", f"choose one of {', '.join(TARGETS)}")
    names = list(fn.arg_names)
    missing = [n for n in names if n not in signature and n not in constexprs]
    if missing:
        raise OfflineCompileError(f"{fn.__name__}: no type or value for {', '.join(missing)}")
    full = {n: signature.get(n, "constexpr") for n in names}
    if divisible_by_16 is None:
        divisible_by_16 = [n for n, t in full.items() if t.startswith("*") or n.startswith("stride_")]
    attrs = {(names.index(n),): [["tt.divisibility", 16]] for n in divisible_by_16 if full[n] != "constexpr"}
    source_type = GluonASTSource if isinstance(fn, GluonJITFunction) else ASTSource
    source = source_type(fn, full, dict(constexprs), attrs)
    gpu = GPUTarget("cuda", TARGETS[target], 32)
    try:
        options = {"num_warps": num_warps, "num_stages": num_stages, "maxnreg": max_registers}
        return triton.compile(source, target=gpu, options=options)
    except Exception as error:
        raise OfflineCompileError(f"{fn.__name__} does not compile for {target}: {error}") from error


def compile_kernel(
    fn: Any,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    *,
    target: str = "sm_90a",
    num_warps: int = 4,
    num_stages: int = 3,
    divisible_by_16: Iterable[str] | None = None,
    max_registers: int | None = None,
) -> KernelReport:
    """`build_kernel`, and a report on the machine code."""
    binary = build_kernel(
        fn, signature, constexprs, target=target, num_warps=num_warps, num_stages=num_stages,
        divisible_by_16=divisible_by_16, max_registers=max_registers,
    )  # fmt: skip
    usage, opcodes = read_cubin(binary.asm["cubin"])
    counts = Counter(opcode.split(".")[0] for opcode in opcodes)
    groups = {
        group: sum(n for opcode, n in counts.items() if re.match(pattern, opcode))
        for group, pattern in INSTRUCTION_GROUPS.items()
    }
    widths = [
        int(m.group(1)) for o in opcodes if o.startswith("LDGSTS") and (m := re.search(r"\.(64|128)\b", o))
    ]
    return KernelReport(
        name=fn.__name__,
        target=target,
        num_warps=num_warps,
        num_stages=num_stages,
        registers=usage.get("REG", 0),
        stack_bytes=usage.get("STACK", 0),
        shared_bytes=int(binary.metadata.shared) + usage.get("SHARED", 0),
        instructions=len(opcodes),
        opcodes={k: v for k, v in groups.items() if v},
        copy_bits=max(widths, default=32 if groups["CP_ASYNC"] else 0),
        memory_before_wait=memory_before_wait(opcodes),
    )

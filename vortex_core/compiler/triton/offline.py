"""Compile a flow's generated kernels for a GPU that is not there, and report on the machine code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import triton.language as tl

from vortex_core.compiler.triton.backend import WARPS
from vortex_core.compiler.triton.cache import load_module
from vortex_core.compiler.triton.generate import generate
from vortex_core.compiler.triton.launch_config import ScoreConfig
from vortex_core.compiler.triton.row_kernel import ROW_WARPS
from vortex_core.geometry import Geometry
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import Program
from vortex_core.kernels.dependent import LATE
from vortex_core.kernels.offline import KernelReport, build_kernel, compile_kernel

DEFAULT = ScoreConfig(blocks=1)
KERNELS = ("update_kernel", "query_kernel", "score_kernel", "row_kernel", "refine_kernel")
_STORED = {"bf16": "*bf16", "fp16": "*fp16", "fp32": "*fp32", "int8": "*i8"}
_POINTERS = {
    "q": "*bf16",
    "k": "*bf16",
    "v": "*bf16",
    "table": "*i32",
    "lengths": "*i32",
    "budgets": "*i32",
    "seats": "*i32",
    "pages": "*i32",
    "candidates": "*i32",
    "candidate_lens": "*i32",
}
_ALIGNED = (
    "q_batch",
    "q_head",
    "k_head",
    "k_page",
    "k_token",
    "v_head",
    "v_page",
    "v_token",
    "table_stride",
    "max_pages",
    "candidates_stride",
)


@dataclass(frozen=True)
class Launchable:
    """A generated kernel with the types it will be launched with."""

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    aligned: list[str]
    warps: int
    stages: int

    def build(self, target: str) -> Any:
        """The compiled kernel as Triton keeps it."""
        return build_kernel(self.kernel, self.signature, self.constants, **self._options(target))

    def report(self, target: str) -> KernelReport:
        """Registers, spills and shared memory that the compiler reports for the kernel."""
        return compile_kernel(self.kernel, self.signature, self.constants, **self._options(target))

    def _options(self, target: str) -> dict[str, Any]:
        return {
            "target": target, "num_warps": self.warps, "num_stages": self.stages, "divisible_by_16": self.aligned,
        }  # fmt: skip


def launchables(
    program: Program, knobs: Knobs, geometry: Geometry, config: ScoreConfig = DEFAULT, *, wide: bool = False
) -> dict[str, Launchable]:
    """The kernels of a program by name, for bf16 KV.

    Args:
        wide: for queries of fp32.

    Raises:
        VortexError: `VE050` for what cannot be lowered.
    """
    program = program.canonical()
    code = generate(
        program,
        geometry,
        knobs.page_size,
        config.block,
        config.channels,
        row_block=config.row_block,
        row_warps=config.row_warps,
        wide=wide,
    )
    module = load_module(code.text)
    dtypes = {s.name: s.dtype for s in program.states}
    found = {}
    for name in KERNELS:
        kernel = getattr(module, name, None)
        if kernel is None:
            continue
        constants = {"DECODE": True, "OPERAND": tl.bfloat16, "PDL": LATE.value, "BLOCKS": config.blocks or 1}
        constants = {k: v for k, v in constants.items() if k in kernel.arg_names}
        signature = {a: argument_type(a, dtypes) for a in kernel.arg_names if a not in constants}
        if wide and "q_ptr" in signature:
            signature["q_ptr"] = "*fp32"
        aligned = [a for a, kind in signature.items() if kind.startswith("*") or a in _ALIGNED]
        stages = config.stages if name == "score_kernel" else 3
        warps = {
            "update_kernel": code.update_warps,
            "score_kernel": config.warps or code.warps,
            "row_kernel": config.row_warps or ROW_WARPS,
        }
        found[name] = Launchable(kernel, signature, constants, aligned, warps.get(name, WARPS), stages)
    return found


def build_flow(program: Program, knobs: Knobs, geometry: Geometry, target: str = "sm_90a") -> dict[str, Any]:
    """Compiled kernels of a program by name, as Triton keeps them."""
    return {name: k.build(target) for name, k in launchables(program, knobs, geometry).items()}


def compile_flow(
    program: Program,
    knobs: Knobs,
    geometry: Geometry,
    target: str = "sm_90a",
    config: ScoreConfig = DEFAULT,
) -> dict[str, KernelReport]:
    """Machine-code reports of a program's kernels by name, for bf16 KV.

    Raises:
        VortexError: `VE050` for what cannot be lowered; OfflineCompileError for what does not compile.
    """
    return {name: k.report(target) for name, k in launchables(program, knobs, geometry, config).items()}


def argument_type(name: str, dtypes: Mapping[str, str]) -> str:
    """Triton type of a generated kernel's argument."""
    if not name.endswith("_ptr"):
        return "i32"
    base = name.removesuffix("_ptr")
    if base in _POINTERS:
        return _POINTERS[base]
    if base.endswith("_scale"):
        return "*fp16"
    return _STORED.get(dtypes[base], "*u8") if base in dtypes else "*fp32"

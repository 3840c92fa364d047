"""Compile what decode steps of a flow will launch on a GPU, on a machine or in a process without one.

The very code that launches kernels runs here on tensors without storage. So what is compiled is what an engine will
ask for, and a process on the same machine finds it in Triton's cache on disk instead of compiling while it holds a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace
from typing import Any

import torch
from triton.errors import TritonError

from vortex_core.compiler.interface import BatchView, LayerKV
from vortex_core.compiler.triton.backend import TritonFlow
from vortex_core.compiler.triton.limits import KernelUse, check_use
from vortex_core.errors import VortexError
from vortex_core.geometry import Geometry
from vortex_core.ir.definitions import torch_dtype
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import Program
from vortex_core.kernels.compile_ahead import compiling_for
from vortex_core.kernels.decode.plan import AttentionPlan
from vortex_core.kernels.offline import TARGETS, OfflineCompileError, read_usage
from vortex_core.kernels.runtime import AbsentGPU
from vortex_core.page_list import one_list_a_sequence

GPUS = {"sm_90a": AbsentGPU((9, 0), 132), "sm_100a": AbsentGPU((10, 0), 148)}
assert GPUS.keys() == TARGETS.keys()
_BLOCK = 128  # tokens of a block, in which engines allocate
_BLOCKS = 64  # of the imagined pool; only strides follow from it
_GENERATED = ("update_kernel", "query_kernel", "score_kernel", "row_kernel", "refine_kernel")
_META = torch.device("meta")


@dataclass(frozen=True)
class StepShape:
    """A decode step of `rows` sequences, the longest of `tokens` tokens."""

    rows: int
    tokens: int


def compile_ahead(
    program: Program,
    knobs: Knobs,
    geometry: Geometry,
    shapes: Iterable[StepShape],
    target: str = "sm_90a",
    *,
    threads: int = 4,
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, KernelUse]:
    """Compile the kernels of a flow's decode steps and of its page states, for its own cache.

    Args:
        shapes: steps that will run; those that launch the same kernels cost nothing more.
        threads: at most so many kernels compile at once.
        dtype: of the queries, and of the cache where the knobs leave it open.

    Returns:
        For each generated kernel the most that any variant takes.

    Raises:
        VortexError: `VE050` for what cannot be lowered, `VF013` / `VF064` where the program does not fit the model.
        VortexError: `VE051` and `VE056` for a kernel that wants more than there is (`limits.py`).
        OfflineCompileError: `VK002` for what does not compile.
    """
    flow = TritonFlow(program.canonical(), knobs, geometry)
    try:
        with compiling_for(GPUS[target], threads=threads) as compiled:
            for shape in dict.fromkeys(shapes):
                _launch(flow, shape, dtype)
    except VortexError:
        raise
    except (TritonError, RuntimeError) as error:  # of the front end and of LLVM; what else fails is ours
        raise OfflineCompileError(f"a kernel does not compile for {target}: {error}") from error
    found = {}
    for name in sorted(compiled, key=lambda n: (n not in _GENERATED, n)):
        uses = [_use(kernel) for kernel in compiled[name]]
        most = KernelUse(*(max(column) for column in zip(*map(astuple, uses), strict=True)))
        check_use(name, most, target, generated=name in _GENERATED)
        if name in _GENERATED:
            found[name] = most
    return found


def _use(kernel: Any) -> KernelUse:
    usage = read_usage(kernel.asm["cubin"])
    shared = int(kernel.metadata.shared) + usage.get("SHARED", 0)
    return KernelUse(usage.get("REG", 0), usage.get("STACK", 0), shared)


def _launch(flow: TritonFlow, shape: StepShape, dtype: torch.dtype) -> None:
    """Everything that a layer launches for its pages and its step, except storing the new token."""
    knobs, g, size = flow.knobs, flow.geometry, flow.knobs.page_size
    stored = dtype if knobs.kv_dtype == "auto" else torch_dtype(torch, knobs.kv_dtype)
    blocks = -(-shape.tokens // _BLOCK)
    width = -(-blocks // 16) * 16 * (_BLOCK // size)
    k = torch.empty(g.kv_heads, _BLOCKS * _BLOCK // size, size, g.head_dim, dtype=stored, device=_META)
    v = k[..., : g.value_dim] if g.is_mla else k.new_empty(*k.shape[:3], g.value_dim)
    kv = LayerKV(k, v)
    states = flow.new_states(k.shape[1], _META, shape.rows)
    table = torch.empty(shape.rows, width, dtype=torch.int32, device=_META)
    lengths = torch.empty(shape.rows, dtype=torch.int32, device=_META)
    view = BatchView(table, lengths, lengths, blocks * _BLOCK)
    flow.update(states, kv, torch.empty(64, dtype=torch.int64, device=_META), 0)
    flow.update_decode(states, kv, view, 0)
    q = torch.empty(shape.rows, g.q_heads, g.head_dim, dtype=dtype, device=_META)
    each = flow.program.per_query_head
    dense = AttentionPlan.allocate(g, _BLOCK, stored, shape.rows, _META)
    if flow.program.reads_dense_mass:
        every = one_list_a_sequence(table, lengths, size)
        recording = dense.sharing(size, even=False)
        received = recording.page_mass(shape.rows, width, _META, summed=False)
        recording.run(q, *kv.by_page, every, 1.0, mass=received)
        view = replace(view, dense_mass=received.by_head_in_place())
    pages = flow.select_in_place(q, states, view, 0)
    plan = (
        AttentionPlan.allocate(g, _BLOCK, stored, shape.rows, _META, per_query_head=True) if each else dense
    )
    plan = plan.sharing(size, even=True)
    config = flow.attention_config(shape.rows, width, stored)
    mass = plan.page_mass(shape.rows, pages.columns, _META) if flow.program.needs_mass else None
    lse = torch.empty(shape.rows, g.q_heads, device=_META) if flow.program.residual else None
    out = plan.run(q, *kv.by_page, pages, 1.0, config=config, mass=mass, lse=lse)
    if lse is not None:
        flow.merge_residual(out, lse, pages, states, view)
    flow._workspaces.clear()

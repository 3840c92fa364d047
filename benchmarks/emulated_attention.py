"""What the machine code of attention over lists computes, without a GPU: python -m benchmarks.emulated_attention

Launches of one list under several cuts are compiled for sm_90a, and their PTX runs on a CPU (`ptx_machine`) beside
fp64. Pages that no list names, and tokens past a list's end, are NaN. Nothing is said of time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.emulated import Memory
from benchmarks.ptx_machine import Machine
from benchmarks.ptx_numbers import BASE, Lanes
from vortex_core.kernels.decode.config import DecodeConfig
from vortex_core.kernels.decode.list_kernel import list_decode_kernel
from vortex_core.kernels.decode.paged import LOG2_E, decode_constants, even_constants
from vortex_core.kernels.dependent import EARLY, LATE
from vortex_core.kernels.offline import build_kernel
from vortex_core.kernels.variants import attention_pointers, signature

DIM = 128
CUTS = tuple(
    DecodeConfig(*cut, fused_merge=False, even=True, late_sums=late)
    for cut in ((128, 4, 3, 1), (64, 4, 3, 2), (64, 2, 4, 2), (32, 1, 4, 3), (32, 4, 4, 2))
    for late in (False, True)
)


@dataclass(frozen=True)
class Emulated:
    """`error` of the output, relative to its norm; `hazards` as `benchmarks.emulated` tells them."""

    error: float
    hazards: tuple[str, ...]


def _build(config: DecodeConfig, page: int, group: int) -> Any:
    constants = decode_constants(
        heads=1, kv_repeat=1, group=group, page_size=page, dim=DIM, dim_v=DIM, kv_dtype=torch.bfloat16,
        stride_k_token=DIM, stride_v_token=DIM, config=config, rows=1, value_in_key=False, has_lse=False,
        has_page_lse=False,
    )  # fmt: skip
    constants = even_constants(constants, split=True)
    constants["PDL"] = (EARLY if config.workers_per_sm == 1 else LATE).value
    types = signature(list_decode_kernel, constants, attention_pointers(torch.bfloat16))
    return build_kernel(
        list_decode_kernel, types, constants, num_warps=config.num_warps, num_stages=config.num_stages
    )


def _read(held: Lanes, at: int, *shape: int) -> torch.Tensor:
    start = at - BASE
    data = held[start : start + 4 * math.prod(shape)].copy().view(np.float32)
    return torch.from_numpy(data).view(shape).double()


def emulate_attention(
    config: DecodeConfig, length: int, *, page: int = 16, group: int = 6, pieces: int = 2, columns: int = 64
) -> Emulated:
    """Run one list of `length` tokens, cut into pieces, which are merged here.

    Raises:
        UnknownStatementError: for what the machine does not know.
    """
    torch.manual_seed(length)
    used, pool = -(-length // page), columns + 3
    ids = torch.zeros(columns, dtype=torch.int32)
    ids[:used] = torch.randperm(pool - 1)[:used] + 1
    k, v = (torch.full((pool, page, DIM), float("nan"), dtype=torch.bfloat16) for _ in "kv")
    listed = ids[:used].long()
    for cache in (k, v):
        rows = torch.randn(used * page, DIM)
        rows[length:] = float("nan")
        cache[listed] = rows.view(used, page, DIM).bfloat16()
    q = torch.randn(group, DIM).bfloat16()
    memory, size = Memory(), 2 * pieces
    scale = np.float32(DIM**-0.5 * LOG2_E).view(np.uint32)
    given = {
        "q_ptr": memory.add(q), "k_ptr": memory.add(k), "v_ptr": memory.add(v), "out_ptr": memory.add(q),
        "lse_ptr": 0, "page_lse_ptr": 0, "ids_ptr": memory.add(ids),
        "lens_ptr": memory.add(torch.tensor([length], dtype=torch.int32)),
        "part_out_ptr": memory.add(torch.full((size, group, DIM), float("nan"))),
        "part_lse_ptr": memory.add(torch.full((size, group), float("nan"))), "finished_ptr": 0,
        "stride_q_b": group * DIM, "stride_q_h": DIM, "stride_out_b": group * DIM, "stride_out_h": DIM,
        "stride_k_page": page * DIM, "stride_k_head": DIM, "stride_v_page": page * DIM, "stride_v_head": DIM,
        "stride_ids_b": columns, "stride_ids_h": columns, "stride_lens_b": 16, "stride_lens_h": 16,
        "max_pages": columns, "score_scale": int(scale), "v_scale": int(np.float32(1).view(np.uint32)),
        "splits": pieces,
    }  # fmt: skip
    held = np.concatenate(memory.parts)
    built = _build(config, page, group)
    machine = Machine(built.asm["ptx"], 32 * config.num_warps, int(built.metadata.shared), held)
    arguments = [given[name] for name in list_decode_kernel.arg_names if name in given]
    arguments += [0] * (len(machine.params) - len(arguments))
    for piece in range(pieces):
        machine.run(arguments, (piece, 0))
    lse = _read(held, given["part_lse_ptr"], size, group)[::2] * math.log(2)
    weights = torch.softmax(lse, 0).nan_to_num(0.0)  # no piece of an empty list has any
    out = (weights[..., None] * _read(held, given["part_out_ptr"], size, group, DIM)[::2]).sum(0)
    keys, values = (cache[listed].reshape(-1, DIM)[:length].double() for cache in (k, v))
    want = torch.softmax(q.double() @ keys.T * DIM**-0.5, -1) @ values
    error = (out - want).norm() / want.norm().clamp_min(1e-30) if length else out.abs().max()
    return Emulated(float(error), tuple(machine.hazards))


def main() -> None:
    """One line a cut, page size and length."""
    for page, group in ((16, 6), (64, 2)):
        for config in CUTS:
            for length in (0, 1, page - 1, page, page + 1, 300, 700):
                found = emulate_attention(config, length, page=page, group=group, columns=1024 // page)
                print(
                    config,
                    f"page {page}, {length} tokens: error {found.error:.1e}",
                    *found.hazards,
                    flush=True,
                )


if __name__ == "__main__":
    main()

"""Representative compilations of every kernel here, for the offline check.

`python -m vortex_core.kernels.variants [--target sm_90a] [NAME ...]` prints one JSON report a line. Run it in
a process of its own: a process that interprets kernels cannot compile.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from vortex_core.kernels.decode.config import decode_config
from vortex_core.kernels.decode.latent import latent_constants
from vortex_core.kernels.decode.latent_kernel import WARPS, latent_decode_kernel
from vortex_core.kernels.decode.list_kernel import list_decode_kernel
from vortex_core.kernels.decode.mla import mla_config, mla_rows
from vortex_core.kernels.decode.paged import decode_constants, even_constants
from vortex_core.kernels.decode.paged_kernel import page_mass_kernel, paged_decode_kernel
from vortex_core.kernels.decode.split import merge_even_kernel, merge_kernel, plan_kernel
from vortex_core.kernels.dependent import EARLY, LATE
from vortex_core.kernels.offline import TARGETS, KernelReport, compile_kernel
from vortex_core.kernels.select.api import SELECT_LIMITS, SELECT_STAGES, launch_registers, select_plan
from vortex_core.kernels.select.kernel import select_kernel
from vortex_core.kernels.write.latent import latent_write_kernel
from vortex_core.kernels.write.paged import kv_write_kernel

TRITON_TYPES: dict[torch.dtype, str] = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.float8_e5m2: "fp8e5",
    torch.int32: "i32",
    torch.uint8: "u8",
}

FLOAT_SCALARS = frozenset(
    {"score_scale", "v_scale", "keep_share", "share", "k_inverse", "v_inverse", "k_limit", "v_limit"}
)


def signature(fn: Any, constants: dict[str, Any], pointers: dict[str, torch.dtype]) -> dict[str, str]:
    """Triton types of `fn`'s run-time arguments: pointers as given (int32 by default), scalars by name."""
    types = {}
    for name in fn.arg_names:
        if name in constants:
            continue
        if name.endswith("_ptr"):
            types[name] = "*" + TRITON_TYPES[pointers.get(name, torch.int32)]
        else:
            types[name] = "fp32" if name in FLOAT_SCALARS else "i32"
    return types


@dataclass(frozen=True)
class Variant:
    """A named compilation. streams: reads the KV cache, so tensor cores and asynchronous copies are due."""

    name: str
    compile: Callable[[str], KernelReport]
    streams: bool = False
    targets: tuple[str, ...] = tuple(TARGETS)


def _variant(
    name: str,
    fn: Any,
    constants: dict[str, Any],
    pointers: dict[str, torch.dtype],
    *,
    num_warps: int,
    num_stages: int = 3,
    streams: bool = False,
    targets: tuple[str, ...] = tuple(TARGETS),
    aligned: tuple[str, ...] = (),
    max_registers: int | None = None,
) -> Variant:
    """aligned: scalars that launches pass as multiples of 16, besides pointers and strides."""
    if "PDL" in fn.arg_names:
        constants = {"PDL": LATE.value, **constants}

    def build(target: str) -> KernelReport:
        types = signature(fn, constants, pointers)
        multiples = [
            n for n, t in types.items() if t.startswith("*") or n.startswith("stride_") or n in aligned
        ]
        return compile_kernel(
            fn,
            types,
            constants,
            target=target,
            num_warps=num_warps,
            num_stages=num_stages,
            divisible_by_16=multiples,
            max_registers=max_registers,
        )

    return Variant(name, build, streams, targets)


_FLOATS = dict.fromkeys(
    ("lse_ptr", "page_lse_ptr", "part_out_ptr", "part_lse_ptr", "mass_ptr"), torch.float32
)


def attention_pointers(kv_dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Pointer types of `paged_decode_kernel` for bf16 queries."""
    return {
        **_FLOATS,
        "q_ptr": torch.bfloat16,
        "out_ptr": torch.bfloat16,
        "k_ptr": kv_dtype,
        "v_ptr": kv_dtype,
    }


def decode_variant(
    head_dim: int,
    group: int,
    kv_dtype: torch.dtype,
    page_size: int,
    rows: int,
    *,
    mass: bool = False,
    even: bool = False,
    alone: bool = False,
) -> Variant:
    """GQA decode as `paged_decode` launches it with its default configuration."""
    heads = 8
    config = decode_config(head_dim, group, kv_dtype, page_size, rows, even=even, alone=alone)
    constants = decode_constants(
        heads=heads,
        kv_repeat=1,
        group=group,
        page_size=page_size,
        dim=head_dim,
        dim_v=head_dim,
        kv_dtype=kv_dtype,
        stride_k_token=heads * head_dim,
        stride_v_token=heads * head_dim,
        config=config,
        rows=rows,
        value_in_key=False,
        has_lse=mass,
        has_page_lse=mass,
    )
    pointers = attention_pointers(kv_dtype)
    kernel = list_decode_kernel if config.even else paged_decode_kernel
    if config.even:
        constants = even_constants(constants, split=True)
    kind = "lists" if even else "alone" if alone else "decode"
    name = f"{kind}-d{head_dim}-g{group}-{TRITON_TYPES[kv_dtype]}-p{page_size}-r{rows}"
    name += "-mass" if mass else ""
    return _variant(
        name,
        kernel,
        constants,
        pointers,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        streams=True,
    )


def latent_variant(heads: int, page_size: int, rows: int, *, even: bool) -> Variant:
    """Latent decode as `mla_decode` launches it on Hopper."""
    lists = mla_rows(heads)
    constants = latent_constants(
        heads=lists,
        group=heads // lists,
        page_size=page_size,
        stride_token=576,
        rows=rows * lists,
        even=even,
        has_lse=True,
    )
    return _variant(
        f"latent-g{heads}-p{page_size}-r{rows}{'-even' if even else ''}",
        latent_decode_kernel,
        constants | {"PDL": EARLY.value},
        attention_pointers(torch.bfloat16) | {"kv_ptr": torch.bfloat16},
        num_warps=WARPS,
        streams=True,
        targets=("sm_90a",),
    )


def mla_variant(heads: int, kv_dtype: torch.dtype, page_size: int) -> Variant:
    """Latent decode as `mla_decode` launches it where `latent_variant` does not apply."""
    config = mla_config(heads, kv_dtype, page_size)
    rows = mla_rows(heads)
    constants = decode_constants(
        heads=rows,
        kv_repeat=rows,
        group=heads // rows,
        page_size=page_size,
        dim=576,
        dim_v=512,
        kv_dtype=kv_dtype,
        stride_k_token=576,
        stride_v_token=576,
        config=config,
        rows=32,
        value_in_key=True,
        has_lse=False,
        has_page_lse=False,
    )
    pointers = attention_pointers(kv_dtype)
    return _variant(
        f"mla-g{heads}-{TRITON_TYPES[kv_dtype]}-p{page_size}",
        paged_decode_kernel,
        constants,
        pointers,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        streams=True,
    )


def select_variant(
    max_pages: int,
    capacity: int,
    dtype: torch.dtype,
    *,
    stochastic: bool = False,
    limit: str = "",
    marks: str = "",
    sifts: bool | None = None,
    early: bool = False,
) -> Variant:
    """Selection as `select_pages` launches it."""
    plan = select_plan(max_pages, capacity, sifts=sifts)
    constants: dict[str, Any] = {
        "HEADS": 8,
        "PAGE": 16,
        "BLOCK": plan.block,
        "SEGMENTS": plan.segments,
        "FINAL_BLOCK": plan.final_block,
        "TIERS": plan.tiers,
        "LAST_SHIFT": 16 if dtype == torch.bfloat16 else 0,
        "STOCHASTIC": stochastic,
        "LIMIT": SELECT_LIMITS[limit] if limit else 0,
        "MARKS": SELECT_STAGES[marks] if marks else 0,
        "SIFT": plan.sift,
        "TIMES": 1,
        "PDL": (EARLY if early else LATE).value,
    }
    absent = [
        *(() if marks else ("marks_ptr",)),
        *(() if plan.sift else ("sifted_keys_ptr", "sifted_pages_ptr")),
        *(
            ()
            if plan.segments > 1
            else ("candidate_keys_ptr", "candidate_pages_ptr", "masses_ptr", "finished_ptr")
        ),
    ]
    constants |= dict.fromkeys(absent)  # None, as launches pass them
    special = (
        ["stochastic"] * stochastic
        + ["early"] * early
        + ["sifted"] * bool(sifts)
        + [*filter(None, (limit, marks))]
    )
    name = "-".join([f"select-{max_pages}-k{capacity}-{TRITON_TYPES[dtype]}", *special])
    pointers = {"scores_ptr": dtype, "masses_ptr": torch.float32, "marks_ptr": torch.uint8}
    return _variant(
        name,
        select_kernel,
        constants,
        pointers,
        num_warps=plan.num_warps,
        aligned=("max_pages",),
        max_registers=launch_registers(plan, limit, marks),
    )


def variants() -> Iterator[Variant]:
    """The compilations that continuous integration checks."""
    bf16, e4m3, e5m2, fp32 = torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float32
    yield decode_variant(128, 4, bf16, 16, 128)
    yield decode_variant(128, 4, bf16, 64, 8)
    yield decode_variant(128, 7, bf16, 8, 2048, mass=True)
    yield decode_variant(64, 3, bf16, 16, 128)
    yield decode_variant(96, 5, bf16, 32, 128)
    yield decode_variant(192, 16, bf16, 16, 128)
    yield decode_variant(256, 2, bf16, 128, 128)
    yield decode_variant(128, 4, e4m3, 16, 128)
    yield decode_variant(128, 2, e5m2, 64, 128)
    yield latent_variant(20, 64, 32, even=True)
    yield latent_variant(20, 16, 32, even=True)
    yield latent_variant(20, 16, 32, even=False)
    yield latent_variant(128, 8, 512, even=False)
    yield decode_variant(128, 4, bf16, 16, 128, even=True)
    yield decode_variant(128, 4, bf16, 64, 8, even=True)
    yield decode_variant(64, 3, bf16, 16, 8, even=True)
    yield decode_variant(96, 5, bf16, 32, 128, even=True)
    yield decode_variant(128, 7, bf16, 8, 64, mass=True, even=True)
    yield decode_variant(256, 2, bf16, 128, 256, even=True)
    yield decode_variant(128, 4, e4m3, 16, 128, even=True)
    yield decode_variant(128, 4, bf16, 16, 8, alone=True)
    yield decode_variant(128, 16, bf16, 64, 4, alone=True)
    yield mla_variant(16, bf16, 64)
    yield mla_variant(20, bf16, 64)
    yield mla_variant(20, bf16, 16)
    yield mla_variant(64, bf16, 64)
    yield mla_variant(20, e4m3, 64)
    yield select_variant(2048, 128, fp32)
    yield select_variant(2048, 128, fp32, early=True)
    yield select_variant(2048, 128, bf16, stochastic=True)
    yield select_variant(4096, 256, fp32)
    yield select_variant(8192, 128, fp32)
    yield select_variant(8192, 128, fp32, sifts=True)
    yield select_variant(65536, 128, fp32, sifts=True)
    yield select_variant(65536, 128, fp32)
    for pages in (2048, 8192, 65536):
        yield select_variant(pages, 128, fp32, limit="threshold")
        yield select_variant(pages, 128, fp32, limit="top-p")
        yield select_variant(pages, 128, fp32, marks="begin")
        yield select_variant(pages, 128, fp32, marks="list")
    yield select_variant(2048, 128, fp32, limit="top-p", marks="list")
    yield select_variant(65536, 4096, fp32, limit="top-p", marks="list")
    merge = {"HEADS": 8, "GROUP": 4, "DIM": 128, "DIM_BLOCK": 128, "BLOCK_N": 64, "PLAN": 128, "MIN_TILES": 1}
    merge_pointers = {**_FLOATS, "out_ptr": bf16}
    even_merge = {"HEADS": 1, "GROUP": 20, "DIM": 512, "DIM_BLOCK": 512, "PIECES": 4, "HAS_LSE": True}
    yield _variant("merge-even", merge_even_kernel, even_merge, merge_pointers, num_warps=4)
    lone = {**even_merge, "HEADS": 1, "GROUP": 16, "DIM_BLOCK": 32, "PIECES": 512}  # one row on all workers
    yield _variant("merge-even-lone", merge_even_kernel, lone, merge_pointers, num_warps=4)
    constants = {**merge, "PIECES": 32, "HAS_LSE": True}
    yield _variant("merge", merge_kernel, constants, merge_pointers, num_warps=4)
    plan = {"HEADS": 8, "BLOCK_N": 64, "PLAN": 1024, "MIN_TILES": 1}
    yield _variant("plan", plan_kernel, plan, {}, num_warps=4)
    mass = {"HEADS": 8, "GROUP": 4, "PAGE": 16, "BLOCK": 1024}
    yield _variant("page-mass", page_mass_kernel, mass, _FLOATS, num_warps=4)
    write = {"PAGE": 16, "DK": 128, "DK_PAD": 128, "DV": 128, "DV_PAD": 128, "HAS_V": True}
    pool = {"k_ptr": bf16, "v_ptr": bf16, "k_cache_ptr": e4m3, "v_cache_ptr": e4m3}
    yield _variant("write-decode", kv_write_kernel, {**write, "BLOCK_T": 1}, pool, num_warps=1)
    yield _variant("write-prefill", kv_write_kernel, {**write, "BLOCK_T": 16}, pool, num_warps=4)
    rows = {
        "PAGE": 64,
        "HEADS": 20,
        "BLOCK_H": 4,
        "LATENT": 512,
        "LATENT_PAD": 512,
        "ROPE": 64,
        "ROPE_PAD": 64,
    }
    parts = {f"{name}_ptr": bf16 for name in ("latent", "rope", "cache", "q_latent", "q_rope", "q")}
    yield _variant("write-latent", latent_write_kernel, rows, parts, num_warps=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="default: every target")
    parser.add_argument("names", nargs="*", help="variants to compile; default: all")
    options = parser.parse_args()
    known = {variant.name: variant for variant in variants()}
    unknown = sorted(set(options.names) - known.keys())
    if unknown:
        parser.error(f"unknown variants {', '.join(unknown)}; known: {', '.join(known)}")
    for name in options.names or known:
        for target in options.target or known[name].targets:
            report = known[name].compile(target)
            row = asdict(report) | {
                "variant": name,
                "streams": known[name].streams,
                "spills": report.spills,
                "tensor_cores": report.uses_tensor_cores,
                "async_copy": report.uses_async_copy,
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

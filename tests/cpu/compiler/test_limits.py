"""Every legal program is lowered or refused with a code, and what kernels take of a GPU is known and bounded."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from agents.grammar.fuzz import random_program
from tests import sample_flows
from vortex_core import library
from vortex_core.compiler.evaluate import check_shapes
from vortex_core.compiler.triton import ahead
from vortex_core.compiler.triton.ahead import StepShape, compile_ahead
from vortex_core.compiler.triton.backend import TritonFlow
from vortex_core.compiler.triton.generate import generate
from vortex_core.compiler.triton.limits import SHARED_BYTES, STACK_BYTES, KernelUse, check_use
from vortex_core.errors import VortexError
from vortex_core.geometry import Geometry
from vortex_core.kernels.decode.mla import mla_config

GLM = Geometry(layers=47, kv_heads=1, group=20, head_dim=576, rope_dim=64, value_dim=512)
PROGRAMS, SEED = 150, 3


def grouped(dim: int, group: int) -> Geometry:
    return Geometry(28, 4, group, dim, dim, dim, sample_flows.turned(dim))


def test_a_legal_program_is_lowered_or_refused_with_a_code() -> None:
    """Random programs at random sizes, with queries that bf16 holds and others."""
    rng, found = random.Random(SEED), Counter[str]()
    for seed in range(PROGRAMS):
        program = random_program(random.Random(seed)).canonical()
        dim, group = (
            rng.choice((64, 80, 96, 128, 192, 256, 576)),
            rng.choice((1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20)),
        )
        geometry = Geometry(47, 1, group, 576, 64, 512) if dim == 576 else grouped(dim, group)
        page, wide = rng.choice((8, 16, 32, 64, 128)), rng.random() < 0.3
        try:
            check_shapes(program, geometry, page)
        except VortexError as error:
            found[error.code] += 1
            continue
        try:
            text = generate(program, geometry, page, wide=wide).text
        except VortexError as error:
            found[error.code if "cannot lower" in error.message and error.remedy else "unnamed"] += 1
        else:
            compile(text, f"program {seed}", "exec")
            found["lowered"] += 1
    assert found["lowered"] > 0.9 * PROGRAMS and set(found) <= {"lowered", "VE050", "VF013", "VF064"}, found


# Kernels that wanted more shared memory than there is, or kilobytes of stack, for queries that bf16 does not hold.
@pytest.mark.parametrize(
    ("name", "geometry", "page", "dtype"),
    [
        ("block_topk", GLM, 64, torch.float32),
        ("freekv", GLM, 128, torch.float16),
        ("twilight", grouped(96, 7), 64, torch.float32),
        ("twilight_quest", grouped(128, 4), 16, torch.float16),
        ("quest", grouped(256, 16), 128, torch.float32),
    ],
    ids=lambda x: getattr(x, "head_dim", x),
)
def test_kernels_of_wide_queries_fit(
    monkeypatch: pytest.MonkeyPatch, name: str, geometry: Geometry, page: int, dtype: torch.dtype
) -> None:
    """States and scores; attention is the same for all flows."""
    monkeypatch.setattr(ahead, "_launch", states_and_scores)
    traced = library.load(name)
    knobs = traced.knobs.with_(page_size=page, budget="2048")
    found = compile_ahead(traced.program, knobs, geometry, [StepShape(64, 32768)], dtype=dtype)
    assert {"update_kernel", "score_kernel"} <= set(found)
    assert all(use.shared_bytes <= SHARED_BYTES["sm_90a"] for use in found.values()), found
    assert all(use.stack_bytes <= 1024 for use in found.values()), found


def test_a_whole_step_over_latent_rows_of_fp32_fits() -> None:
    """Attention and the search too: whatever is compiled is checked."""
    traced = library.load("block_topk")
    found = compile_ahead(
        traced.program, traced.knobs.with_(page_size=64), GLM, [StepShape(1, 32768)], dtype=torch.float32
    )
    assert {"update_kernel", "score_kernel"} <= set(found)


def states_and_scores(flow: TritonFlow, shape: StepShape, dtype: torch.dtype) -> None:
    meta, g, size = torch.device("meta"), flow.geometry, flow.knobs.page_size
    k = torch.empty(g.kv_heads, 64, size, g.head_dim, dtype=dtype, device=meta)
    kv = ahead.LayerKV(k, k[..., : g.value_dim])
    states = flow.new_states(64, meta, shape.rows)
    table = torch.empty(shape.rows, shape.tokens // size, dtype=torch.int32, device=meta)
    lengths = torch.empty(shape.rows, dtype=torch.int32, device=meta)
    view = ahead.BatchView(table, lengths, lengths, shape.tokens)
    flow.update_decode(states, kv, view, 0)
    q = torch.empty(shape.rows, g.q_heads, g.head_dim, dtype=dtype, device=meta)
    flow.launch_scores(
        q, states, table, lengths, lengths, flow.workspace(shape.rows, table.shape[1], meta), 0
    )
    flow._workspaces.clear()


def test_three_numbers_that_bf16_holds_are_a_query_of_fp32() -> None:
    """As kernels take them apart: each what those before left."""
    q = torch.randn(4096, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, 4096)
    rest, total = q, torch.zeros(4096, dtype=torch.float64)
    for _ in range(3):
        part = rest.bfloat16().float()
        rest, total = rest - part, total + part.double()
    assert torch.equal(total.float(), q)
    text = generate(library.load("block_topk").program.canonical(), grouped(128, 4), 16, wide=True).text
    plain = generate(library.load("block_topk").program.canonical(), grouped(128, 4), 16).text
    assert text.count("tl.dot(") == 3 * plain.count("tl.dot(") > 0


def test_latent_rows_of_fp32_take_short_tiles() -> None:
    config = mla_config(20, torch.float32, 16)
    tile = 576 * 4 * config.block_n
    assert config.num_stages * tile + 32 * 576 * 4 < SHARED_BYTES["sm_90a"]


@pytest.mark.parametrize(
    ("use", "generated", "code", "fault"),
    [
        (KernelUse(255, 0, 335_936), True, "VE051", "candidate"),
        (KernelUse(255, 0, 335_936), False, "VE051", "infrastructure"),
        (KernelUse(255, STACK_BYTES + 8, 1024), True, "VE056", "candidate"),
    ],
)
def test_more_than_the_gpu_has_is_refused_by_number_and_limit(
    use: KernelUse, generated: bool, code: str, fault: str
) -> None:
    with pytest.raises(VortexError) as caught:
        check_use("score_kernel", use, "sm_90a", generated=generated)
    error = caught.value
    wanted, most = (use.shared_bytes, 232_448) if code == "VE051" else (use.stack_bytes, STACK_BYTES)
    assert error.code == code and error.fault == fault
    assert f"{wanted:,}" in error.message and f"{most:,}" in error.message
    assert ("page_size" if generated else "bf16") in error.remedy
    check_use("score_kernel", KernelUse(255, STACK_BYTES, 232_448), "sm_90a", generated=generated)

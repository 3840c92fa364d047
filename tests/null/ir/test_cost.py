"""The cost model, against sums done by hand."""

from __future__ import annotations

import pytest

from tests import sample_flows
from vortex_core import library
from vortex_core.flow.trace import Traced
from vortex_core.ir.cost import kv_row_bytes, page_cost, state_bytes, state_bytes_per_token
from vortex_core.ir.launches import step_cost
from vortex_core.ir.modelled import modelled_decode, roofline_seconds
from vortex_core.ir.program import StateDecl
from vortex_core.ir.types import Extent, make_dims
from vortex_core.specs import load_gpu, load_model

MODEL = load_model("qwen3-8b")  # 8 kv heads, 4 query heads each, 128 channels
GEOMETRY = MODEL.geometry()
BATCH, LENGTH, PAGE, TOKENS = 2, 4096, 16, 512
PAGES, ROWS = LENGTH // PAGE, BATCH * 8


def at(name: str, **knobs: object) -> Traced:
    settings = {"page_size": PAGE, "budget": str(TOKENS), "dense_layers": (), **knobs}
    return library.load(name).with_knobs(**settings)


def test_quest_by_hand() -> None:
    flow = at("quest")
    cost = step_cost(flow.program, flow.knobs, GEOMETRY, batch=BATCH, length=LENGTH)
    assert cost.kv_bytes == BATCH * TOKENS * 8 * (128 + 128) * 2
    assert cost.state_bytes == ROWS * PAGES * 2 * 128 * 2
    assert cost.query_bytes == BATCH * 32 * (128 + 128) * 2 + BATCH * 32 * 128 * 2
    # Page lists are written and read, page tables read, scores written and read.
    assert cost.index_bytes == 2 * ROWS * TOKENS // PAGE * 4 + ROWS * PAGES * (4 + 4 + 4)
    assert cost.update_bytes == ROWS * (128 * 2 + 2 * 128 * 2 / PAGE)
    assert cost.bytes == sum(getattr(cost, f"{n}_bytes") for n in ("kv", "state", "query", "index", "update"))
    assert cost.scratch_bytes == 0
    assert cost.tensor_flops == 2 * BATCH * 32 * TOKENS * (128 + 128)
    # Two products, a maximum and a sum over channels; a maximum over heads; the selection, 10 a page.
    # And forward_cache: two extrema over the tokens of a page, in one row of 16.
    assert cost.vector_flops == ROWS * PAGES * (4 * 4 * 128 + 4 + 10) + ROWS * 2 * 128
    assert (cost.launches, cost.density) == (5, TOKENS / LENGTH)
    assert state_bytes_per_token(flow.program, flow.knobs, GEOMETRY) / kv_row_bytes(GEOMETRY, 2) == 1 / PAGE
    gpu = load_gpu("h200")
    assert roofline_seconds([cost], gpu) == pytest.approx(cost.bytes / 4.28e12 + 5 * 3e-6)


def test_a_completed_page_of_quest_by_hand() -> None:
    flow = at("quest")
    page = page_cost(flow.program, flow.knobs, GEOMETRY)
    assert page.read_bytes == 8 * PAGE * 128 * 2  # keys alone
    assert page.written_bytes == 8 * 2 * 128 * 2
    assert page.flops == 8 * 2 * PAGE * 128
    nothing = page_cost(library.load("dense").program, flow.knobs, GEOMETRY)
    assert (nothing.bytes, nothing.flops) == (0, 0)
    with_values = page_cost(at("value_energy").program, flow.knobs, GEOMETRY)
    assert with_values.read_bytes == 8 * PAGE * (128 + 128) * 2
    mla = load_model("glm-4.7-flash").geometry()  # one latent row holds keys and values
    assert page_cost(at("value_energy").program, flow.knobs, mla).read_bytes == PAGE * (512 + 64) * 2


def test_a_contraction_runs_on_tensor_cores() -> None:
    flow = at("block_topk")
    cost = step_cost(flow.program, flow.knobs, GEOMETRY, batch=BATCH, length=LENGTH)
    attention = 2 * BATCH * 32 * TOKENS * (128 + 128)
    assert cost.tensor_flops == attention + ROWS * 2 * PAGES * 128


@pytest.mark.parametrize(("name", "launches"), [("dense", 2), ("quest", 5), ("gqa_block_topk", 6)])
def test_looking_across_pages_costs_one_launch(name: str, launches: int) -> None:
    flow = at(name)
    assert step_cost(flow.program, flow.knobs, GEOMETRY, batch=1, length=LENGTH).launches == launches


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("fp32", 192), ("bf16", 96), ("fp8_e4m3", 48), ("int8", 48 + 6), ("int4", 24 + 6), ("bits", 6)],
)
def test_a_state_takes_its_dtype_and_its_scales(dtype: str, expected: int) -> None:
    dims = make_dims([("row", Extent.parse(3)), ("dim", Extent.parse("D"))])
    assert state_bytes(StateDecl("s", dims, dtype), {"D": 16}) == expected


def test_a_selection_per_query_head_reads_up_to_all_of_them() -> None:
    flow = sample_flows.load("per_query_head")
    assert flow.program.per_query_head
    cost = step_cost(flow.program, flow.knobs.with_(budget="512"), GEOMETRY, batch=1, length=LENGTH)
    assert cost.kv_bytes == 4 * TOKENS * 8 * 256 * 2
    assert cost.density == 4 * TOKENS / LENGTH
    cost = step_cost(flow.program, flow.knobs.with_(budget="2048"), GEOMETRY, batch=1, length=LENGTH)
    assert cost.kv_bytes == LENGTH * 8 * 256 * 2
    assert cost.density == 1


def test_carried_states_are_written_and_mass_is_read() -> None:
    flow = at("h2o")
    cost = step_cost(flow.program, flow.knobs, GEOMETRY, batch=1, length=LENGTH)
    assert flow.program.needs_mass
    assert sorted((s.dtype, s.carried) for s in flow.program.states) == [
        ("bf16", False),
        *2 * [("fp32", True)],
    ]
    assert cost.state_bytes == 8 * PAGES * (128 * 2 + 2 * 2 * 4 + 2 * 4 * 4)


def test_reuse_and_dense_layers_of_a_whole_model() -> None:
    gpu = load_gpu("h200")

    def decode(flow: Traced) -> float:
        return modelled_decode(flow.program, flow.knobs, MODEL, gpu, 16, 32768).seconds_per_step

    flow = at("quest")
    dense = decode(at("dense"))
    assert (
        decode(flow.with_knobs(reuse_steps=4))
        < decode(flow)
        < decode(flow.with_knobs(dense_layers=(0, 1)))
        < dense
    )
    found = modelled_decode(flow.program, flow.knobs, MODEL, gpu, 16, 32768)
    assert found.seconds_per_step == pytest.approx(sum(found.parts.values()))
    assert found.speedup == pytest.approx(dense / found.seconds_per_step)
    assert found.tokens_per_second == pytest.approx(16 / found.seconds_per_step)
    assert found.density == pytest.approx(TOKENS / 32768)

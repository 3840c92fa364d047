"""What `explain` says of launches agrees with the cost model and with the buffers that are really allocated."""

from __future__ import annotations

import pytest
import torch

from tests import sample_flows
from vortex_core import library
from vortex_core.compiler import backends
from vortex_core.compiler.triton.backend import TritonFlow
from vortex_core.compiler.triton.launch_plan import launch_plan
from vortex_core.geometry import Geometry
from vortex_core.ir.launches import recording_cost, step_cost
from vortex_core.ir.modelled import kernel_seconds, modelled_decode, roofline_seconds
from vortex_core.specs import load_gpu, load_model

QWEN = Geometry(28, 8, 2, 128, 128, 128)
BATCH, LENGTH = 4, 8192


@pytest.mark.parametrize("name", library.names())
def test_the_modelled_step_is_the_sum_of_the_launches(name: str) -> None:
    """The speed-up of a whole model and the table of a layer's launches are one account."""
    model, gpu = load_model("qwen3-8b"), load_gpu("h200")
    traced = library.load(name).with_knobs(reuse_layers=1, reuse_steps=1)
    dense = (0,) if traced.program.reads_dense_mass else ()  # it selects by what that layer attends to
    traced = traced.with_knobs(dense_layers=dense)
    plan = launch_plan(traced.program, traced.knobs, model.geometry(), batch=BATCH, length=LENGTH)
    layer = sum(kernel_seconds(launch.cost, gpu) for launch in plan.launches)
    layer += sum(launch.cost.launches for launch in plan.launches) * gpu.launch_overhead_assumed
    found = modelled_decode(traced.program, traced.knobs, model, gpu, BATCH, LENGTH)
    others = 0.0
    if dense:
        plain = library.load("dense")
        attends = launch_plan(
            plain.program, plain.knobs, model.geometry(), batch=BATCH, length=LENGTH
        ).launches
        received = recording_cost(
            model.geometry(), batch=BATCH, length=LENGTH, page_size=traced.knobs.page_size
        )
        others = roofline_seconds([*(launch.cost for launch in attends), received], gpu)
    sparse = (model.layers - len(dense)) * layer
    beside = found.parts["weights"] + found.parts["layers"]
    assert found.parts["layers"] == pytest.approx(model.layers * gpu.layer_overhead)
    assert found.seconds_per_step - beside == pytest.approx(sparse + others)
    cost = step_cost(traced.program, traced.knobs, model.geometry(), batch=BATCH, length=LENGTH)
    assert sum(launch.bytes for launch in plan.launches) == pytest.approx(cost.bytes)
    assert sum(launch.flops for launch in plan.launches) == pytest.approx(cost.flops)


def test_values_passed_between_launches_are_written_and_read() -> None:
    traced = library.load("twilight")
    plan = launch_plan(traced.program, traced.knobs, QWEN, batch=BATCH, length=LENGTH)
    moved = {launch.name: launch.cost.scratch_bytes for launch in plan.launches}
    assert moved["score"] == sum(b.bytes for b in plan.buffers if b.written_by == "score")
    assert moved["rows"] >= moved["score"] > 0
    assert all(not moved[name] for name in moved.keys() - {"score", "rows"})


@pytest.mark.parametrize(
    ("name", "length"), [*((name, LENGTH) for name in library.names()), ("block_topk", 1 << 17)]
)
def test_scratch_is_that_of_the_workspace(name: str, length: int) -> None:
    traced = library.load(name)
    plan = launch_plan(traced.program, traced.knobs, QWEN, batch=BATCH, length=length)
    flow = backends.get("triton").compile(traced.program, traced.knobs, QWEN)
    assert isinstance(flow, TritonFlow)
    launches = {launch.name for launch in plan.launches}
    assert launches >= {"attend", "merge"}
    generated = {"update": flow.code.update, "score": flow.code.score, "rows": flow.code.rows}
    assert {kind: kind in launches for kind in generated} == generated
    if not traced.program.selects_everything:
        space = flow.workspace(BATCH, length // traced.knobs.page_size, torch.device("cpu"))
        assert plan.scratch_bytes == pytest.approx(space.nbytes, rel=0.05)


@pytest.mark.parametrize(("name", "launches"), [("dense", 2), ("block_topk", 4), ("quest", 4), ("snapkv", 5)])
def test_a_step_takes_few_launches(name: str, launches: int) -> None:
    """Score, (rows,) select, attend, merge: at most three and a merge where nothing looks across pages."""
    traced = library.load(name)
    plan = launch_plan(traced.program, traced.knobs, QWEN, batch=BATCH, length=LENGTH)
    assert sum(launch.name != "update" for launch in plan.launches) == launches
    assert plan.launches[-1].name == "merge"


@pytest.mark.parametrize(
    ("name", "selects"), [("twilight", 1), ("threshold", 1), ("shadowkv", 2), ("three_streams", 3)]
)
def test_a_selection_is_one_launch_a_stream(name: str, selects: int) -> None:
    """And nothing else: neither top-p, threshold, fractions nor unions prepare anything in launches of their own."""
    traced = sample_flows.load(name)
    plan = launch_plan(traced.program, traced.knobs, QWEN, batch=BATCH, length=LENGTH)
    names = [launch.name for launch in plan.launches if launch.name not in ("update", "score", "rows")]
    assert names == ["select"] * selects + ["attend", "merge"]
    flow = backends.get("triton").compile(traced.program, traced.knobs, QWEN)
    assert isinstance(flow, TritonFlow)
    space = flow.workspace(BATCH, LENGTH // traced.knobs.page_size, torch.device("cpu"))
    assert plan.scratch_bytes == pytest.approx(space.nbytes, rel=0.05)
    assert (space.marks is not None) == (selects > 1)


def test_a_barrier_is_named() -> None:
    traced = library.load("snapkv")
    plan = launch_plan(traced.program, traced.knobs, QWEN, batch=BATCH, length=LENGTH)
    (rows,) = [launch for launch in plan.launches if launch.name == "rows"]
    assert "softmax" in rows.why
    assert {b.read_by for b in plan.buffers} == {"rows", "select", "attend"}

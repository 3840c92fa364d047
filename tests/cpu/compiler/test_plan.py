"""What `explain` says of launches agrees with the cost model and with the buffers that are really allocated."""

from __future__ import annotations

import pytest
import torch

from tests import sample_flows
from vortex_core import library
from vortex_core.compiler import backends
from vortex_core.compiler.interface import Geometry
from vortex_core.compiler.triton.backend import TritonFlow
from vortex_core.compiler.triton.launch_plan import launch_plan
from vortex_core.ir.cost import step_cost

QWEN = Geometry(28, 8, 2, 128, 128, 128)
BATCH, LENGTH = 4, 8192


@pytest.mark.parametrize(
    ("name", "length"), [*((name, LENGTH) for name in library.names()), ("block_topk", 1 << 17)]
)
def test_bytes_and_scratch_are_those_of_the_model_and_the_workspace(name: str, length: int) -> None:
    traced = library.load(name)
    plan = launch_plan(traced.program, traced.knobs, QWEN, batch=BATCH, length=length)
    cost = step_cost(traced.program, traced.knobs, QWEN, batch=BATCH, length=length)
    # The model leaves out state updates and the pooling of shared selections.
    assert sum(launch.name not in ("update", "pool") for launch in plan.launches) == cost.launches
    assert sum(launch.bytes for launch in plan.launches) >= 0.95 * cost.bytes
    if "rows" not in [launch.name for launch in plan.launches]:  # what passes through scratch is on top
        assert sum(launch.bytes for launch in plan.launches) <= 1.1 * cost.bytes
    flow = backends.get("triton").compile(traced.program, traced.knobs, QWEN)
    assert isinstance(flow, TritonFlow)
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

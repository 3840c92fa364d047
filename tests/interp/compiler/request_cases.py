"""States of requests under the Triton interpreter: selected and carried as the oracle does."""

from __future__ import annotations

import pytest
import torch

from evaluators.parity import compare
from tests.cpu.compiler.test_request_states import FLOWS, agree, flow
from vortex_core import library
from vortex_core.compiler import backends
from vortex_core.compiler.interface import BatchView
from vortex_core.geometry import Geometry


@pytest.mark.parametrize(("group", "kv_heads", "dim"), [(3, 2, 24), (1, 1, 16)])
@pytest.mark.parametrize("name", sorted(FLOWS))
def test_triton_selects_and_carries_what_the_oracle_does(
    name: str, group: int, kv_heads: int, dim: int
) -> None:
    # The interpreter rounds 1.97 to 1 in fp8.
    agree(flow(name, "fp16"), Geometry(1, kv_heads, group, dim, dim, dim), "triton", group)


@pytest.mark.parametrize("name", ["freekv", "tokenselect_cached"])
@pytest.mark.parametrize(
    "geometry", [Geometry(1, 2, 3, 16, 16, 16), Geometry(1, 1, 5, 48, 16, 32)], ids=["gqa", "mla"]
)
def test_library_flows_hold_against_the_oracle(name: str, geometry: Geometry) -> None:
    traced = library.load(name)
    found = compare(
        traced.program, traced.knobs.with_(page_size=8, budget="40"), geometry, backend="triton",
        pages=(0.5, 1, 2.1, 9.5), seeds=(0,), tie_tolerance=1e-4,
    )  # fmt: skip
    assert found.holds, found


def test_steps_whose_rows_select_in_turn_carry_what_is_theirs() -> None:
    """A row that keeps its list is of length 0 to the indexer: it writes nothing."""
    traced, geometry = flow("steps"), Geometry(1, 1, 2, 16, 16, 16)
    compiled = backends.get("triton").compile(traced.program, traced.knobs, geometry)
    states = compiled.new_states(16, torch.device("cpu"), 3)
    seats = torch.tensor([2, 0])
    states.begin(seats)
    table = torch.arange(8, dtype=torch.int32).view(2, 4)
    q = torch.randn(2, 2, 16, generator=torch.Generator().manual_seed(0))
    for lengths in ([32, 0], [32, 17], [0, 18]):
        compiled.select(
            q, states, BatchView(table, torch.tensor(lengths), torch.tensor([3, 3]), 32, seats=seats), 0
        )
    (field,) = states.requests  # type: ignore[attr-defined]
    assert field.data[0, :3].tolist() == [4.0, 2.0, 4.0]  # init=2, two steps each; nobody on seat 1

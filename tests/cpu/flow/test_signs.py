"""`ops.signs`: exact in fp32, the same everywhere, and as spread out as coin tosses. `ops.hadamard`: Sylvester's."""

from __future__ import annotations

import pytest
import torch
from scipy.linalg import hadamard

from vortex_core.compiler.evaluate import Evaluator
from vortex_core.errors import VortexError
from vortex_core.flow import ops
from vortex_core.flow.vtensor import current
from vortex_core.geometry import Geometry
from vortex_core.ir.graph import GraphBuilder


def matrix(rows: int, seed: int, dtype: torch.dtype, dim: int = 128) -> torch.Tensor:
    builder = GraphBuilder("index")
    token = current.set(builder)
    try:
        found = ops.signs(bit=rows, dim="D", seed=seed)
    finally:
        current.reset(token)
    graph = builder.graph({"w": found._id})
    geometry = Geometry(1, 1, 1, dim, dim, dim)
    return Evaluator(graph, geometry, 16, dtype, contract=False).run({})[found._id]


@pytest.mark.parametrize("rows", [16, 64, 128, 1000])
@pytest.mark.parametrize("seed", [0, 1, 7, 999])
def test_rows_and_columns_look_like_coin_tosses(rows: int, seed: int) -> None:
    w = matrix(rows, seed, torch.float64)
    assert torch.equal(w, matrix(rows, seed, torch.float32).double())
    assert set(w.unique().tolist()) == {-1.0, 1.0}
    assert w.mean().abs() < 4 / (rows * 128) ** 0.5 + 0.01
    for x in (w, w.T):
        alike = (x @ x.T) / x.shape[1]
        alike.fill_diagonal_(0)
        spread = alike.square().mean().sqrt() * x.shape[1] ** 0.5
        assert 0.85 < spread < 1.15  # 1 for coin tosses
        assert alike.abs().max() * x.shape[1] ** 0.5 < 6.5  # so no two are the same


def test_a_seed_gives_other_signs() -> None:
    same = (matrix(64, 0, torch.float64) == matrix(64, 1, torch.float64)).double().mean()
    assert 0.45 < same < 0.55


@pytest.mark.parametrize("size", [2, 8, 16, 256])
def test_hadamard_matrices_are_sylvesters(size: int) -> None:
    builder = GraphBuilder("index")
    token = current.set(builder)
    try:
        found = ops.hadamard(code=size, dim=size)
    finally:
        current.reset(token)
    graph = builder.graph({"h": found._id})
    geometry = Geometry(1, 1, 1, size, size, size)
    values = Evaluator(graph, geometry, 16, torch.float32, contract=False).run({})[found._id]
    assert values.tolist() == hadamard(size).tolist()
    assert torch.equal(values @ values.T, size * torch.eye(size))


@pytest.mark.parametrize("dims", [{"a": 16}, {"a": 16, "b": 8}, {"a": 12, "b": 12}, {"a": "D", "b": "D"}])
def test_other_sizes_of_hadamard_matrices_are_refused(dims: dict[str, int | str]) -> None:
    token = current.set(GraphBuilder("index"))
    try:
        with pytest.raises(VortexError, match="VF016"):
            ops.hadamard(**dims)
    finally:
        current.reset(token)

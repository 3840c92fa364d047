"""Principal directions: against singular vectors, where the answer is known, and where eigenvalues meet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vortex_core.compiler import backends
from vortex_core.compiler.interface import LayerKV
from vortex_core.errors import VortexError
from vortex_core.flow.emit import emit
from vortex_core.geometry import Geometry
from vortex_core.ir.graph import GraphBuilder
from vortex_core.ir.opset import OPS
from vortex_core.sandbox.jail import run

T = torch.Tensor
ROWS, CHANNELS, RANKS = st.sampled_from([1, 2, 7, 8, 16, 33]), st.sampled_from([4, 16, 24]), st.integers(1, 8)


def directions(x: T, rank: int) -> T:
    """`[..., rank, dim]` of `[..., rows, dim]`."""
    math = OPS["principal"].math
    assert math is not None
    attrs = {"over": "row", "dim": "dim", "into": "rank", "rank": rank}
    found: T = math(torch, [x], {"row": -2, "dim": -1}, attrs)
    return found


def drawn(rows: int, dim: int, seed: int, decay: float = 0.0) -> T:
    """Rows of singular values that fall by `decay` in the exponent."""
    g = torch.Generator().manual_seed(seed)
    u, s, v = torch.linalg.svd(torch.randn(rows, dim, generator=g, dtype=torch.float64), full_matrices=False)
    return u * torch.exp(-decay * torch.arange(len(s))) @ v if decay else (u * s) @ v


def share(x: T, basis: T) -> float:
    """Of the rows' energy, what lies in the directions."""
    return float(((x @ basis.transpose(-1, -2)) ** 2).sum() / (x**2).sum())


@given(ROWS, CHANNELS, RANKS, st.integers(0, 1000))
def test_directions_are_orthonormal_or_nothing(rows: int, dim: int, rank: int, seed: int) -> None:
    x = drawn(rows, dim, seed)
    basis = directions(x, rank)
    assert basis.shape == (rank, dim)
    there = min(rank, rows, dim)
    expected = torch.diag((torch.arange(rank) < there).double())
    torch.testing.assert_close(basis @ basis.T, expected, atol=1e-9, rtol=0)
    if there == min(rows, dim):
        assert share(x, basis) == pytest.approx(1.0)  # no more directions than asked for


@given(st.sampled_from([8, 16, 64]), st.integers(1, 8), st.integers(0, 1000))
def test_hardly_less_energy_than_the_best_directions(rows: int, rank: int, seed: int) -> None:
    x = drawn(rows, 32, seed)
    best = torch.linalg.svd(x, full_matrices=False)[2][:rank]
    assert share(x, best) - 0.09 <= share(x, directions(x, rank)) <= share(x, best) + 1e-9


@given(st.integers(0, 1000), st.integers(1, 5))
def test_singular_vectors_where_they_stand_apart(seed: int, rank: int) -> None:
    x = drawn(16, 24, seed, decay=1.2)
    best = torch.linalg.svd(x, full_matrices=False)[2][:rank]
    close = (directions(x, rank) * best).sum(-1).abs()
    assert bool((close > 0.98).all()), close


@given(st.integers(0, 1000), st.sampled_from([0.0, 0.3]))
def test_precision_does_not_matter_where_eigenvalues_meet(seed: int, decay: float) -> None:
    x = torch.eye(16, 24, dtype=torch.float64) if seed % 5 == 0 else drawn(16, 24, seed, decay)
    wide, single = directions(x, 6), directions(x.float(), 6)
    torch.testing.assert_close(single.double(), wide, atol=2e-4, rtol=0)


def test_claims_hold() -> None:
    traits = OPS["principal"].traits
    x = drawn(16, 24, 1)
    assert traits.scale == "invariant" and traits.keeps_zero and traits.bounded and not traits.continuous
    torch.testing.assert_close(directions(2.5 * x, 4), directions(x, 4))
    assert bool((directions(torch.zeros(16, 24), 4) == 0).all())
    assert bool((directions(x, 4).abs() <= 1).all())
    tiny = torch.zeros(16, 24, dtype=torch.float64)
    tiny[0, 0] = 1e-12
    assert float(directions(tiny, 4).abs().max()) == pytest.approx(1.0)  # it jumps at 0


def test_leading_axes_are_matrices_of_their_own() -> None:
    x = torch.stack([drawn(8, 12, n) for n in range(6)]).view(2, 3, 8, 12)
    found = directions(x, 3)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(found[i, j], directions(x[i, j], 3))


FLOW = """
from vortex_core import ops, vFlow

class B(vFlow):
    def create_cache(self, page):
        return {"basis": page.state(rank=3, dim=page.head_dim, dtype="fp32")}

    def forward_cache(self, page):
        return {"basis": LINE}

    def forward_indexer(self, q, cache):
        return ops.topk((q * cache["basis"]).sum("dim").max("rank", "head"))
"""
LINE = 'page.k.principal("token", "dim", rank=3)'


@pytest.mark.parametrize("backend", ["oracle", "torch"])
@pytest.mark.parametrize("page_size", [8, 16])
def test_pages_of_a_backend(backend: str, page_size: int) -> None:
    traced = run(FLOW.replace("LINE", LINE), "b.py").with_knobs(page_size=page_size)
    geometry = Geometry(1, 2, 2, 12, 12, 12)
    k = torch.randn(2, 5, page_size, 12, generator=torch.Generator().manual_seed(0))
    flow = backends.get(backend).compile(traced.program, traced.knobs, geometry)
    states: Any = flow.new_states(5, torch.device("cpu"))
    flow.update(states, LayerKV(k, k), torch.tensor([4, 0, 2]), 0)
    (field,) = states.fields.values()
    found = field.read(slice(None), slice(None), torch.float64)
    for page in (0, 2, 4):
        torch.testing.assert_close(found[:, page], directions(k[:, page].double(), 3), atol=2e-5, rtol=0)
    assert not found[:, 1].any()


def test_equal_programs_meet_and_source_comes_back() -> None:
    plain = run(FLOW.replace("LINE", LINE), "b.py")
    scaled = run(FLOW.replace("LINE", '(3 * page.k).principal("token", "dim", rank=3)'), "b.py")
    renamed = run(FLOW.replace("LINE", 'page.k.rename(token="row").principal("row", rank=3)'), "b.py")
    assert scaled.ir_hash == plain.ir_hash
    text = emit(plain.program, plain.knobs, "again", "Again.")
    assert LINE in text
    assert run(text, "again.py").ir_hash == plain.ir_hash
    assert renamed.ir_hash != plain.ir_hash  # the name of a dimension is part of a program, as everywhere


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('page.k.split("dim", part=2).principal("token", "dim", rank=3)', "VF016"),
        ('page.k.mean("token").principal("token", "dim", rank=3)', "VF010"),
        ('page.k.principal("token", "token", rank=3)', "VF016"),
        ('page.k.principal("dim", "token", rank=3)', "VF016"),  # 1,024 channels would be the rows
        ('page.k.principal("token", "dim", rank=17)', "VF016"),
        ('page.k.principal("token", "dim", rank=0)', "VF016"),
        ('page.k.principal("token", "dim")', "VF016"),
        ('page.k.principal("token", "dim", page=3)', "VF017"),
        ('page.k.principal("token", "dim", dim=3)', "VF017"),
    ],
)
def test_what_is_refused(line: str, code: str) -> None:
    with pytest.raises(VortexError) as caught:
        run(FLOW.replace("LINE", line), "b.py")
    assert caught.value.code == code, caught.value


def test_pages_only() -> None:
    builder = GraphBuilder("index")
    with pytest.raises(VortexError) as caught:
        builder.emit("principal", [builder.emit("q")], over="head", dim="dim", into="rank", rank=2)
    assert "forward_cache" in str(caught.value)

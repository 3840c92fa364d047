"""State dtypes: what is stored is within the stated error, packed into the bytes that were promised."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vortex_core.compiler.states import ERROR, Field
from vortex_core.ir.cost import state_bytes
from vortex_core.ir.program import SCALED, STATE_DTYPES, StateDecl
from vortex_core.ir.types import Extent, make_dims

SHAPES = st.sampled_from([(), (1,), (2,), (3,), (7,), (16,), (2, 5), (3, 8), (2, 3, 9)])
SMALLEST = {"fp32": 2.0**-126, "bf16": 2.0**-126, "fp16": 2.0**-14, "fp8_e4m3": 2.0**-6, "fp8_e5m2": 2.0**-14}
LARGEST = {"fp32": 3.4e38, "bf16": 3.38e38, "fp16": 65504.0, "fp8_e4m3": 448.0, "fp8_e5m2": 57344.0}


def field(dtype: str, shape: tuple[int, ...], heads: int = 2, pages: int = 5) -> Field:
    dims = make_dims([(f"d{i}", Extent.parse(n)) for i, n in enumerate(shape)])
    return Field.allocate(StateDecl("s", dims, dtype), shape, heads, pages, torch.device("cpu"))


def stored(dtype: str, x: torch.Tensor) -> torch.Tensor:
    """`x: [head, page, *dims]` written to scattered pages of a larger pool and read back."""
    held = field(dtype, tuple(x.shape[2:]), x.shape[0], 2 * x.shape[1] + 1)
    pages = torch.arange(x.shape[1]).flip(0) * 2 + 1
    held.write(slice(None), pages, x)
    untouched = held.read(slice(None), torch.arange(0, 2 * x.shape[1] + 1, 2), torch.float64)
    assert (untouched == (-1 if dtype == "bits" else 0)).all() or dtype == "int4"
    return held.read(slice(None), pages, torch.float64)


@given(st.data(), SHAPES, st.floats(-3, 3), st.integers(0, 999))
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "fp8_e4m3", "fp8_e5m2"])
def test_floats(dtype: str, data: st.DataObject, shape: tuple[int, ...], scale: float, seed: int) -> None:
    x = (
        torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        * 10**scale
    )
    found = stored(dtype, x)
    inside = x.clamp(-LARGEST[dtype], LARGEST[dtype])
    assert ((found - inside).abs() <= ERROR[dtype] * inside.abs().clamp(min=SMALLEST[dtype])).all()
    assert torch.equal(stored(dtype, found), found)  # what is storable is kept


@given(SHAPES.filter(bool), st.floats(-3, 3), st.integers(0, 999))
@pytest.mark.parametrize("dtype", SCALED)
def test_integers(dtype: str, shape: tuple[int, ...], scale: float, seed: int) -> None:
    x = (
        torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        * 10**scale
    )
    x[0, 0] = 0.0
    found = stored(dtype, x)
    row = x.abs().amax(-1, keepdim=True)
    assert (
        (found - x).abs()
        <= ERROR[dtype] * row + {"int8": 127, "int4": 7, "int3": 7, "int2": 3}[dtype] * 2.0**-25
    ).all()
    assert (found[0, 0] == 0).all()


@given(st.sampled_from([(2, 5), (3, 8), (2, 3, 9)]), st.data(), st.integers(0, 999))
@pytest.mark.parametrize("dtype", SCALED)
def test_a_scale_belongs_to_the_dimension_declared_last(
    dtype: str, shape: tuple[int, ...], data: st.DataObject, seed: int
) -> None:
    """Moving the dimension to the end, storing and moving it back is the definition."""
    axis = data.draw(st.integers(0, len(shape) - 1))
    dims = make_dims([(f"d{i}", Extent.parse(n)) for i, n in enumerate(shape)])
    order = [n for n, _ in dims if n != f"d{axis}"] + [f"d{axis}"]
    decl = StateDecl.of("s", dims, dtype, False, 0.0, order)
    assert decl.scale_dim == ("" if axis == len(shape) - 1 else f"d{axis}")
    held = Field.allocate(decl, shape, 2, 3, torch.device("cpu"))
    x = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    held.write(slice(None), torch.arange(3), x)
    want = stored(dtype, x.movedim(2 + axis, -1)).movedim(-1, 2 + axis)
    assert torch.equal(held.read(slice(None), torch.arange(3), torch.float64), want)
    assert held.nbytes == 6 * state_bytes(decl, {})


@given(SHAPES.filter(bool), st.integers(0, 999))
@pytest.mark.parametrize(("dtype", "top"), [("int3", 7), ("int2", 3)])
def test_few_bits_use_every_level(dtype: str, top: int, shape: tuple[int, ...], seed: int) -> None:
    """Odd multiples of the scale, each the nearest: nothing of the range is left to a level that no number takes."""
    x = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scale = (x.abs().amax(-1, keepdim=True) / top).half().double()
    levels = torch.arange(-top, top + 1, 2, dtype=torch.float64)
    nearest = levels[((x / scale).unsqueeze(-1) - levels).abs().argmin(-1)]
    assert torch.equal(stored(dtype, x), nearest * scale)


@given(SHAPES, st.integers(0, 999))
def test_bits_are_signs(shape: tuple[int, ...], seed: int) -> None:
    x = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(seed))
    x[0, 0] = 0.0
    assert torch.equal(stored("bits", x), torch.where(x < 0, -1.0, 1.0).double())


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "fp8_e4m3", "fp8_e5m2", *SCALED])
def test_what_is_too_large_saturates(dtype: str) -> None:
    x = torch.tensor([1e39, -1e39, torch.inf, -torch.inf], dtype=torch.float64).expand(2, 3, 4)
    found = stored(dtype, x)
    assert found.isfinite().all()
    assert (found.sign() == x.sign()).all()


@given(SHAPES)
@pytest.mark.parametrize("dtype", STATE_DTYPES)
def test_bytes_are_as_promised(dtype: str, shape: tuple[int, ...]) -> None:
    if not shape and dtype in SCALED:
        return  # refused by the verifier: they scale along a dimension
    held = field(dtype, shape)
    assert held.nbytes == 2 * 5 * state_bytes(held.decl, {})
    count = 1
    for n in shape:
        count *= n
    width = {
        "fp32": 4,
        "bf16": 2,
        "fp16": 2,
        "fp8_e4m3": 1,
        "fp8_e5m2": 1,
        "int8": 1,
        "int4": 0.5,
        "int3": 0.375,
        "int2": 0.25,
        "bits": 0.125,
    }
    last = shape[-1] if shape else 1
    rows = count // last
    padding = rows * {"int4": 0.5, "int3": 21 / 8, "int2": 14 / 8, "bits": 7 / 8}.get(dtype, 0)
    scales = 2 * rows if dtype in SCALED else 0
    assert (
        count * width[dtype] + scales <= state_bytes(held.decl, {}) <= count * width[dtype] + scales + padding
    )


@given(SHAPES, st.integers(0, 999))
@pytest.mark.parametrize("dtype", STATE_DTYPES)
def test_entries_are_read_in_their_order(dtype: str, shape: tuple[int, ...], seed: int) -> None:
    if not shape and dtype in SCALED:
        return
    generator = torch.Generator().manual_seed(seed)
    held = field(dtype, shape)
    held.write(slice(None), torch.arange(5), torch.randn(2, 5, *shape, generator=generator))
    heads, pages = (torch.randint(n, (3, 4), generator=generator) for n in (2, 5))
    found = held.rows(heads * 5 + pages, torch.float32)
    for at in [(0, 0), (2, 3), (1, 1)]:
        assert torch.equal(found[at], held.read(int(heads[at]), int(pages[at]), torch.float32))
    none = torch.zeros(3, 2, 0, dtype=torch.int64)  # of sequences that have no complete page
    assert held.rows(none, torch.float32).shape == (3, 2, 0, *shape)
    assert held.read(slice(None), none[0, 0], torch.float32).shape == (2, 0, *shape)

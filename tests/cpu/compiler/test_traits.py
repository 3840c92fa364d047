"""What operators claim of themselves holds for their definitions: a false trait would make the normal form wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from vortex_core.ir.opset import OPS, OpSpec
from vortex_core.ir.traits import NOTHING

T = torch.Tensor
AXES = {"x": 1}
ATTRS: dict[str, dict[str, Any]] = {
    **{name: {"dims": ("x",)} for name in ("sum", "mean", "amax", "amin")},
    **{name: {"dim": "x"} for name in ("softmax", "cumsum")},
    "conv": {"dim": "x", "weights": (0.5, 1.0, -2.0)},
    "maxpool": {"dim": "x", "size": 3},
    "largest": {"dim": "x", "k": 2},
    "cast": {"dtype": "fp16"},
}
# Sources have no definition here, selections are the backends'; shapes move values (test_operators.test_shapes).
# Decompositions are of matrices: test_principal.
COMPUTED = sorted(
    n for n, s in OPS.items() if s.math is not None and s.group not in ("shape", "logic", "decompose")
)


def drawn(spec: OpSpec, seed: int, low: float = -3.0, high: float = 3.0) -> list[T]:
    """Inputs `[64, 9]`, a fifth of them whole numbers, so that equal values and zeros occur."""
    g = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(spec.arity):
        x = low + (high - low) * torch.rand(64, 9, generator=g, dtype=torch.float64)
        found.append(torch.where(torch.rand(64, 9, generator=g) < 0.2, x.round(), x))
    return found


def value(spec: OpSpec, args: list[T]) -> T:
    assert spec.math is not None
    return spec.math(torch, args, AXES, ATTRS.get(spec.name, {})).double()


@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.parametrize("seed", range(4))
def test_claims_hold(name: str, seed: int) -> None:
    spec = OPS[name]
    claim, args = spec.traits, drawn(spec, seed)
    result = value(spec, args)
    known = result[~torch.isnan(result)]
    if claim.sign == "positive":
        assert bool((known > 0).all())
    if claim.sign == "nonneg":
        assert bool((known >= 0).all())
    if claim.bounded:
        assert bool((known.abs() <= 1).all())
    if claim.picks:
        values = set(torch.stack(args).flatten().tolist())
        assert set(result.flatten().tolist()) <= values
    if claim.keeps_zero:
        assert bool((value(spec, [torch.zeros_like(x) for x in args]) == 0).all())
    if claim.scale:
        scaled = value(spec, [2.5 * x for x in args])
        assert torch.allclose(scaled, 2.5 * result if claim.scale == "linear" else result)
    if claim.mirror:
        assert torch.equal(value(OPS[claim.mirror], [-x for x in args]), -result)
        assert OPS[claim.mirror].traits.mirror == name


@pytest.mark.parametrize("name", [n for n in COMPUTED if OPS[n].traits.increasing])
def test_increasing_operators_keep_the_order(name: str) -> None:
    spec = OPS[name]
    low = 0.0 if spec.traits.increasing == "nonneg" else -4.0
    x = torch.linspace(low, 4.0, 200, dtype=torch.float64)
    assert bool((value(spec, [x]).diff() > 0).all())


@pytest.mark.parametrize("name", [n for n in COMPUTED if OPS[n].traits.scalar is not None])
def test_folded_constants_are_what_is_computed(name: str) -> None:
    spec = OPS[name]
    assert spec.traits.scalar is not None
    for x in (-2.5, -1.0, 0.0, 0.3, 1.0, 7.5):
        try:
            folded = spec.traits.scalar(x)
        except ValueError:
            folded = math.nan
        computed = float(value(spec, [torch.tensor([x], dtype=torch.float64)]))
        assert folded == pytest.approx(computed, rel=1e-12) or (
            not math.isfinite(computed) and math.isnan(folded)
        )


@pytest.mark.parametrize("name", [n for n in COMPUTED if OPS[n].traits.neutral is not None])
def test_padding_with_the_neutral_element_changes_nothing(name: str) -> None:
    spec = OPS[name]
    (x,) = drawn(spec, 1)
    neutral = torch.full((64, 3), float(spec.traits.neutral or 0.0), dtype=torch.float64)
    padded, plain = value(spec, [torch.cat([x, neutral], 1)]), value(spec, [x])
    assert torch.allclose(padded if spec.group == "reduce" else padded[:, :9], plain)


@pytest.mark.parametrize("name", [n for n in COMPUTED if not OPS[n].traits.continuous])
def test_what_is_said_to_jump_jumps(name: str) -> None:
    spec = OPS[name]
    args = [torch.zeros(1, 9, dtype=torch.float64) for _ in range(spec.arity)]
    tiny = torch.tensor([[1e-12, -1e-12] * 4 + [1e-12]], dtype=torch.float64)
    nudged = [args[0] + tiny, *args[1:]]
    assert bool(((value(spec, args) - value(spec, nudged)).abs() >= 1).any())


def test_an_operator_without_traits_claims_nothing() -> None:
    assert OPS["neg"].traits == NOTHING
    assert (NOTHING.increasing, NOTHING.sign, NOTHING.scale, NOTHING.neutral) == ("", "", "", None)

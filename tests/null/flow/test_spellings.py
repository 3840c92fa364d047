"""What authors of attention code write by habit: it is legal and means the program it should mean."""

from __future__ import annotations

import pytest

from vortex_core.errors import VortexError
from vortex_core.sandbox.jail import run

SOURCE = """
import math
from vortex_core import ops, vFlow
class W(vFlow):
    def create_cache(self, page):
        return {{"c": page.state(dim="D"), "r": page.state(row=page.size, dim="D")}}
    def forward_cache(self, page):
        return {{"c": page.k.mean("token"), "r": page.k.rename(token="row")}}
    def forward_indexer(self, q, cache):
        c, r = cache["c"], cache["r"]
        x = q * c
        y = q - c
        z = ops.constant(1) * ({index})
        return ops.topp((x * z).exp().sum('dim', *(d for d in z.dims if d == 'row')), 0.5)
"""


def program(index: str) -> str:
    return run(SOURCE.format(index=index), "w.py").ir_hash


SAME = [
    # scales
    ('ops.size("D") ** -0.5', '1 / ops.size("D").sqrt()'),
    ('x.size("dim") ** -0.5', '1 / ops.size("D").sqrt()'),
    ('math.sqrt(ops.size("D"))', 'ops.size("D").sqrt()'),
    ('math.sqrt(x.size("dim"))', 'ops.sqrt(ops.size("D"))'),
    ('1.0 / math.sqrt(x.size("dim"))', '1 / ops.size("D").sqrt()'),
    ('math.pow(ops.size("D"), -0.5)', '1 / ops.size("D").sqrt()'),
    ('ops.rsqrt(ops.size("D"))', '1 / ops.size("D").sqrt()'),
    ('ops.size("D").rsqrt()', '1 / ops.size("D").sqrt()'),
    ('1 / x.size("dim")', '1 / ops.size("D")'),
    ('x.size("dim") - 1', 'ops.size("D") - 1'),
    ('2 * (x.size("dim") + 1)', '2 * ops.size("D") + 2'),
    ('x.size("dim") / 2', 'ops.size("D/2")'),
    ('0.25 * x.size("dim")', 'ops.size("D/4")'),
    ('x.size("dim") / r.size("row")', 'ops.size("D") / ops.size("S")'),
    # powers
    # several dimensions, positions, gathers
    ('r.softmax(dim="row")', 'r.softmax("row")'),
    ('r.softmax(["row", "page"])', '(lambda w: w / w.sum("page", "row"))((r - r.max("page", "row")).exp())'),
    ('r.take(-1, "row")', 'ops.where(ops.arange(row="S") == ops.size("S") - 1, r, 0.0).sum("row")'),
    ('r.slice("row", "S-1", "S").sum("row")', '(r.take(-1, "row") * (ops.arange(row=1) + 1)).sum("row")'),
    ('r.slice("row", -1, None).sum("row")', '(r.take(-1, "row") * (ops.arange(row=1) + 1)).sum("row")'),
    ('r.take(r.argmax("row"), "row")', 'ops.where(ops.arange(row="S") == r.argmax("row"), r, 0.0).sum("row")'),
    ('r.argmax("row")', '(r.largest(1, "row") * ops.arange(row="S")).sum("row")'),
    ("y ** 2", "y * y"),
    ("y ** 2.0", "y * y"),
    ("y.pow(3)", "y * y * y"),
    ("y.abs() ** 0.5", "y.abs().sqrt()"),
    ("y.abs() ** 0.25", "y.abs().sqrt().sqrt()"),
    ("y.abs() ** 1.5", "y.abs() * y.abs().sqrt()"),
    ("y ** -1", "1 / y"),
    ("y ** -2", "1 / (y * y)"),
    ("y.abs() ** (1 / 3)", "(y.abs().log() * (1 / 3)).exp()"),
    ("2 ** y", "(y * math.log(2)).exp()"),
    ("y.rsqrt()", "1 / y.sqrt()"),
    ("y.reciprocal()", "1 / y"),
    ("pow(y, 2)", "y * y"),
    # extremes and limits
    ("ops.max(x, y)", "ops.maximum(x, y)"),
    ("ops.min(x, 0)", "ops.minimum(x, 0)"),
    ("x.maximum(y)", "ops.maximum(x, y)"),
    ("ops.max(r, 'row')", "r.max('row')"),
    ("r.amax('row')", "r.max('row')"),
    ("r.amin(dim='row')", "r.min('row')"),
    ("x.clamp(min=0)", "ops.maximum(x, 0)"),
    ("x.clamp(max=2.0)", "ops.minimum(x, 2)"),
    ("x.clip(-1, 1)", "ops.minimum(ops.maximum(x, -1), 1)"),
    ("ops.clamp(x, min=0, max=1)", "x.clamp(0, 1)"),
    ("x.clamp_min(0.5)", "ops.maximum(x, 0.5)"),
    ("x.clamp(min=y)", "ops.maximum(x, y)"),
    ("abs(y)", "y.abs()"),
    ("ops.abs(y)", "y.abs()"),
    ("ops.relu(y)", "y.relu()"),
    # reductions
    ("r.sum(dim='row')", "r.sum('row')"),
    ("r.mean(axis='row', keepdim=False)", "r.mean('row')"),
    ("(x * r).sum(dim=('row', 'head'))", "(x * r).sum('row', 'head')"),
    ("(x * r).sum(['row', 'head'])", "(x * r).sum('row', 'head')"),
    ("ops.sum(r, dim='row')", "r.sum('row')"),
    ("r.std('row')", "r.var('row').sqrt()"),
    ("r.norm(dim='row')", "(r * r).sum('row').sqrt()"),
    ("r.logsumexp('row')", "r.max('row') + (r - r.max('row')).exp().sum('row').log()"),
    ("ops.logsumexp(r, dim='row')", "r.logsumexp('row')"),
    # masks
    ("(x > y) * y", "ops.where(x > y, 1.0, 0.0) * y"),
    ("(x > 0).float()", "ops.where(x > 0, 1.0, 0.0)"),
    ("x.masked_fill(y < 0, 0)", "ops.where(y < 0, 0, x)"),
    ("(r > 0).sum('row')", "ops.where(r > 0, 1, 0).sum('row')"),
    # rounding and remainders
    ("x.round()", "(x + 0.5).floor()"),
    ("round(x)", "(x + 0.5).floor()"),
    ("x // 2", "(x / 2).floor()"),
    ("x % 2", "x - 2 * (x / 2).floor()"),
    ("x.ceil()", "-((-x).floor())"),
    ("sum([x, y])", "x + y"),
]  # fmt: skip


@pytest.mark.parametrize(("written", "meant"), SAME, ids=[w for w, _ in SAME])
def test_a_habit_is_the_program_it_means(written: str, meant: str) -> None:
    assert program(written) == program(meant)


def test_different_powers_are_different_programs() -> None:
    found = [program(f"y.abs() ** {p}") for p in (0.5, 0.25, 1.5, -0.5, -1, 2, 3, 1 / 3)]
    assert len(set(found)) == len(found)


CACHE = """
from vortex_core import ops, vFlow
class W(vFlow):
    def create_cache(self, page):
        return {{"c": page.state({dims})}}
    def forward_cache(self, page):
        return {{"c": {cache}}}
    def forward_indexer(self, q, cache):
        return ops.topk(cache["c"].max({names}))
"""
HALF = 'page.k.mean("token").slice("dim", 0, "D/2").rename(dim="pair")'
SHAPES = [
    ("pair=page.head_dim // 2", HALF),
    ("pair=page.head_dim / 2", HALF),
    ("pair=0.5 * page.head_dim", HALF),
    ('pair="D // 2"', HALF),
    ('pair="D*1/2"', HALF),
    ("dim=page.head_dim - page.head_dim // 4", 'page.k.mean("token").slice("dim", "D/4", "D")'),
    ("dim=page.head_dim - page.rope_dim", 'page.k.mean("token").channels("nope")'),
    ("dim=page.nope_dim + page.rope_dim", 'page.k.mean("token")'),
    ("row=page.size // 4, dim=page.head_dim", 'page.k.split("token", row=page.size // 4).mean("token")'),
    ('row="S/2", dim=page.head_dim', 'page.k.split("token", row="S/2").mean("token")'),
    ("pair=page.head_dim // 2, dim=2", 'page.k.mean("token").split("dim", pair=page.head_dim // 2)'),
    ("dim=page.head_dim", "page.k.mean('token') * page.head_dim ** -0.5"),
    ("dim=page.head_dim", "page.k.sum('token') / page.size"),
    ("dim=page.head_dim", "(page.k * (ops.arange(token=page.size) == page.size - 1)).sum('token')"),
    ("dim=page.head_dim", "(page.k * (ops.arange(token=page.size) % 2 == 0)).sum('token')"),
]


def shaped(dims: str, cache: str) -> str:
    names = [part.split("=")[0].strip() for part in dims.split(",")]
    return run(CACHE.format(dims=dims, cache=cache, names=", ".join(map(repr, names))), "w.py").ir_hash


@pytest.mark.parametrize(("dims", "written"), SHAPES)
def test_sizes_take_part_in_arithmetic_and_shapes(dims: str, written: str) -> None:
    assert shaped(dims, written)


def test_one_half_is_one_size_however_written() -> None:
    assert len({shaped(dims, HALF) for dims, cache in SHAPES if cache == HALF}) == 1


@pytest.mark.parametrize(
    ("index", "code"),
    [
        ("range(x.size('dim'))", "VF020"),
        ("1 if x.size('dim') == 64 else 2", "VF020"),
        ("1 if x.size('dim') > 64 else 2", "VF020"),
        ("float(x.size('dim'))", "VF020"),
        ("y ** 0", "VF016"),
        ("y ** 100", "VF016"),
        ("y ** math.inf", "VF016"),
        ("(-2) ** y", "VF016"),
        ("r.sum('row', keepdim=True)", "VF016"),
        ("r.sum()", "VF016"),
        ("r.sum(-1)", "VF010"),
        ("r.split('row', part='D/2')", "VF016"),
        ("r.split('row', part='S/3').sum('part', 'row')", ""),
        ("r @ q", "VF023"),
        ("ops.einsum(x)", "VF024"),
        ("math.gamma2(1)", "VF024"),
    ],
)
def test_what_no_trace_can_give_is_refused(index: str, code: str) -> None:
    if not code:
        assert program(index)
        return
    with pytest.raises(VortexError) as caught:
        program(index)
    assert caught.value.code == code

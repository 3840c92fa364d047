"""Values that all pages of a row make, used by channel; short packed sums; queries in parts."""

from __future__ import annotations

import pytest

from evaluators.parity import compare
from vortex_core import library
from vortex_core.compiler.triton import backend
from vortex_core.compiler.triton.generate import generate
from vortex_core.geometry import Geometry
from vortex_core.sandbox.jail import run

SOURCE = """
from vortex_core import Knobs, ops, register, vFlow

@register("far")
class Far(vFlow):
    knobs = Knobs(page_size=8, budget="64")

    def create_cache(self, page):
        return {"mean": page.state(dim=page.head_dim, dtype="fp32")}

    def forward_cache(self, page):
        return {"mean": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        x = cache["mean"] + 0.01
        whole, one = x.mean("page"), q.max("head")
        far = one.dot(whole, "dim")MORE
        near = (q * x).sum("dim").max("head")
        return ops.topk(0.0 - (near - 0.5 - far).abs())
"""
MORE = {
    "pieces": "",
    "slice": ' + one.slice("dim", 0, "D/2").dot(whole.slice("dim", "D/2", "D"), "dim")',
    "split": ' + (whole.split("dim", part=4).sum("part") * one.slice("dim", 0, "D/4")).sum("dim")',
}


@pytest.mark.parametrize("dim", [64, 80])
@pytest.mark.parametrize("name", sorted(MORE))
def test_a_row_of_channels_meets_the_query_channel_by_channel(name: str, dim: int) -> None:
    traced = run(SOURCE.replace("MORE", MORE[name]), "far.py")
    geometry = Geometry(1, 1, 2, dim, dim, dim)
    found = compare(
        traced.program, traced.knobs, geometry, backend="triton", pages=(30, 41.5), seeds=(0,), tie_tolerance=1e-4
    )  # fmt: skip
    assert found.rows and found.holds, found


PACKED = """
from vortex_core import Knobs, ops, register, vFlow

@register("short")
class Short(vFlow):
    knobs = Knobs(page_size=8, budget="64")

    def create_cache(self, page):
        return {"s": page.state(y=COUNT, dtype="DTYPE"), "m": page.state(dim=page.head_dim, dtype="fp32")}

    def forward_cache(self, page):
        x = page.k.split("dim", y=COUNT).sum("dim").mean("token")
        return {"s": x.cumsum("y"), "m": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        parts = q.split("dim", y=COUNT).sum("dim").max("head")
        return ops.topk((parts * cache["s"]).sum("y") + 0.01 * (q * cache["m"]).sum("dim").max("head"))
"""


@pytest.mark.parametrize(("count", "dtype"), [(2, "bits"), (2, "int3"), (4, "int2"), (4, "int4")])
def test_running_sums_of_fewer_numbers_than_a_byte_holds_are_packed(count: int, dtype: str) -> None:
    traced = run(PACKED.replace("COUNT", str(count)).replace("DTYPE", dtype), "short.py")
    found = compare(
        traced.program, traced.knobs, Geometry(1, 1, 2, 16, 16, 16), backend="triton", pages=(30,), seeds=(0,),
        tie_tolerance=1e-4,
    )  # fmt: skip
    assert found.rows and found.holds, found


@pytest.mark.parametrize("name", ["block_topk", "quest", "twilight", "rocketkv"])
def test_queries_in_parts_select_what_the_oracle_selects(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The text that kernels of fp16 and fp32 queries have; here its products run in fp32."""
    monkeypatch.setattr(backend, "is_wide", lambda q: True)
    traced = library.load(name)
    found = compare(
        traced.program, traced.knobs.with_(page_size=8, budget="64"), Geometry(1, 1, 3, 32, 32, 32), backend="triton",
        pages=(0.5, 20.5), seeds=(0,), tie_tolerance=1e-4,
    )  # fmt: skip
    assert found.rows and found.holds, found


@pytest.mark.parametrize("dtype", ["int4", "int2", "int8"])
def test_more_numbers_than_registers_hold_are_packed_rows_at_a_time(dtype: str) -> None:
    source = library.load("hisa").source.replace('dtype="int4"', f'dtype="{dtype}"')
    traced = run(source, "hisa.py").with_knobs(page_size=128, budget="512")
    geometry = Geometry(1, 1, 2, 320, 320, 320)
    assert "(32 + i_row32)" in generate(traced.program.canonical(), geometry, 128).text
    found = compare(
        traced.program, traced.knobs, geometry, backend="triton", pages=(6.5,), seeds=(0,), tie_tolerance=1e-4
    )
    assert found.rows and found.holds, found

"""`x.to(dtype, dim)` inside an expression is what a page state of that dtype reads back, to the last bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vortex_core.compiler.states import Field
from vortex_core.flow import eager, ops, vFlow
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import SCALED, StateDecl
from vortex_core.ir.types import Extent, make_dims

ROWS, CHANNELS = 8, 6
DIMS = make_dims([("row", Extent.parse(ROWS)), ("dim", Extent.parse(CHANNELS))])


def rounding(dtype: str, dim: str) -> type[vFlow]:
    class Rounded(vFlow):
        def create_cache(self, page):  # type: ignore[no-untyped-def]  # as authors write
            return {"c": page.state(row=page.size, dim=page.head_dim, dtype="fp32")}

        def forward_cache(self, page):  # type: ignore[no-untyped-def]
            return {"c": page.k.rename(token="row").to(dtype, *([dim] if dtype in SCALED else []))}

        def forward_indexer(self, q, cache):  # type: ignore[no-untyped-def]
            return ops.topk(cache["c"].max("row", "dim"))

    return Rounded


@given(
    st.sampled_from(["row", "dim"]), st.integers(0, 999), st.sampled_from([0.02, 1.0, 300.0]), st.booleans()
)
@pytest.mark.parametrize("dtype", [*SCALED, "bits", "fp16", "fp8_e4m3"])
def test_it_is_what_a_state_reads_back(dtype: str, dim: str, seed: int, size: float, grid: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = size * torch.randn(ROWS, CHANNELS, generator=generator, dtype=torch.float64)
    if grid:  # many values half way between two steps, and a row of zeros
        x = torch.randint(-14, 15, x.shape, generator=generator).double() / 2
        x[:, 0], x[0], x[1] = 7.0, 7.0, 0.0
    declared = ["row", "dim"] if dim == "dim" else ["dim", "row"]
    held = Field.allocate(
        StateDecl.of("c", DIMS, dtype, False, 0.0, declared), (ROWS, CHANNELS), 1, 1, torch.device("cpu")
    )
    held.write(slice(None), torch.tensor([0]), x[None, None])
    want = held.read(slice(None), torch.tensor([0]), torch.float64)[0, 0]
    found = eager.run(
        rounding(dtype, dim), x, x, torch.ones(1, CHANNELS).double(), knobs=Knobs(page_size=ROWS)
    )
    torch.testing.assert_close(found.states["c"][0].double(), want.float().double(), rtol=0, atol=0)

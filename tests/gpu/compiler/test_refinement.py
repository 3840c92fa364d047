"""A selection in two stages on a real GPU selects what the oracle selects."""

from __future__ import annotations

import pytest

from tests.cpu.compiler.test_refinement import LAST, flow, shape
from tests.gpu.compiler.test_triton_backend import agree

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", sorted(set(LAST) - {"undefined"}))
@pytest.mark.parametrize(("group", "kv_heads", "dim"), [(7, 2, 96), (4, 1, 128), (16, 1, 64)])
def test_triton_selects_what_the_oracle_selects(name: str, group: int, kv_heads: int, dim: int) -> None:
    agree(flow(LAST[name], "fp32", cheap="fp32"), shape(group, kv_heads, dim), layer=0)

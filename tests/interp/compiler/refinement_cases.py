"""The kernels of a selection in two stages under the Triton interpreter: what the oracle selects."""

from __future__ import annotations

import pytest
import torch

from evaluators.parity import compare
from tests.cpu.compiler import test_backends as shared
from tests.cpu.compiler.test_refinement import LAST, flow, shape
from vortex_core.compiler import backends
from vortex_core.compiler.interface import BatchView
from vortex_core.compiler.triton.backend import TritonFlow
from vortex_core.ir.crossover import EVERYTHING

shared.LENGTHS[:] = [1, 7, 8, 9, 65, 0, 300]
SHAPES = [(3, 1, 24), (16, 1, 32), (1, 2, 16)]


@pytest.mark.parametrize("name", sorted(LAST))
@pytest.mark.parametrize("at", range(len(SHAPES)))
def test_triton_selects_what_the_oracle_selects(at: int, name: str) -> None:
    """Rows of all lengths, one of them idle, on states that no rounding tells apart."""
    (group, kv_heads, dim), traced = SHAPES[at], flow(LAST[name], "fp32", cheap="fp32")
    geometry, data = shape(group, kv_heads, dim), shared.inputs(group, group, kv_heads, dim)
    want = shared.steps(backends.get("oracle").compile(traced.original, traced.knobs, geometry), *data)
    compiled = backends.get("triton").compile(traced.program, traced.knobs, geometry)
    assert isinstance(compiled, TritonFlow) and "def refine_kernel" in compiled.code.text
    found = shared.steps(compiled, *data)
    real = [b for b, n in enumerate(shared.LENGTHS) if n]
    for a, b in zip(want, found, strict=True):
        assert a.lengths[real].tolist() == b.lengths[real].tolist()
        theirs, ours = (
            [shared.rows(x)[b * x.heads + h] for b in real for h in range(x.heads)] for x in (a, b)
        )
        assert theirs == ours


def test_rows_below_a_crossover_attend_to_everything() -> None:
    geometry, traced = shape(3, 2, 16), flow(LAST["union"], "fp32", cheap="fp32")
    kv, table, q, pages = shared.inputs(4, 3, 2, 16)
    lengths = torch.tensor(shared.LENGTHS)
    budgets = torch.tensor([EVERYTHING if n == 65 else traced.knobs.pages(n) for n in shared.LENGTHS])
    lists = []
    for name in ("oracle", "triton"):
        compiled = backends.get(name).compile(traced.program, traced.knobs, geometry)
        states = compiled.new_states(pages, torch.device("cpu"))
        compiled.update(
            states, kv, torch.cat([table[b, : n // shared.SIZE] for b, n in enumerate(shared.LENGTHS)]), 0
        )
        view = BatchView(table, lengths, budgets, max(shared.LENGTHS), longest_whole=65)
        lists.append(compiled.select(q, states, view, 0))
    at = shared.LENGTHS.index(65)
    assert lists[1].counts[at].tolist() == [9, 9]
    real = lengths > 0
    assert torch.equal(lists[0].lengths[real], lists[1].lengths[real])


@pytest.mark.parametrize("dtype", ["int4", "int8", "bf16"])
def test_packed_states_hold_against_the_oracle(dtype: str) -> None:
    traced = flow(LAST["plain"], dtype)
    found = compare(
        traced.program, traced.knobs, shape(5, 1, 64), backend="triton", pages=(0.5, 1.1, 33), seeds=(0,),
        tie_tolerance=1e-4,
    )  # fmt: skip
    assert found.holds and found.tied <= 1, found

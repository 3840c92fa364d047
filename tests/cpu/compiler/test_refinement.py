"""Selection in two stages: backends agree, candidates bound what can be selected, and the cost is by candidates."""

from __future__ import annotations

import pytest
import torch

from evaluators.parity import compare
from tests.cpu.compiler import test_backends as shared
from vortex_core import library
from vortex_core.compiler import backends
from vortex_core.compiler.triton.launch_plan import launch_plan
from vortex_core.errors import VortexError
from vortex_core.flow.emit import emit
from vortex_core.flow.trace import Traced
from vortex_core.geometry import Geometry
from vortex_core.ir.cost import candidate_pages
from vortex_core.ir.formula import formula
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.launches import launch_costs, step_cost
from vortex_core.ir.program import Program
from vortex_core.ir.sentence import sentences
from vortex_core.sandbox.jail import run

SOURCE = """
from vortex_core import Knobs, ops, register, vFlow

@register("two")
class Two(vFlow):
    knobs = Knobs(dense_layers=(0,))

    def create_cache(self, page):
        return {"mean": page.state(dim=page.head_dim, dtype="CHEAP"),
                "bits": page.state(dim=page.head_dim, dtype="bits"),
                "rows": page.state(row=4, dim=page.head_dim, dtype="DTYPE"), "n": page.state()MORE}

    def forward_cache(self, page):
        return {"mean": page.k.mean("token"), "bits": page.k.mean("token"),
                "rows": page.k.split("token", row=4).mean("token"), "n": page.v.norm("dim").mean("token")}

    def forward_indexer(self, q, cache):
        cheap = (q.sign() * cache["bits"]).sum("dim").mean("head")
        mean = (q * cache["mean"]).sum("dim")
        dear = (q * cache["rows"]).sum("dim").max("row", "head")
        LAST
"""
LAST = {
    "plain": "return ops.refine(cheap + 0.01 * mean.max('head'), dear, candidates=2)",
    "across_pages": "return ops.refine(mean.softmax('page').sum('head'), dear * cache['n'], candidates=3)",
    "union": "return ops.refine(mean.max('head'), dear, candidates=2, fraction=0.5) | ops.topk(dear, fraction=0.5)",
    "masked": "large = ops.where(q.abs().largest(4, 'dim'), q, 0.0)\n        "
              "return ops.refine(mean.max('head'), (large * cache['mean']).sum('dim').max('head'), candidates=4)",
    "by_place": "return ops.refine(mean.max('head'), dear + ops.position() / ops.pages(), candidates=2)",
    "dense_mass": "return ops.refine(mean.max('head'), ops.dense_mass().sum('head') * dear, candidates=2)",
    "undefined": "wild = (dear - 0.5).log() - 1 / ops.where(dear > 2, 0.0, 1.0)\n        "
                 "return ops.refine(mean.max('head'), wild, candidates=4)",
}  # fmt: skip
# What may not be a fine score, and what the error names.
WRONG = {
    "return ops.refine(cheap, dear.softmax('page'), candidates=4)": "softmax over pages",
    "return ops.refine(cheap, dear + ops.mass().sum('head'), candidates=4)": "attention mass",
    "cache['c'] = 0.5 * cache['c'] + dear\n        return ops.refine(cheap, cache['c'], candidates=4)": "'c'",
    "return ops.refine(cheap, dear, candidates=4) | ops.refine(dear, cheap, candidates=2)": "two of them",
}


def flow(last: str, dtype: str = "bf16", more: str = "", cheap: str = "int8") -> Traced:
    text = SOURCE.replace("CHEAP", cheap).replace("DTYPE", dtype).replace("MORE", more).replace("LAST", last)
    return shared.small(run(text, "two.py"))


def shape(group: int, kv_heads: int, dim: int) -> Geometry:
    return Geometry(1, kv_heads, group, dim, dim, dim)


@pytest.mark.usefixtures("single_thread")
@pytest.mark.parametrize(("group", "kv_heads", "dim"), [(1, 2, 16), (3, 2, 24), (7, 1, 16), (16, 1, 32)])
@pytest.mark.parametrize("name", sorted(LAST))
def test_torch_selects_what_the_oracle_selects(name: str, group: int, kv_heads: int, dim: int) -> None:
    """Lengths of no page, of one, of one token more or less, and of many."""
    traced = flow(LAST[name], "int4" if group == 7 else "bf16")
    geometry, data = shape(group, kv_heads, dim), shared.inputs(group, group, kv_heads, dim)
    want = shared.steps(backends.get("oracle").compile(traced.original, traced.knobs, geometry), *data)
    found = shared.steps(backends.get("torch").compile(traced.program, traced.knobs, geometry), *data)
    for a, b in zip(want, found, strict=True):
        assert shared.rows(a) == shared.rows(b)
        assert torch.equal(a.lengths, b.lengths)


@pytest.mark.usefixtures("single_thread")
@pytest.mark.parametrize("name", ["hisa"])
def test_library_flows_hold_against_the_oracle(name: str) -> None:
    traced = library.load(name)
    found = compare(
        traced.program, traced.knobs.with_(page_size=16, budget="96"), shape(4, 2, 64), backend="torch",
        pages=(0.5, 1, 2.1, 17.5, 40), seeds=(0,), tie_tolerance=1e-4,
    )  # fmt: skip
    assert found.holds, found


@pytest.mark.usefixtures("single_thread")
def test_what_is_selected_is_the_best_of_the_candidates_and_nothing_else() -> None:
    """The definition in sets: the pages that the coarse score selects with twice the room, and the best of these by the
    fine score."""
    geometry, data = shape(2, 1, 16), shared.inputs(3, 2, 1, 16)
    knobs = Knobs(page_size=8, budget="40", keep_first=1, keep_last=1)
    coarse = "mean.max('head')"

    def chosen(last: str, budget: str) -> list[list[int]]:
        compiled = backends.get("oracle").compile(flow(last).original, knobs.with_(budget=budget), geometry)
        return shared.rows(shared.steps(compiled, *data)[0])

    both = chosen(f"return ops.refine({coarse}, dear, candidates=2)", "40")
    candidates = chosen(
        f"return ops.topk({coarse})", "64"
    )  # two kept pages, and twice the three that are free
    alone = chosen("return ops.topk(dear)", "40")
    assert all(set(a) <= set(b) for a, b in zip(both, candidates, strict=True))
    assert any(set(a) != set(b) for a, b in zip(both, alone, strict=True))
    assert [len(a) for a in both] == [len(a) for a in alone]


@pytest.mark.usefixtures("single_thread")
def test_with_all_pages_as_candidates_the_fine_score_alone_decides() -> None:
    geometry, data = shape(3, 2, 16), shared.inputs(5, 3, 2, 16)
    two, one = flow("return ops.refine(cheap, dear, candidates=64)"), flow("return ops.topk(dear)")
    found = [
        shared.steps(backends.get("torch").compile(t.program, t.knobs, geometry), *data)[0]
        for t in (two, one)
    ]
    assert shared.rows(found[0]) == shared.rows(found[1])


def test_only_the_order_of_both_scores_matters() -> None:
    plain = flow("return ops.refine(cheap, dear, candidates=4)")
    assert (
        flow("return ops.refine((cheap * 3 + 1).exp(), dear * 2 - 5, candidates=4)").ir_hash == plain.ir_hash
    )
    assert flow("return ops.refine(cheap, dear, candidates=8)").ir_hash != plain.ir_hash
    assert flow("return ops.refine(dear, cheap, candidates=4)").ir_hash != plain.ir_hash
    unused = "ops.refine(dear, cheap, candidates=2)\n        return ops.refine(cheap, dear, candidates=4)"
    assert flow(unused).ir_hash == plain.ir_hash, "a selection that nothing takes is none"
    same = flow("return ops.refine(dear, dear * 2, candidates=4, fraction=0.5)")
    assert same.ir_hash == flow("return ops.topk(dear, fraction=0.5)").ir_hash


@pytest.mark.parametrize("last", sorted(WRONG))
def test_a_fine_score_is_of_its_page_and_of_this_step(last: str) -> None:
    with pytest.raises(VortexError) as caught:
        flow(last, more=', "c": page.state(carried=True, dtype="fp32")' if "cache['c']" in last else "")
    assert caught.value.code == "VF071" and WRONG[last] in caught.value.message


@pytest.mark.parametrize(
    ("last", "code"),
    [
        ("return ops.refine(cheap, dear, candidates=1)", "VF016"),
        ("return ops.refine(cheap, dear, candidates=2.5)", "VF016"),
        ("return ops.refine(mean, dear, candidates=2)", "VF041"),
        ("return ops.refine(cheap, 1.0, candidates=2)", "VF019"),
    ],
)
def test_what_is_no_refinement_says_so(last: str, code: str) -> None:
    with pytest.raises(VortexError) as caught:
        flow(last)
    assert caught.value.code == code, caught.value


def test_its_source_and_its_ir_say_the_same() -> None:
    for last in LAST.values():
        traced = flow(last)
        text = emit(traced.program, traced.knobs, "again", "The same.")
        assert run(text, "again.py").ir_hash == traced.ir_hash
        assert Program.from_json(traced.program.to_json()).ir_hash == traced.ir_hash
    traced = flow(LAST["plain"])
    assert "of the 2 times as many that are best by" in sentences(traced.program)[-1]
    assert "among the 2 k best by" in formula(traced.program)[-1].text


def test_states_of_the_fine_score_are_read_for_candidates_alone() -> None:
    traced = flow(LAST["plain"])
    knobs, geometry = Knobs(page_size=16, budget="1024", keep_first=1, keep_last=1), shape(4, 8, 128)
    costs = {
        x.kind: x.cost
        for x in launch_costs(traced.program.canonical(), knobs, geometry, batch=4, length=32768)
    }
    rows, pages = 4 * 8, 2048
    assert costs["score"].state_bytes == rows * pages * (16 + 128 + 2)  # bits, and int8 with a scale
    among = candidate_pages(traced.program.canonical(), knobs, 32768)
    assert among == 2 + 2 * (1024 // 16 - 2)
    assert costs["refine"].state_bytes == rows * among * 4 * 128 * 2
    one = flow("return ops.topk(cheap + 0.01 * mean.max('head') + dear)")
    single = step_cost(one.program.canonical(), knobs, geometry, batch=4, length=32768)
    double = step_cost(traced.program.canonical(), knobs, geometry, batch=4, length=32768)
    assert double.state_bytes < single.state_bytes / 4
    plan = launch_plan(traced.program, knobs, geometry, batch=4, length=32768)
    names = [x.name for x in plan.launches]
    assert names[names.index("score") :][:4] == ["score", "candidates", "refine", "select"]
    assert "126 candidates a row" in next(x.does for x in plan.launches if x.name == "candidates")

"""Emitted source traces back to the same program; equal meanings hash equal, different ones do not."""

from __future__ import annotations

import random

import pytest

from tests import sample_flows
from vortex_core.errors import VortexError
from vortex_core.flow.emit import emit
from vortex_core.ir.canonical import canonicalise
from vortex_core.ir.graph import Graph, GraphBuilder
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import Program
from vortex_core.ir.verify import verify
from vortex_core.sandbox.jail import run

STATES = """
    def create_cache(self, page):
        return {"a": page.state(dim=page.head_dim), "b": page.state(dim=page.head_dim)}
    def forward_cache(self, page):
        return {"a": page.k.max("token"), "b": page.k.min("token")}
    def forward_indexer(self, q, cache):
        %s
"""


def digest(body: str) -> str:
    return run(sample_flows.HEADER + STATES % body, "x.py").ir_hash


@pytest.mark.parametrize("name", sample_flows.names())
def test_emitted_source_traces_to_the_same_candidate(name: str) -> None:
    traced = sample_flows.load(name)
    again = run(emit(traced.program, traced.knobs, traced.name, traced.doc), "emitted.py")
    assert (again.ir_hash, again.key) == (traced.ir_hash, traced.key)


@pytest.mark.parametrize("name", sample_flows.names())
def test_canonical_form_is_legal_idempotent_and_survives_json(name: str) -> None:
    program = sample_flows.load(name).program
    verify(program)
    assert canonicalise(program).to_json(locations=False) == program.to_json(locations=False)
    assert Program.from_json(program.to_json()).ir_hash == program.ir_hash


DOT_A = '(q * cache["a"]).sum("dim")'
DOT_B = '(q * cache["b"]).sum("dim")'
SAME = [
    (f"return ops.topk({DOT_A}.max('head'))", f"return ops.topk({DOT_A}.exp().max('head'))"),
    (f"return ops.topk({DOT_A}.max('head'))", f"return ops.topk(3 * {DOT_A}.max('head') + 1)"),
    (f"return ops.topk({DOT_A}.max('head'))", f"return ops.topk({DOT_A}.max('head').softmax('page'))"),
    (f"return ops.topk({DOT_A}.mean('head'))", "return ops.topk((q.sum('head') * cache['a']).sum('dim'))"),
    (f"return ops.topk({DOT_A}.mean('head'))", f"s = {DOT_A}.mean('head'); return ops.topk(s - s.mean('page'))"),
    (f"return ops.topk({DOT_A}.mean('head'))", f"return ops.topk({DOT_A}.sum('head') / (q.norm('head', 'dim') + 1))"),
    (
        f"return ops.topk(({DOT_A} + {DOT_B}).max('head'))",
        f"return ops.topk(2 * ({DOT_B} - -1 * {DOT_A}).max('head'))",
    ),
    (
        "return ops.topk(ops.maximum(q * cache['a'], q * cache['b']).sum('dim').max('head'))",
        "return ops.topk(ops.maximum(cache['b'] * q, q * cache['a']).sum('dim').max('head').sigmoid())",
    ),
]  # fmt: skip
DIFFERENT = [
    f"return ops.topk({DOT_A}.max('head'))",
    f"return ops.topk({DOT_B}.max('head'))",
    f"return ops.topk({DOT_A}.min('head'))",
    f"return ops.topk({DOT_A}.mean('head'))",
    f"return ops.topk(-{DOT_A}.mean('head'))",
    f"return ops.topk({DOT_A}.exp().mean('head'))",
    f"return ops.topk({DOT_A}.softmax('page').mean('head'))",
    f"return ops.topk({DOT_A})",
    f"return ops.topk(({DOT_A} + 2 * {DOT_B}).max('head'))",
    f"return ops.topk(({DOT_A} + {DOT_B}).max('head'))",
    f"return ops.topk({DOT_A}.max('head'), fraction=0.5)",
    f"return ops.topp({DOT_A}.max('head'), 0.9)",
    f"return ops.topp({DOT_A}.max('head').exp(), 0.9)",
    f"return ops.topk({DOT_A}.max('head'), share='max')",
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_equal_meaning_equal_hash(one: str, other: str) -> None:
    assert digest(one) == digest(other)


def test_different_meaning_different_hash() -> None:
    found = [digest(body) for body in DIFFERENT]
    assert len(set(found)) == len(found)


def test_names_and_field_order_do_not_matter() -> None:
    one = sample_flows.load("quest").source
    other = one.replace("kmax", "upper").replace("kmin", "alpha").replace("bound", "x")
    assert run(one, "a.py").ir_hash == run(other, "b.py").ir_hash


def test_dead_state_and_dead_code_vanish() -> None:
    body = f"unused = q.exp(); return ops.topk({DOT_A}.max('head'))"
    traced = run(sample_flows.HEADER + STATES % body, "x.py")
    assert [s.name for s in traced.program.states] == ["s0"]
    assert [w["code"] for w in traced.warnings] == ["VF035"]


def test_learned_values_per_layer_and_head_are_emitted_as_short_as_fp32_allows() -> None:
    """Two layers, three kv heads, an axis of the group: written into the source, and read back bit for bit."""
    rng = random.Random(0)
    nested = [
        [[rng.choice((rng.gauss(0, 1), 0.1, -0.0, 1e-30, 3e38)) for _ in range(4)] for _ in range(3)]
        for _ in "ab"
    ]
    body = f"""
    params = {{"w": {nested}, "v": [0.1, 0.2]}}
    def forward_indexer(self, q, cache):
        w = ops.param("w", layer=2, kv_head=3, head="G") * ops.param("v", x=2).sum("x")
        return ops.topk((ops.position() * w * q.sum("dim")).sum("head"))
"""
    traced = run(sample_flows.HEADER + body, "x.py")
    text = emit(traced.program, traced.knobs, "w", "?")
    again = run(text, "again.py")
    assert again.ir_hash == traced.ir_hash
    assert [p.values.data for p in again.program.params] == [p.values.data for p in traced.program.params]
    assert "0.1," in text and "0.10000000149" not in text
    assert "params =" not in emit(traced.program, traced.knobs, "w", "?", beside=True)


def test_too_many_learned_values_are_no_source() -> None:
    body = """
    params = {"w": [[0.5] * 100] * 50}
    def forward_indexer(self, q, cache):
        return ops.topk(ops.position() * (ops.param("w", a=50, b=100).sum("a", "b") + q.sum("dim", "head")))
"""
    traced = run(sample_flows.HEADER + body, "x.py")
    with pytest.raises(VortexError, match="5000 values"):
        emit(traced.program, traced.knobs, "w", "?")


def test_a_product_of_numbers_is_emitted() -> None:
    builder = GraphBuilder("index")
    two, zero = (builder.emit("const", value=v) for v in (2.0, 0.0))
    q = builder.emit("sum", [builder.emit("q")], dims=("dim", "head"))
    shift = builder.emit("add", [q, builder.emit("mul", [two, zero])])
    half = builder.emit("div", [shift, builder.emit("mul", [two, two])])
    score = builder.emit("mul", [builder.emit("position"), half])
    program = Program((), Graph(), builder.graph({}, builder.emit("topk", [score])))
    assert run(emit(program, Knobs(), "w", "?"), "again.py").ir_hash == program.ir_hash

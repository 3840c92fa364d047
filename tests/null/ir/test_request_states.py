"""Declarations, identity and notes of states that belong to the request."""

from __future__ import annotations

from typing import Any

import pytest

from vortex_core import library
from vortex_core.errors import VortexError
from vortex_core.ir.formula import formula
from vortex_core.ir.linear import distributed
from vortex_core.ir.program import Program
from vortex_core.ir.query_work import query_work
from vortex_core.ir.sentence import sentences
from vortex_core.sandbox.jail import run
from vortex_core.serving.plan import check_servable

SOURCE = """
from vortex_core import ops, vFlow

class W(vFlow):
    def create_cache(self, page):
        return {"mean": page.state(dim=page.head_dim), "r": page.state(DECLARED)}

    def forward_cache(self, page):
        return {"mean": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        old, score = cache["r"], q.dot(cache["mean"], "dim").max("head")
        BODY
"""
BEFORE = 'head="G", dim=page.head_dim, carried=True, scope="request"'
BY_IT = 'return ops.topk(old.dot(cache["mean"], "dim").max("head"))'


def source(declared: str = BEFORE, *body: str) -> str:
    lines = body or ('cache["r"] = q', BY_IT)
    return SOURCE.replace("DECLARED", declared).replace("BODY", "\n        ".join(lines))


@pytest.mark.parametrize(
    ("code", "text", "says"),
    [
        ("VF034", source('dim="D", scope="request"'), "not carried"),
        ("VF034", source('dim="D", carried=True, scope="layer"'), "scope 'layer'"),
        ("VF034", source('head="G", dim="D", carried=True'), "dimension 'head'"),
        ("VF034", source('head="G/2", carried=True, scope="request"'), "dimension 'head'"),
        ("VF034", source('token="S", carried=True, scope="request"'), "dimension 'token'"),
        ("VF034", source('dim="D", dtype="int8", carried=True, scope="request"'), "carried with dtype 'int8'"),
        ("VF032", source('carried=True, scope="request"', 'cache["r"] = score', "return ops.topk(score)"), "(page)"),
        ("VF032", source('dim="D", carried=True, scope="request"'), "(head=G, dim=D)"),
        ("VF031", source(BEFORE, BY_IT), "cache['r']"),
        ("VF041", source(BEFORE, 'cache["r"] = q', 'return ops.topk(old.sum("head", "dim"))'), "page"),
        ("VF071", source(BEFORE, 'cache["r"] = q',
                         'return ops.refine(score, old.dot(cache["mean"], "dim").max("head"), candidates=4)'), "'r'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(code: str, text: str, says: str) -> None:
    with pytest.raises(VortexError) as caught:
        run(text, "w.py")
    assert caught.value.code == code, caught.value
    assert says in str(caught.value)


def test_requests_share_pages_unless_a_state_of_pages_is_carried() -> None:
    shared = run(source(), "w.py")
    assert not shared.program.is_request_local and shared.program.remembers
    assert not shared.notes and not shared.warnings, "a score of an earlier query is no static one"
    both = source().replace('"r":', '"p": page.state(carried=True), "r":')
    last = 'cache["p"] = cache["p"] + score\n        return ops.topk(cache["p"] + '
    both = both.replace("return ops.topk(", last)
    local = run(both, "w.py")
    assert local.program.is_request_local
    (note,) = local.notes
    assert note["code"] == "VF046" and "'p'" in note["message"]


def test_whose_a_state_is_belongs_to_what_a_program_is() -> None:
    """The same words with one value for every page are another program; without a reader there is no state."""
    declared, mean = 'dim="D", carried=True, scope="request"', 'cache["r"] = q.mean("head")'
    mine = run(source(declared, mean, 'return ops.topk(old.dot(cache["mean"], "dim"))'), "w.py")
    pages = run(mine.source.replace(', scope="request"', ""), "w.py")
    assert mine.ir_hash != pages.ir_hash
    unread = run(source(BEFORE, 'cache["r"] = q', "return ops.topk(score)"), "w.py")
    assert unread.program.states == library.load("block_topk").program.states[:1]
    twice = run(
        source(BEFORE + '), "again": page.state(' + BEFORE, 'cache["r"], cache["again"] = q, q',
               'return ops.topk((old + cache["again"]).dot(cache["mean"], "dim").max("head"))'), "w.py",
    )  # fmt: skip
    assert len(twice.program.request_states) == 1, "equal states are one"


def test_programs_without_such_states_are_written_as_before() -> None:
    for name in ("quest", "h2o", "running_average"):
        assert "scope" not in str(library.load(name).program.to_json())
    data = library.load("freekv").program.to_json()
    assert [s.get("scope") for s in data["states"]].count("request") == 1
    assert Program.from_json(data).to_json() == data


@pytest.mark.parametrize("wrong", ["layer", "", None, 3, ["request"], "page"])
def test_foreign_programs_are_checked(wrong: Any) -> None:
    """A scope that is none, and a read of another scope than the declared one."""
    data = library.load("freekv").program.to_json()
    for node in data["index"]["nodes"]:
        if node.get("attrs", {}).get("scope"):
            node["attrs"]["scope"] = wrong
    with pytest.raises(VortexError):
        Program.from_json(data)
    data = library.load("freekv").program.to_json()
    (state,) = (s for s in data["states"] if "scope" in s)
    state["scope"] = wrong
    with pytest.raises(VortexError):
        Program.from_json(data)


def test_a_request_is_asked_once_a_row() -> None:
    """How alike two queries are is no work of every page, and what scales them is multiplied first."""
    program = library.load("freekv").program
    sizes = {"G": 4, "D": 128, "S": 16, "N": 64, "R": 64}
    nodes = program.index.nodes
    assert [nodes[i].op for i in query_work(program.index, sizes)] == ["where"]
    average = run(source('dim="D", carried=True, scope="request"', 'cache["r"] = 0.5 * old + q.mean("head")',
                         'return ops.topk((0.3 * cache["r"]).dot(cache["mean"], "dim"))'), "w.py")  # fmt: skip
    graph = distributed(average.program.index)
    assert query_work(graph, sizes) == ()
    plain = [n.op for n in graph.nodes if "page" in n.type.names]
    assert plain == ["load", "mul", "sum", "topk"] or plain == ["load", "mul", "sum"], plain


def test_it_is_said_in_words_and_in_symbols() -> None:
    traced = library.load("freekv")
    assert any("the request's" in line for line in sentences(traced.program))
    assert formula(traced.program)


def test_no_server_is_asked_to_keep_it() -> None:
    with pytest.raises(VortexError) as caught:
        check_servable(library.load("freekv").program, library.load("freekv").knobs)
    assert caught.value.code == "VE034" and "embedded engine" in caught.value.remedy

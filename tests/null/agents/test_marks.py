"""Constants that a docstring marks are moved within their ranges, and nothing else is."""

from __future__ import annotations

import asyncio

import pytest

from agents.base import Parent, ProposalRequest
from agents.grammar.marks import Mark, line_of, marks_of, retuned
from agents.grammar.proposer import GrammarProposer
from vortex_core.sandbox.jail import run

SOURCE = '''
from vortex_core import ops, register, vFlow

@register("fading")
class Fading(vFlow):
    """A fading memory of scores.

    Tune: 0.9 in [0.5, 0.99]; 3 in [1, 100]; 12 in [4, 70]; 7.5 in [1, 2]
    """

    def create_cache(self, page):
        return {"mean": page.state(dim=page.head_dim), "r": page.state(carried=True, dtype="fp32")}

    def forward_cache(self, page):
        return {"mean": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        cache["r"] = 0.9 * cache["r"] + (q * cache["mean"]).sum("dim").max("head").tanh()
        return ops.topk(cache["r"] + 3.0 * ops.where(ops.position() < 12, 1.0, 0.0))
'''


def tuned(source: str, *point: float) -> tuple[str, str]:
    traced = run(source, "x.py")
    request = ProposalRequest("tune", 1, (Parent(traced.flow, source),), point=point)
    proposal = asyncio.run(GrammarProposer().propose(request))
    return proposal.source, proposal.idea


def test_marked_numbers_go_where_the_point_says_and_nothing_else_moves() -> None:
    found, idea = tuned(SOURCE, 1.0, 0.5, 0.34)
    want = (
        SOURCE.replace('0.9 * cache["r"]', '0.99 * cache["r"]')
        .replace("+ 3.0 *", "+ 10.0 *")
        .replace("< 12", "< 11")
    )
    # A range of orders of magnitude is walked by ratio, a whole number stays one, and what nobody wrote stays.
    line = "Tune: 0.99 in [0.5, 0.99]; 10 in [1, 100]; 11 in [4, 70]; 7.5 in [1, 2]"
    assert found == want.replace(
        "Tune: 0.9 in [0.5, 0.99]; 3 in [1, 100]; 12 in [4, 70]; 7.5 in [1, 2]", line
    )
    assert "0.9 -> 0.99" in idea and "12 -> 11" in idea
    assert run(found, "x.py").ir_hash != run(SOURCE, "x.py").ir_hash


def test_a_child_is_tuned_on() -> None:
    child, _ = tuned(SOURCE, 1.0, 0.5, 0.34)
    again, _ = tuned(child, 0.0, 0.0, 0.0)
    assert '0.5 * cache["r"]' in again and "+ 1.0 *" in again and "< 4" in again


def test_without_marks_the_program_itself_is_moved() -> None:
    found, _ = tuned(SOURCE.replace("Tune:", "Think:"), 0.9, 0.9, 0.9, 0.5, 0.5)
    assert "Think:" not in found, "written anew"
    assert retuned("class A:\n    'Tune: 5 in [1, 9]'\n    def f(self): return 4", (0.5,)) is None
    assert retuned("no python", (0.5,)) is None


@pytest.mark.parametrize(
    ("doc", "want"),
    [
        ("x\ntune: 1e-3 in [1e-4, 1e-2]", (Mark(1e-3, 1e-4, 1e-2),)),
        ("Tune: 2 in [3, 1]; 4 in [-inf, 2]; -1 in [-2, .5]", (Mark(-1, -2, 0.5),)),
        ("We tune: nothing.\nTune 1 in [0, 2]", ()),
        ("Tune: 1 in [0, 1e999]", ()),
    ],
)
def test_what_a_mark_is(doc: str, want: tuple[Mark, ...]) -> None:
    assert marks_of(doc) == want
    assert marks_of(line_of(want)) == want

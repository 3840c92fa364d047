"""The compact reference: complete, true, and short enough for a prompt."""

from __future__ import annotations

from dataclasses import fields

import pytest

from vortex_core.flow import reference
from vortex_core.flow.reference import SHORTHANDS, SPELLINGS, compact
from vortex_core.ir import mistakes
from vortex_core.ir.graph import MAX_NODES, MAX_NUMBERS
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.opset import OPS
from vortex_core.sandbox.jail import run

INDEX = """
from vortex_core import ops, vFlow
class W(vFlow):
    params = {{"w": [[0.0] * 16] * 16}}
    def create_cache(self, page):
        return {{"name": page.state(dim=page.head_dim)}}
    def forward_cache(self, page):
        return {{"name": {cache}}}
    def forward_indexer(self, q, cache):
        x = q * cache["name"]
        y = cache["name"]
        m, n = x < 0, y < 0
        s = x.sum("dim", "head")
        a = b = ops.topk(s)
        z = {index}
        return {result}
"""


@pytest.mark.parametrize("spelling", [*SPELLINGS, *SHORTHANDS], ids=lambda s: s.text)
def test_every_spelling_traces_to_its_operator(spelling: reference.Spelling) -> None:
    spec = OPS.get(spelling.op)
    in_cache = spec is not None and "index" not in spec.stages
    selects = spec is not None and spec.group == "select"
    text = spelling.text
    if spelling.op == "const":
        text = f"ops.constant({text})"
    rows = "rank" if spec is not None and spec.group == "decompose" else "token"
    written = f'{text}.mean("{rows}")' if in_cache else 'page.k.mean("token")'
    source = INDEX.format(cache=written, index="0" if in_cache else text, result="z" if selects else "a")
    traced = run(source, "x.py")
    found = {n.op for g in (traced.original.cache, traced.original.index) for n in g.nodes}
    assert spec is None or spelling.op in found


def test_every_operator_is_spelled() -> None:
    assert [s.op for s in SPELLINGS] == sorted({s.op for s in SPELLINGS}, key=[s.op for s in SPELLINGS].index)
    assert {s.op for s in SPELLINGS} == set(OPS)


def test_it_names_every_knob_and_the_errors_authors_can_make() -> None:
    text = compact()
    assert all(f"- {f.name} = " in text for f in fields(Knobs))
    named = {code for code in mistakes.CATALOGUE if code in text}
    assert {"VF002", "VF010", "VF011", "VF031", "VF032", "VF041", "VF042"} <= named


def test_its_worked_example_and_its_limits_are_true() -> None:
    text = compact(())
    traced = run(text.partition("```python\n")[2].partition("```")[0], "x.py")
    assert traced.name == "int4_tokens"
    assert not traced.warnings
    assert f"{MAX_NODES} operations" in text
    assert f"{MAX_NUMBERS:,} numbers" in text


def test_it_is_short() -> None:
    assert len(compact(())) < 11_850
    assert compact(("quest",)).count("```python") == 2

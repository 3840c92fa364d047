"""All values that a number has where it follows from signs and comparisons."""

from __future__ import annotations

import pytest

from tests.sample_flows import HEADER
from vortex_core.ir.levels import levels
from vortex_core.sandbox.jail import run

SOURCE = (
    HEADER
    + """
    def create_cache(self, page):
        return {{"a": page.state(dim=page.head_dim)}}
    def forward_cache(self, page):
        return {{"a": page.k.mean("token")}}
    def forward_indexer(self, q, cache):
        code = q.sign() * (2 + (q.abs() - 1).sign())
        return ops.topk(({value}).maximum(cache["a"]).sum("dim").max("head"))
"""
)
VALUES = {
    "code": {-3.0, -1.0, 1.0, 3.0},
    "(code - 1).abs() - (code + 1).abs()": {-2.0, 2.0},  # each sign is the same wherever it stands
    "ops.where(q > 0.5, q.sign(), 0.25)": {-1.0, 0.25, 1.0},
    "ops.where(code == 3, code, -code)": {-3.0, -1.0, 1.0, 3.0},  # as if they could be equal anyhow
    "q.sign() * q.sign()": {1.0},
    "q": None,
    "q.sign() * q": None,
    'q.sign().rename(dim="other").sum("other") * q.sign()': None,
    " + ".join(f"(q - {n}).sign()" for n in range(7)): None,  # too many to try
}


@pytest.mark.parametrize("value", VALUES)
def test_values_of_a_factor(value: str) -> None:
    graph = run(SOURCE.format(value=value), "x.py").program.index
    (largest,) = (n for n in graph.nodes if n.op == "maximum" and "page" in n.type.names)
    (number,) = (j for j in largest.inputs if "page" not in graph.nodes[j].type.names)
    assert levels(graph, number) == VALUES[value]


def test_values_of_a_product() -> None:
    graph = run(SOURCE.format(value="code"), "x.py").program.index
    number = next(i for i, n in enumerate(graph.nodes) if n.op == "sign")
    assert levels(graph, number, number) == {1.0}

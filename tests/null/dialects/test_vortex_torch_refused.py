"""Programs for vortex_torch that cannot be: each ends in one code, at its author's line."""

from __future__ import annotations

import pytest

from tests.null.dialects.programs import BUNDLED, centroid, program
from tests.null.dialects.test_vortex_torch_settings import BAD_SETTINGS
from vortex_core import dialects
from vortex_core.errors import VortexError
from vortex_core.ir.mistakes import CATALOGUE
from vortex_core.sandbox.jail import run

GOOD = BUNDLED["block_topk"]


def scored(init: str, index: str) -> str:
    return centroid("self.mean, self.dot = Mean(dim=1), GeMM()\n" + init, index)


SCORE = 's = self.dot(self.mean(q, ctx=ctx), cache["c"], ctx=ctx)\n'
TOP = "self.top(s, o, ctx=ctx)"
BAD = {
    "VF080 operator": GOOD.replace("topK, approxTopK", "topK, Gather, approxTopK"),
    "VF080 package": GOOD.replace("from vortex_torch.abs", "from vortex_torch.engine"),
    "VF080 cache operator": GOOD.replace("Fill,", "Fill, Variance,"),
    "VF081 learned": GOOD.replace("topK, approxTopK", "topK, Parameter, approxTopK"),
    "VF081 indexer only": GOOD.replace("Fill,", "Fill, Softmax as CSoftmax,"),
    "VF081 raw keys": scored("self.a = Mean(dim=1)", SCORE + 'self.a(cache["k"], ctx=ctx)\n' + TOP),
    "VF081 engine": scored("", SCORE + "n = ctx.metadata\n" + TOP),
    "VF081 long filter": scored(
        "self.f = Conv1d([[[1.0]]] * 17)", SCORE + "s = self.f(s, ctx=ctx)\n" + TOP
    ),
    "VF082 score": scored(
        "self.g = Multiply()", 'self.top(self.g(q, cache["c"], ctx=ctx), o, ctx=ctx)'
    ),
    "VF082 matmul": scored("self.g = GeMM()", SCORE + 's = self.g(s, cache["c"], ctx=ctx)\n' + TOP),
    "VF082 broadcast": scored(
        "self.g, self.f = Multiply(), Reshape(-1, 8, 16)",
        'x = self.f(cache["c"], ctx=ctx)\nself.g(q, x, ctx=ctx)',
    ),
    "VF082 reshape": scored("self.f = Reshape(-1, 3, 5)", SCORE + "s = self.f(s, ctx=ctx)\n" + TOP),
    "VF082 groups": GOOD.replace("CMean(dim=1)", "MeanInterleave(dim=1, k=5)"),
    "VF082 field": GOOD.replace('"c": (1, head_dim)', '"c": (2, head_dim)'),
    "VF082 mask": scored(
        "self.m = MaskSlice(0, 9, 1)", 'self.m(cache["c"], ctx=ctx)\n' + SCORE + TOP
    ),
    "VF082 filter": scored(
        "self.f = Conv1d([[[1.0, 2.0]]])", SCORE + "s = self.f(s, ctx=ctx)\n" + TOP
    ),
    "VF083 no ctx": GOOD.replace("self.mean(q, ctx=ctx)", "self.mean(q)"),
    "VF083 no loc": GOOD.replace('cache["c"], loc=loc, ctx=ctx)', 'cache["c"], ctx=ctx)'),
    "VF083 wrong half": GOOD.replace("self.mean = Mean(dim=1)", "self.mean = CMean(dim=1)"),
    "VF083 arguments": GOOD.replace("self.mean(q, ctx=ctx)", "self.mean(q, q, ctx=ctx)"),
    "VF083 number": GOOD.replace("self.mean(q, ctx=ctx)", "self.mean(3.0, ctx=ctx)"),
    "VF083 axis": GOOD.replace("self.mean = Mean(dim=1)", "self.mean = Mean(dim=3)"),
    "VF083 cache axis": GOOD.replace("CMean(dim=1)", "CMean(dim=0)"),
    "VF083 pages of a query": scored("self.a = Mean(dim=0)", "self.a(q, ctx=ctx)\n" + SCORE + TOP),
    "VF083 softmax of a query": scored(
        "self.a = Softmax(dim=0)", "self.a(q, ctx=ctx)\n" + SCORE + TOP
    ),
    "VF083 early": GOOD.replace("super().__init__()", "super().__init__()\n        Mean(dim=1)(1, ctx=2)"),
    "VF083 target": GOOD.replace("o, ctx=ctx)", "cache, ctx=ctx)"),
    "VF083 tolerance": GOOD.replace("topK()", "approxTopK(tolerate_ratio=1.5)"),
    "VF083 k": GOOD.replace("self.top = topK()", "self.top = TopK(k=0)"),
    "VF083 union": scored(
        "self.a, self.u = TopK(k=2), Union()",
        SCORE + "b, n = self.a(s, ctx=ctx)\nself.u((b, n), (b, 3), o, ctx=ctx)",
    ),
    "VF084 reuse": scored("", SCORE + "self.mean(q, ctx=ctx)\n" + TOP),
    "VF085 undeclared": GOOD.replace('cache["c"], ctx', 'cache["d"], ctx'),
    "VF085 reserved": GOOD.replace('"c": (1, head_dim)', '"k": (1, head_dim)'),
    "VF085 shape": GOOD.replace('"c": (1, head_dim)', '"c": (1, head_dim, 2)'),
    "VF085 no dict": GOOD.replace('{"c": (1, head_dim)}', "[1]"),
    "VF085 no writer": GOOD.replace('"c": (1, head_dim)', '"c": (1, head_dim), "d": (1, 1)'),
    "VF085 saved, not filled": scored(
        "self.save = Save()", SCORE + 'self.save(s, cache["c"], ctx=ctx)\n' + TOP
    ),
    "VF085 load after save": BUNDLED["running_average"].replace(
        "s = self.dot", 'self.save(q, cache["r"], ctx=ctx)\n        s = self.dot'
    ).replace("self.save(q,", "self.save(self.dot2(self.mean2(q, ctx=ctx), cache['c'], ctx=ctx),").replace(
        "self.mean, self.dot", "self.mean2, self.dot2 = Mean(dim=1), GeMM()\n        self.mean, self.dot"
    ),
    "VF085 filled and written": program(
        "self.a, self.b, self.top = CMean(dim=1), Fill(1.0), topK()", '{"c": (1, head_dim)}',
        'self.b(cache["c"], loc=loc, ctx=ctx)\nself.a(cache["k"], cache["c"], loc=loc, ctx=ctx)', "pass",
    ),
    "VF086 nothing": scored("", SCORE),
    "VF086 twice": scored("self.top2 = topK()", SCORE + TOP + "\nself.top2(s, o, ctx=ctx)"),
    "VF088 method": GOOD.replace("self.mean(q, ctx=ctx)", "q.sum(1)"),
    "VF088 operator": GOOD.replace("self.mean(q, ctx=ctx)", "(q * 2)"),
    "VF088 function": GOOD.replace("self.mean(q, ctx=ctx)", "torch.mean(q)"),
    "VF088 field": GOOD.replace("self.mean(q, ctx=ctx)", 'cache["c"].view(1)'),
    "VF088 output": GOOD.replace("o, ctx=ctx)", "o.clone(), ctx=ctx)"),
    "VF088 mean": GOOD.replace("self.mean(q, ctx=ctx)", "q.mean(dim=1)"),
    "VF089 nothing": GOOD[: GOOD.index("@register")],
    "VF002 file": GOOD.replace("import torch\n", "import torch\nimport os\n"),
    "VF002 submodule": GOOD.replace("import torch\n", "import torch\nimport torch.nn as nn\n"),
    "VF002 dunder": GOOD.replace("super().__init__()", "self.__class__.__mro__"),
    "VF002 private of others": GOOD.replace("self.mean(q, ctx=ctx)", "q._builder"),
    "VF002 star": GOOD.replace("vortex_torch.abs import ContextBase", "vortex_torch.indexer import *"),
    "VF005 Python": GOOD.replace("self.mean(q, ctx=ctx)", "undefined_name"),
    "VF004 method": GOOD[: GOOD.index("    def forward_indexer")],
}  # fmt: skip
# Mistakes of the program as a whole, which no single line makes.
NOWHERE = ("VF085 no writer", "VF085 no dict", "VF085 reserved", "VF085 shape")


@pytest.mark.parametrize("case", list(BAD))
def test_wrong_programs_end_in_one_code_at_the_authors_line(case: str) -> None:
    with pytest.raises(VortexError) as caught:
        run(BAD[case], "wrong.py")
    error = caught.value
    assert error.code == case[:5], str(error)
    assert error.remedy
    if error.code not in ("VF086", "VF089", "VF004") and case not in NOWHERE:
        assert error.location is not None
        assert error.location.file == "wrong.py"
        assert error.location.text


def test_every_code_of_the_dialect_has_a_wrong_program() -> None:
    covered = {case[:5] for case in BAD} | {code for _, code, _ in BAD_SETTINGS}
    assert {code for code in CATALOGUE if code.startswith("VF08")} <= covered


def test_the_jail_refuses_the_same() -> None:
    with pytest.raises(VortexError) as caught:
        dialects.convert(BAD["VF088 operator"], file="wrong.py")
    assert caught.value.code == "VF088"
    assert caught.value.location is not None
    assert "(q * 2)" in caught.value.location.text

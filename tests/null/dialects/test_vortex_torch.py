"""Programs written for vortex_torch read in unchanged, or are refused with a code that says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.null.dialects.programs import BUNDLED, centroid, program
from vortex_core import dialects, library
from vortex_core.dialects.vortex_torch.settings import Settings
from vortex_core.errors import VortexError
from vortex_core.ir.mistakes import CATALOGUE
from vortex_core.sandbox.jail import run
from vortex_core.sandbox.load import trace_file

GOOD = BUNDLED["block_topk"]


@pytest.mark.parametrize("name", list(BUNDLED))
def test_bundled_algorithms_are_the_library_flows(name: str) -> None:
    """Same hash: the converted program and the library's are one candidate."""
    source, options = library.source(name), {"vortex_block_size": 64 if "lserve" in name else 16}
    if name == "running_average":  # vortex_torch has one dtype for all fields
        source = source.replace(', dtype="fp32"', "")
    converted = run(BUNDLED[name], "program.py", options)
    assert converted.ir_hash == run(source, "flow.py").ir_hash
    assert (converted.name, converted.doc) == ("probe", "A program written for these tests.")


@pytest.mark.parametrize("name", list(BUNDLED))
def test_emitted_source_is_the_converted_candidate(name: str) -> None:
    converted = run(BUNDLED[name], "program.py", {"block_size": 64, "topk_val": 5})
    again = run(converted.source, "converted.py")
    assert (again.key, again.doc) == (converted.key, converted.doc)
    assert dialects.detect(converted.source) is None


def test_the_jail_converts_what_trusted_code_converts(tmp_path: Path) -> None:
    path = tmp_path / "submission.py"
    path.write_text(GOOD)
    knobs = {"vortex_block_size": 32, "vortex_topk_val": 29, "vortex_block_reserved_eos": 2, "tp_size": 1}
    path.with_suffix(".json").write_text(json.dumps(knobs))
    converted = dialects.convert_file(path)
    assert converted.key == run(GOOD, "x.py", knobs).key
    assert (converted.knobs.page_size, converted.knobs.budget) == (32, "1024")
    # Without its settings the same file is read wherever a flow is, with that system's defaults.
    assert trace_file(path).ir_hash == library.resolve(str(path)).ir_hash == converted.ir_hash
    assert dialects.convert_file(path, {"topk_val": 3}).knobs.budget == "80"


def test_only_foreign_programs_are_converted() -> None:
    with pytest.raises(VortexError, match="VF080"):
        dialects.convert(library.source("quest"))
    assert dialects.detect(library.source("quest")) is None


def latent(init: str, query: str, field: str = "latent") -> str:
    """A program over the mean latent of a page."""
    return program(
        "self.mean, self.dot, self.top, self.fold = Mean(dim=1), GeMM(), topK(), CMean(dim=1)\n" + init,
        '{"c": (1, kv_lora_rank + qk_rope_head_dim)}',
        f'self.fold(cache["{field}"], cache["c"], loc=loc, ctx=ctx)',
        query + 'self.top(self.dot(self.mean(p, ctx=ctx), cache["c"], ctx=ctx), o, ctx=ctx)',
        "vFlowMLA",
        "kv_lora_rank qk_rope_head_dim",
    )


def test_mla_programs() -> None:
    assert run(latent("", "p = q\n"), "x.py").ir_hash == library.load("block_topk").ir_hash
    unaware = latent(
        "self.mask, self.cut = MaskSlice(0, 512, 2), Multiply()",
        "p = self.cut(q, self.mask(q, ctx=ctx), ctx=ctx)\n",
    )
    assert "< 512" in run(unaware, "x.py").source
    with pytest.raises(VortexError) as caught:
        run(latent("", "p = q\n", field="k"), "x.py")
    assert caught.value.code == "VF085"


def test_one_file_with_several_flows_needs_a_name() -> None:
    source = (
        GOOD
        + '\n@register("other")\nclass Other(Probe):\n    """Another."""\n\n\nclass _Mixin:\n    WIDTH = 4\n'
    )
    with pytest.raises(VortexError) as caught:
        run(source, "x.py")
    assert caught.value.code == "VF089"
    assert "probe, other" in caught.value.message
    assert run(source, "x.py", {"vortex_module_name": "other"}).name == "other"


WRAPPED_REGISTER = """
from vortex_torch.flow.flow import vFlow
from vortex_torch.flow.registry import register as _register, _REGISTRY

def register(name):
    def wrap(cls):
        if name not in _REGISTRY:
            _register(name)(cls)
        return cls
    return wrap
"""


def test_helpers_mixins_loops_and_private_names() -> None:
    """What real submissions do: masks in a list, private helpers, a wrapper around register."""
    source = program(
        "self._setup()",
        '{"c": (1, head_dim)}',
        'self._mean(cache["k"], cache["c"], loc=loc, ctx=ctx)',
        'self.top(self.dot(self.fold(self._mask(q, ctx), ctx=ctx), cache["c"], ctx=ctx), o, ctx=ctx)',
    ).replace("from vortex_torch.flow import vFlow, register", WRAPPED_REGISTER)
    source += """
    GROUPS = [1, 3]

    def _setup(self):
        self._masks = [MaskSlice(start=16 * g, end=16 * (g + 1), dim=2) for g in self.GROUPS]
        self._adds = [Add() for _ in self.GROUPS[1:]]
        self._cut, self._mean, self.fold, self.dot, self.top = (
            Multiply(), CMean(dim=1), Mean(dim=1), GeMM(), topK()
        )

    def _mask(self, q, ctx):
        m = self._masks[0](q, ctx=ctx)
        for mask, add in zip(self._masks[1:], self._adds):
            m = add(m, mask(q, ctx=ctx), ctx=ctx)
        return self._cut(q, m, ctx=ctx)
"""
    converted = run(source, "x.py")
    flow = """from vortex_core import ops, vFlow
class F(vFlow):
    def create_cache(self, page): return {"c": page.state(dim=page.head_dim)}
    def forward_cache(self, page): return {"c": page.k.mean("token")}
    def forward_indexer(self, q, cache):
        d = ops.arange(dim="D")
        m = ops.where((d >= 16) & (d < 32), 1.0, 0.0) + ops.where((d >= 48) & (d < 64), 1.0, 0.0)
        return ops.topk(((q * m).mean("head") * cache["c"]).sum("dim"))
"""
    assert converted.ir_hash == run(flow, "f.py").ir_hash


# ---- settings ---------------------------------------------------------------------------------------------


def test_settings_become_knobs() -> None:
    settings = {
        "vortex_block_size": 32, "vortex_topk_val": 61, "topk_ratio": 0.0625, "vortex_block_reserved_bos": 2,
        "vortex_page_reserved_eos": 3, "vortex_layers_skip": [0, 1], "kv_cache_dtype": "fp8_e4m3",
        "vortex_dtype": "fp8_e5m2", "vortex_attention_backend": "trtllm", "mem_fraction_static": 0.85,
        "vortex_workload_chunk_size": 32, "model_path": "m", "disable_radix_cache": True,
    }  # fmt: skip
    found = run(GOOD, "x.py", settings)
    knobs = found.knobs
    assert (knobs.page_size, knobs.keep_first, knobs.keep_last) == (32, 2, 3)
    assert (knobs.dense_layers, knobs.kv_dtype) == ((0, 1), "fp8_e4m3")
    assert knobs.pages(1024) == 32  # everything: 66 blocks are asked for
    assert knobs.pages(32 * 100) == 61 + 2 + 3
    assert knobs.pages(32 * 2000) == 125
    assert [s.dtype for s in found.program.states] == ["fp8_e5m2"]
    assert run(GOOD, "x.py", {"vortex": {"topk_val": 7}}).knobs.budget == "144"


@pytest.mark.parametrize(
    ("policy", "blocks"),
    [
        ("return topk_val + block_reserved_bos + block_reserved_eos;", {100: 32, 6400: 32}),
        (
            """
            // grow slowly
            const int base = topk_val + block_reserved_bos + block_reserved_eos;
            const int extra = cached_block_len / 64;
            return min(base + extra, 40);
            """,
            {100: 33, 639: 40, 6400: 40},
        ),
        (
            "float r = topk_ratio * cached_block_len; return max(topk_val, (int)(r * 2.0f));",
            {100: 30, 1000: 125},
        ),
        (
            "int n = static_cast<int>(0.1f * cached_block_len) + 5 /* slack */; return std::max(n, 8);",
            {10: 8, 100: 15},
        ),
    ],
)
def test_schedule_policies_are_translated(policy: str, blocks: dict[int, int]) -> None:
    options = {"vortex_schedule_policy": policy, "vortex_topk_ratio": 0.0625}
    knobs = run(GOOD, "x.py", options).knobs
    for total, wanted in blocks.items():
        # A partial last block counts: cached_block_len is rounded up.
        assert knobs.pages(16 * total) == min(total, wanted)
        assert knobs.pages(16 * total - 7) == min(total, wanted)


BAD_SETTINGS = [
    ({"vortex_topk_vla": 3}, "VF087", "topk_val"),
    ({"vortex_dtype": "int8"}, "VF087", "bfloat16"),
    ({"vortex_topk_val": "many"}, "VF087", "whole number"),
    ({"vortex_topk_ratio": 2}, "VF087", "from 0 to 1"),
    ({"vortex_layers_skip": 3}, "VF087", "list"),
    ({"kv_cache_dtype": "int4"}, "VF087", "fp8"),
    ({"vortex_kv_int4": True}, "VF081", "fp8"),
    ({"vortex_block_size": 24}, "VF061", "8, 16"),
    ({"vortex_block_reserved_eos": 0}, "VF087", "from 1"),
    ({"vortex_module_name": "unknown"}, "VF089", "probe"),
    (
        {"vortex_schedule_policy": "if (cached_block_len > 9) return 4; return 5;"},
        "VF087",
        "only declarations",
    ),
    ({"vortex_schedule_policy": "return blocks;"}, "VF087", "blocks"),
    ({"vortex_schedule_policy": "int a = 3;"}, "VF087", "returns nothing"),
    ({"vortex_schedule_policy": "return __import__('os');"}, "VF087", "no sum"),
]


@pytest.mark.parametrize(("options", "code", "hint"), BAD_SETTINGS)
def test_bad_settings_are_refused(options: dict[str, object], code: str, hint: str) -> None:
    with pytest.raises(VortexError) as caught:
        run(GOOD, "x.py", options)
    assert caught.value.code == code
    assert hint in str(caught.value)


def test_modules_of_its_own_package_import_their_neighbours() -> None:
    absolute = (
        "from vortex_torch.flow import vFlow, register\nfrom vortex_torch.indexer import topK, Mean, GeMM\n"
        "from vortex_torch.cache import Mean as Fold\n"
    )
    body = """
@register("inside")
class Inside(vFlow):
    def __init__(self):
        super().__init__()
        self.mean, self.dot, self.best, self.fold = Mean(dim=1), GeMM(), topK(), Fold(dim=1)
    def create_cache(self, block_size, head_dim):
        return {"c": (1, head_dim)}
    def forward_cache(self, cache, loc, ctx):
        self.fold(cache["k"], cache["c"], loc=loc, ctx=ctx)
    def forward_indexer(self, q, o, cache, ctx):
        self.best(self.dot(self.mean(q, ctx=ctx), cache["c"], ctx=ctx), o, ctx=ctx)
"""
    relative = (
        "from .flow import vFlow\nfrom .registry import register\nfrom ..indexer import topK, Mean, GeMM\n"
        "from ..cache import Mean as Fold\n"
    )
    modules = (
        "from vortex_torch import indexer, vFlow, register\nimport vortex_torch.cache as c\n"
        "topK, Mean, GeMM, Fold = indexer.topK, indexer.Mean, indexer.GeMM, c.Mean\n"
    )
    keys = {run(head + body, "x.py").key for head in (absolute, relative, modules)}
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"topk_vall": 8}, "vortex_topk_val"), ({"vortex_layers_skip": 0}, "list"),
        ({"vortex_topk_val": 8, "topk_val": 9}, "once"),
        ({"vortex_page_reserved_bos": 1, "block_reserved_bos": 2}, "once"),
    ],
)  # fmt: skip
def test_settings_are_never_ignored_silently(options: dict[str, object], hint: str) -> None:
    with pytest.raises(VortexError, match=f"VF087.*{hint}"):
        Settings.read(options, is_mla=False)


def test_early_names_of_settings_are_known() -> None:
    found = Settings.read(
        {"vortex_page_size": 32, "vortex_page_reserved_bos": 2, "page_size": 1}, is_mla=False
    )
    assert (found.block_size, found.bos) == (32, 2)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(GOOD)
    (tmp_path / "a.json").write_text("[1]")
    for path, code in ((tmp_path / "b.py", "VF000"), (tmp_path / "a.py", "VF087")):
        with pytest.raises(VortexError) as caught:
            dialects.convert_file(path)
        assert caught.value.code == code
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(VortexError, match="VF087"):
        dialects.convert_file(tmp_path / "a.py")


# ---- programs that cannot be -------------------------------------------------------------------------------


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


@pytest.mark.parametrize("tolerance", [0.0, 0.25, 0.9])
def test_approximate_selection_promises_at_least_the_same_recall(tolerance: float) -> None:
    source = GOOD.replace("topK()", f"approxTopK(tolerate_ratio={tolerance})")
    assert run(source, "x.py").program.result.attr.get("recall", 1.0) >= 1 - tolerance


def test_every_operator_of_the_package_is_known() -> None:
    """The lists of vortex_torch's indexer and cache packages; learned constants are refused with a reason."""
    from vortex_core.dialects.vortex_torch import cache, indexer

    binary = "Maximum Minimum Multiply Add WhereEqual WhereNotEqual WhereGreater WhereGreaterEqual"
    binary += " WhereLess WhereLessEqual"
    unary = "Relu Sigmoid Silu Add_Mul Abs Log Exp"
    inside = f"{binary} {unary} GeMM GeMV Max Mean Min L2Norm Sum Softmax Normalize Conv1d Transpose Save"
    inside += " Load MaskSlice Kron Reshape topK approxTopK TopK Union"
    pages = f"{binary} {unary} GeMM Max Mean Min L2Norm MeanInterleave MaxInterleave MinInterleave"
    pages += " L2NormInterleave Fill MaskSlice Reshape"
    assert set(indexer.OPERATORS) == set(inside.split())
    assert set(cache.OPERATORS) == set(pages.split())
    assert {"Parameter", "LearnedQuery"} <= set(indexer.MISSING)

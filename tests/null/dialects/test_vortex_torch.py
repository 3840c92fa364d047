"""Programs written for vortex_torch read in unchanged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.null.dialects.programs import BUNDLED, program
from vortex_core import dialects, library
from vortex_core.errors import VortexError
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

"""Programs in the vortex_torch dialect, written for these tests. Between them they use every operator."""

from __future__ import annotations

HEADER = """
import torch
from typing import Dict, Tuple
from vortex_torch.flow import vFlow, register
from vortex_torch.abs import ContextBase
from vortex_torch.indexer import (
    topK, approxTopK, TopK, Union, Mean, Max, Min, Sum, L2Norm, GeMM, GeMV, Multiply, Add, Maximum, Minimum,
    Kron, Softmax, Normalize, Conv1d, Relu, Sigmoid, Silu, Add_Mul, Abs, Log, Exp, Save, Load, MaskSlice,
    Reshape, Transpose, WhereEqual, WhereNotEqual, WhereGreater, WhereGreaterEqual, WhereLess,
    WhereLessEqual,
)
from vortex_torch.cache import (
    Mean as CMean, Max as CMax, Min as CMin, L2Norm as CL2Norm, MeanInterleave, MaxInterleave, MinInterleave,
    L2NormInterleave, GeMM as CGeMM, Multiply as CMultiply, Add as CAdd, Maximum as CMaximum,
    Minimum as CMinimum, Relu as CRelu, Sigmoid as CSigmoid, Silu as CSilu, Add_Mul as CAdd_Mul, Abs as CAbs,
    Log as CLog, Exp as CExp,
    WhereEqual as CWhereEqual, WhereNotEqual as CWhereNotEqual, WhereGreater as CWhereGreater,
    WhereGreaterEqual as CWhereGreaterEqual, WhereLess as CWhereLess, WhereLessEqual as CWhereLessEqual,
    Fill, MaskSlice as CMaskSlice, Reshape as CReshape,
)
"""


def program(
    init: str, fields: str, cache: str, index: str, base: str = "vFlow", args: str = "head_dim"
) -> str:
    """A whole program from its bodies (one statement a line)."""

    def block(text: str) -> str:
        return (
            "\n".join(f"        {line}" for line in text.strip().splitlines() if line.strip())
            or "        pass"
        )

    header = HEADER if base == "vFlow" else HEADER.replace("import vFlow,", "import vFlow, vFlowMLA,")
    return f'''{header}

@register("probe")
class Probe({base}):
    """A program written for these tests."""

    def __init__(self):
        super().__init__()
{block(init)}

    def create_cache(self, block_size: int, {", ".join(f"{a}: int" for a in args.split())}):
        return {fields}

    def forward_cache(self, cache: Dict[str, torch.Tensor], loc: torch.Tensor, ctx: ContextBase):
{block(cache)}

    def forward_indexer(
        self, q: torch.Tensor, o: torch.Tensor, cache: Dict[str, torch.Tensor], ctx: ContextBase
    ):
{block(index)}
'''


def centroid(init: str, index: str) -> str:
    """A program over mean keys: `c` is `[S, 1, D]`."""
    return program(
        "self.k_mean = CMean(dim=1)\nself.top = topK()\n" + init,
        '{"c": (1, head_dim)}',
        'self.k_mean(cache["k"], cache["c"], loc=loc, ctx=ctx)',
        index,
    )


def per_page(init: str, cache: str, fields: str = '{"f": (1, 1)}') -> str:
    """A program whose score is the field `f` that forward_cache computes, times the query's norm."""
    return program(
        "self.top = topK()\nself.norm = L2Norm(dim=2)\nself.most = Max(dim=1)\nself.mul = Multiply()\n"
        + init,
        fields,
        cache,
        'n = self.most(self.norm(q, ctx=ctx), ctx=ctx)\nself.top(self.mul(cache["f"], n, '
        "ctx=ctx), o, ctx=ctx)",
    )


# Programs that must be the library's flows, by hash.
BUNDLED = {
    "block_topk": centroid(
        "self.mean = Mean(dim=1)\nself.dot = GeMV()",
        'self.top(self.dot(self.mean(q, ctx=ctx), cache["c"], ctx=ctx), o, ctx=ctx)',
    ),
    "centered_block_topk": centroid(
        "self.mean = Mean(dim=1)\nself.dot = GeMM()\nself.all = Mean(dim=0)\nself.sub = "
        "Add(alpha=1.0, beta=-1.0)",
        's = self.dot(self.mean(q, ctx=ctx), cache["c"], ctx=ctx)\n'
        "self.top(self.sub(s, self.all(s, ctx=ctx), ctx=ctx), o, ctx=ctx)",
    ),
    "gqa_block_topk": centroid(
        "self.dot = GeMM()\nself.soft = Softmax(dim=0, scale=0.09)\nself.most = Max(dim=2)",
        's = self.soft(self.dot(q, cache["c"], ctx=ctx), ctx=ctx)\nself.top(self.most(s, '
        "ctx=ctx), o, ctx=ctx)",
    ),
    "quest": program(
        "self.up, self.low, self.env = Multiply(), Multiply(), Maximum()\nself.sum, self.most = "
        "Sum(dim=2), Max(dim=1)\n"
        "self.top, self.kmax, self.kmin = topK(), CMax(dim=1), CMin(dim=1)",
        '{"hi": (1, head_dim), "lo": (1, head_dim)}',
        'self.kmax(cache["k"], cache["hi"], loc=loc, ctx=ctx)\nself.kmin(cache["k"], '
        'cache["lo"], loc=loc, ctx=ctx)',
        'e = self.env(self.up(q, cache["hi"], ctx=ctx), self.low(q, cache["lo"], ctx=ctx), ctx=ctx)\n'
        "self.top(self.most(self.sum(e, ctx=ctx), ctx=ctx), o, ctx=ctx)",
    ),
    "masked_quest": program(
        "self.mask, self.cut = MaskSlice(0, 8, 2, 0.0, 1.0), Multiply()\n"
        "self.up, self.low, self.env = Multiply(), Multiply(), Maximum()\nself.sum, self.most = "
        "Sum(dim=2), Max(dim=1)\n"
        "self.top, self.kmax, self.kmin = topK(), CMax(dim=1), CMin(dim=1)",
        '{"hi": (1, head_dim), "lo": (1, head_dim)}',
        'self.kmax(cache["k"], cache["hi"], loc=loc, ctx=ctx)\nself.kmin(cache["k"], '
        'cache["lo"], loc=loc, ctx=ctx)',
        "p = self.cut(q, self.mask(q, ctx=ctx), ctx=ctx)\n"
        'e = self.env(self.up(p, cache["hi"], ctx=ctx), self.low(p, cache["lo"], ctx=ctx), ctx=ctx)\n'
        "self.top(self.most(self.sum(e, ctx=ctx), ctx=ctx), o, ctx=ctx)",
    ),
    "lserve": program(
        "self.up, self.low, self.env = Kron(dim=1), Kron(dim=1), Maximum()\nself.sum, self.most "
        "= Sum(dim=2), Max(dim=1)\n"
        "self.top, self.kmax, self.kmin = topK(), MaxInterleave(dim=1, k=16), MinInterleave(dim=1, k=16)",
        '{"hi": (block_size // 16, head_dim), "lo": (block_size // 16, head_dim)}',
        'self.kmax(cache["k"], cache["hi"], loc=loc, ctx=ctx)\nself.kmin(cache["k"], '
        'cache["lo"], loc=loc, ctx=ctx)',
        'e = self.env(self.up(q, cache["hi"], ctx=ctx), self.low(q, cache["lo"], ctx=ctx), ctx=ctx)\n'
        "self.top(self.most(self.sum(e, ctx=ctx), ctx=ctx), o, ctx=ctx)",
    ),
    "lserve_centroid": program(
        "self.mean, self.dot, self.most, self.top = Mean(dim=1), GeMM(), Max(dim=1), topK()\n"
        "self.fold = MeanInterleave(dim=1, k=16)",
        '{"c": (block_size // 16, head_dim)}',
        'self.fold(cache["k"], cache["c"], loc=loc, ctx=ctx)',
        's = self.dot(self.mean(q, ctx=ctx), cache["c"], ctx=ctx)\nself.top(self.most(s, '
        "ctx=ctx), o, ctx=ctx)",
    ),
    "running_average": program(
        "self.k_mean, self.zero, self.top = CMean(dim=1), Fill(0.0), topK()\n"
        "self.mean, self.dot, self.load, self.add, self.save = Mean(dim=1), GeMM(), Load(), "
        "Add(0.9, 1.0), Save()",
        '{"c": (1, head_dim), "r": (1, 1)}',
        'self.k_mean(cache["k"], cache["c"], loc=loc, ctx=ctx)\nself.zero(cache["r"], loc=loc, ctx=ctx)',
        's = self.dot(self.mean(q, ctx=ctx), cache["c"], ctx=ctx)\n'
        'r = self.add(self.load(cache["r"], ctx=ctx), s, ctx=ctx)\n'
        'self.save(r, cache["r"], ctx=ctx)\nself.top(r, o, ctx=ctx)',
    ),
    "value_energy": program(
        "self.k_mean, self.norm, self.v_mean = CMean(dim=1), CL2Norm(dim=2), CMean(dim=1)\n"
        "self.mean, self.dot, self.gate, self.top = Mean(dim=1), GeMM(), Multiply(), topK()",
        '{"c": (1, head_dim), "e": (1, 1)}',
        'self.k_mean(cache["k"], cache["c"], loc=loc, ctx=ctx)\n'
        'n = self.norm(cache["v"], None, loc=loc, ctx=ctx)\nself.v_mean(n, cache["e"], loc=loc, ctx=ctx)',
        's = self.dot(self.mean(q, ctx=ctx), cache["c"], ctx=ctx)\n'
        'self.top(self.gate(s, cache["e"], ctx=ctx), o, ctx=ctx)',
    ),
}

"""The operators of the IR, each defined once.

An `OpSpec` holds everything there is to know about an operator: where it is legal, how it types, what it
computes. The eager method, the IR node, the verifier rule, the oracle, the cost and the documentation page
all read it here. Operators that look across pages must see real pages only; a batched backend masks padding
itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from vortex_core.ir import definitions as define
from vortex_core.ir import rules
from vortex_core.ir.definitions import Math
from vortex_core.ir.rules import Attrs, Infer
from vortex_core.ir.traits import NOTHING, Traits
from vortex_core.ir.types import Domain, Stage

Group = Literal[
    "source", "unary", "binary", "compare", "logic", "reduce", "scan", "decompose", "shape", "select"
]
BOTH: frozenset[Stage] = frozenset({"cache", "index"})
CACHE: frozenset[Stage] = frozenset({"cache"})
INDEX: frozenset[Stage] = frozenset({"index"})


@dataclass(frozen=True)
class OpSpec:
    """One operator.

    Attributes:
        name: as in the IR.
        group: its family.
        arity: number of inputs.
        attrs: attribute names.
        stages: where it is legal.
        infer: types the result, or raises a catalogued `VortexError`.
        math: the definition, None for sources and selections (backends supply those).
        formula: the definition for people.
        doc: one sentence.
        commutes: whether inputs may be swapped.
        flops: floating-point operations per element of the larger of input and output.
        traits: what may be assumed about it; nothing, unless it says so.
    """

    name: str
    group: Group
    arity: int
    attrs: tuple[str, ...]
    stages: frozenset[Stage]
    infer: Infer
    math: Math | None
    formula: str
    doc: str
    commutes: bool = False
    flops: float = 1.0
    traits: Traits = NOTHING

    @property
    def is_method(self) -> bool:
        """Whether authors write it as a method of its own name without arguments: `x.exp()`."""
        return self.group == "unary" and not self.attrs and self.name != "neg"


OPS: dict[str, OpSpec] = {}


def _op(
    name: str,
    group: Group,
    arity: int,
    infer: Infer,
    definition: Math | None,
    formula: str,
    doc: str,
    *,
    attrs: tuple[str, ...] = (),
    stages: frozenset[Stage] = BOTH,
    commutes: bool = False,
    flops: float = 1.0,
    traits: Traits = NOTHING,
) -> None:
    assert name not in OPS, name
    OPS[name] = OpSpec(
        name, group, arity, attrs, stages, infer, definition, formula, doc, commutes, flops, traits
    )


# ---- sources ----------------------------------------------------------------------------------------------


def _source(
    name: str,
    dims: str,
    domain: Domain,
    stages: frozenset[Stage],
    formula: str,
    doc: str,
    traits: Traits = NOTHING,
) -> None:
    infer = rules.source(dims, domain)
    _op(name, "source", 0, infer, None, formula, doc, stages=stages, flops=0, traits=traits)


_source(
    "q", "head=G dim=D", "query", INDEX, "q[head, dim]",
    "The query of this step, after rotation (MLA: absorbed).",
)  # fmt: skip
_source(
    "k", "token=S dim=D", "state", CACHE, "k[token, dim]",
    "Keys of the completed page, after rotation (MLA: the latent).",
)  # fmt: skip
_source(
    "v", "token=S dim=D", "state", CACHE, "v[token, dim]",
    "Values of the completed page (MLA: the latent with its rotary channels zero).",
)  # fmt: skip
_source(
    "position", "page=P", "page", INDEX, "0, 1, 2, ...",
    "Logical page number, from the start of the sequence.", traits=Traits(sign="nonneg"),
)  # fmt: skip
# Both are at least 1 wherever pages are scored.
_source(
    "pages", "", "query", INDEX, "P", "Number of complete pages of the sequence.", traits=Traits(sign="positive")
)  # fmt: skip
_source(
    "length", "", "query", INDEX, "L", "Tokens in the sequence, the current one included.",
    traits=Traits(sign="positive"),
)  # fmt: skip
_source(
    "mass", "page=P head=G", "page", INDEX, "mass[page, head]",
    "Attention probability each page received in the previous step (0 if not attended).",
    traits=Traits(sign="nonneg", bounded=True),
)  # fmt: skip
_source(
    "dense_mass", "page=P head=G", "page", INDEX, "dense mass[page, head]",
    "Attention probability each page receives in this very step in the nearest layer before it of `dense_layers`.",
    traits=Traits(sign="nonneg", bounded=True),
)  # fmt: skip
_source(
    "rotary", "dim=D", "query", BOTH, "turn[dim]",
    "Radians that each channel's rotary pair turns a token, of the model at work; 0 where it is not rotated. "
    "`2 * math.pi / ops.rotary()` is the wavelength in tokens.",
    traits=Traits(sign="nonneg"),
)  # fmt: skip
_op("const", "source", 0, rules.const, None, "c", "A number.", attrs=("value",), flops=0)
_op(
    "extent", "source", 0, rules.extent, None, "|dim|", "The size of a model dimension, as a number.",
    attrs=("extent",), flops=0, traits=Traits(sign="positive"),
)  # fmt: skip
_op(
    "iota", "source", 0, rules.iota, None, "0, 1, 2, ...", "Counts along a new dimension.",
    attrs=("dim", "extent"), flops=0, traits=Traits(sign="nonneg"),
)  # fmt: skip
_op(
    "load", "source", 0, rules.load, None, "state[page, ...]",
    "A page state, for every complete page of the sequence; of scope \"request\" one value, without `page`.",
    attrs=("name", "dims", "scope"), stages=INDEX, flops=0,
)  # fmt: skip
_op(
    "param", "source", 0, rules.param, None, "W[...]",
    "Values that come with the flow, in `params = {\"w\": [[...]]}` or a file beside it; without any, `ops.signs`.",
    attrs=("name", "dims"), flops=0,
)  # fmt: skip

# ---- pointwise --------------------------------------------------------------------------------------------

_floats, _compares = rules.pointwise("float", "float"), rules.pointwise("float", "bool")
_masks = rules.pointwise("bool", "bool")


def _unary(
    name: str, of: Callable[[Any, Any], Any], formula: str, doc: str, flops: float, traits: Traits = NOTHING
) -> None:
    def one(t: Any, a: Any, axes: Any, attrs: Attrs) -> Any:
        return of(t, a[0])

    _op(name, "unary", 1, _floats, one, formula, doc, flops=flops, traits=traits)


def _binary(
    name: str,
    of: Callable[[Any, Any, Any], Any],
    formula: str,
    doc: str,
    *,
    commutes: bool = True,
    traits: Traits = NOTHING,
) -> None:
    def both(t: Any, a: Any, axes: Any, attrs: Attrs) -> Any:
        return of(t, a[0], a[1])

    _op(name, "binary", 2, _floats, both, formula, doc, commutes=commutes, traits=traits)


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


_unary("neg", lambda t, x: -x, "-x", "Negation.", 1)
_unary(
    "exp", lambda t, x: t.exp(x), "e^x", "Exponential.", 4,
    traits=Traits(increasing="always", sign="positive", scalar=math.exp),
)  # fmt: skip
_unary(
    "log", lambda t, x: t.log(x), "ln x", "Natural logarithm; NaN below 0, which ranks last.", 4,
    traits=Traits(increasing="nonneg", scalar=math.log),
)  # fmt: skip
_unary(
    "sqrt", lambda t, x: t.sqrt(x), "x^(1/2)", "Square root; NaN below 0.", 2,
    traits=Traits(increasing="nonneg", keeps_zero=True, scalar=math.sqrt),
)  # fmt: skip
_unary("abs", lambda t, x: t.abs(x), "|x|", "Absolute value.", 1, traits=Traits(keeps_zero=True))
_unary(
    "sigmoid", lambda t, x: t.sigmoid(x), "1 / (1 + e^-x)", "Logistic function.", 6,
    traits=Traits(increasing="always", sign="positive", bounded=True, scalar=_logistic),
)  # fmt: skip
_unary(
    "tanh", lambda t, x: t.tanh(x), "tanh x", "Hyperbolic tangent.", 6,
    traits=Traits(increasing="always", keeps_zero=True, bounded=True, scalar=math.tanh),
)  # fmt: skip
_unary(
    "sign", define.sign, "-1 if x < 0 else 1", "Sign bit: zero counts as positive.", 1,
    traits=Traits(scale="invariant", bounded=True, continuous=False, scalar=lambda x: -1.0 if x < 0 else 1.0),
)  # fmt: skip
_unary(
    "floor", lambda t, x: t.floor(x), "floor x", "Largest whole number not above x.", 1,
    traits=Traits(keeps_zero=True, continuous=False, scalar=math.floor),
)  # fmt: skip
_op(
    "cast", "unary", 1, rules.cast, define.cast, "round(x)",
    "Rounds to a storage dtype; saturates beyond its range.",
    attrs=("dtype",), traits=Traits(keeps_zero=True),
)  # fmt: skip
_binary("add", lambda t, x, y: x + y, "x + y", "Sum.", traits=Traits(keeps_zero=True))
_binary("sub", lambda t, x, y: x - y, "x - y", "Difference.", commutes=False)
_binary("mul", lambda t, x, y: x * y, "x y", "Product.")
_binary(
    "div", define.divide, "x / y", "Quotient; zero has no sign: x / 0 is +-inf by the sign of x.", commutes=False
)  # fmt: skip
_binary(
    "maximum", lambda t, x, y: t.maximum(x, y), "max(x, y)", "The larger.",
    traits=Traits(keeps_zero=True, mirror="minimum"),
)  # fmt: skip
_binary(
    "minimum", lambda t, x, y: t.minimum(x, y), "min(x, y)", "The smaller.",
    traits=Traits(keeps_zero=True, mirror="maximum"),
)  # fmt: skip
_op(
    "lt", "compare", 2, _compares, lambda t, a, axes, attrs: a[0] < a[1], "x < y", "Strictly less.",
    traits=Traits(continuous=False),
)  # fmt: skip
_op(
    "le", "compare", 2, _compares, lambda t, a, axes, attrs: a[0] <= a[1], "x <= y", "Less or equal.",
    traits=Traits(continuous=False),
)  # fmt: skip
_op(
    "eq", "compare", 2, _compares, lambda t, a, axes, attrs: a[0] == a[1], "x = y", "Equal.",
    commutes=True, traits=Traits(continuous=False),
)  # fmt: skip
_op("not", "logic", 1, _masks, lambda t, a, axes, attrs: ~a[0], "not m", "Negated mask.")
_op("and", "logic", 2, _masks, lambda t, a, axes, attrs: a[0] & a[1], "m and n", "Both.", commutes=True)
_op("or", "logic", 2, _masks, lambda t, a, axes, attrs: a[0] | a[1], "m or n", "Either.", commutes=True)
_op(
    "where", "logic", 3, rules.where, lambda t, a, axes, attrs: t.where(a[0], a[1], a[2]), "x where m else y",
    "Choice by mask.",
)  # fmt: skip

# ---- reductions and scans ---------------------------------------------------------------------------------

for _name, _math, _formula, _doc, _traits in (
    ("sum", define.total, "sum over dims", "Sum over dimensions.", Traits(keeps_zero=True, neutral=0.0)),
    ("mean", define.mean, "sum over dims / count", "Mean over dimensions.", Traits(keeps_zero=True)),
    ("amax", define.largest_of, "max over dims", "Maximum over dimensions.",
     Traits(picks=True, keeps_zero=True, mirror="amin", neutral=-math.inf)),
    ("amin", define.smallest_of, "min over dims", "Minimum over dimensions.",
     Traits(picks=True, keeps_zero=True, mirror="amax", neutral=math.inf)),
):  # fmt: skip
    _op(_name, "reduce", 1, rules.reduce, _math, _formula, _doc, attrs=("dims",), traits=_traits)
_op(
    "softmax", "scan", 1, rules.along(), lambda t, a, axes, attrs: t.softmax(a[0], axes[attrs["dim"]]),
    "e^x / sum e^x", "Softmax along a dimension.", attrs=("dim",), flops=8,
    traits=Traits(sign="positive", bounded=True, neutral=-math.inf),
)  # fmt: skip
_op(
    "cumsum", "scan", 1, rules.along(), lambda t, a, axes, attrs: t.cumsum(a[0], axes[attrs["dim"]]),
    "running sum", "Running sum along a dimension, itself included.", attrs=("dim",),
    traits=Traits(scale="linear", keeps_zero=True, neutral=0.0),
)  # fmt: skip
_op(
    "conv", "scan", 1, rules.along(rules.check_conv), define.conv, "y[i] = sum_j w[j] x[i + j - half]",
    "Centred convolution along a dimension, zero outside.", attrs=("dim", "weights"), flops=6,
    traits=Traits(scale="linear", keeps_zero=True, neutral=0.0),
)  # fmt: skip
_op(
    "maxpool", "scan", 1, rules.along(rules.check_pool), define.pool, "y[i] = max |j - i| <= half of x[j]",
    "Centred maximum along a dimension.", attrs=("dim", "size"), flops=3,
    traits=Traits(picks=True, keeps_zero=True, neutral=-math.inf),
)  # fmt: skip
_op(
    "largest", "scan", 1, rules.along(rules.check_largest, "bool"), define.largest, "mask of the k largest",
    "Mask of the k largest along a dimension (ties: the lower index).", attrs=("dim", "k"), flops=10,
    traits=Traits(scale="invariant", continuous=False),
)  # fmt: skip

# ---- decompositions ---------------------------------------------------------------------------------------

_op(
    "principal", "decompose", 1, rules.principal, define.principal, "B[into, dim]: leading directions of x[over, dim]",
    "Orthonormal directions along `dim` in which rows `over` spread most. About the largest first, 0 beyond the rank; "
    "not centred. Steps of orthogonal iteration on the rows' Gram matrix, as many for every input.",
    attrs=("over", "dim", "into", "rank"), stages=CACHE, flops=100,
    traits=Traits(scale="invariant", keeps_zero=True, bounded=True, continuous=False),
)  # fmt: skip

# ---- shape ------------------------------------------------------------------------------------------------

_MOVES = Traits(scale="linear", picks=True, keeps_zero=True)
_op(
    "slice", "shape", 1, rules.slice_, define.narrow, "x[start:stop]", "A range of a dimension.",
    attrs=("dim", "start", "stop"), flops=0, traits=_MOVES,
)  # fmt: skip
_op(
    "channels", "shape", 1, rules.channels, define.narrow, "x[group]", "The rotary or the unrotated channels.",
    attrs=("group",), flops=0, traits=_MOVES,
)  # fmt: skip
_op(
    "split", "shape", 1, rules.split, None, "x[i * inner + j] -> x[i, j]",
    "Consecutive groups of a dimension, numbered by a new one.", attrs=("dim", "into", "parts"), flops=0,
    traits=_MOVES,
)  # fmt: skip
_op(
    "concat", "shape", 2, rules.concat, None, "x, then y", "One tensor after the other along a dimension.",
    attrs=("dim",), flops=0, traits=Traits(picks=True, keeps_zero=True),
)  # fmt: skip
_op(
    "rename", "shape", 1, rules.rename, None, "x[old] -> x[new]",
    "Another dimension name (for outer products).", attrs=("dim", "to"), flops=0, traits=_MOVES,
)  # fmt: skip

# ---- selection --------------------------------------------------------------------------------------------

_op(
    "topk", "select", 1, rules.score, None, "the k pages with the highest score",
    'The best pages within the budget. recall=0.95 allows an approximate kernel; share="max" or "mean" over kv '
    "heads gives them one selection; fraction=0.5 of the budget, for unions.",
    attrs=("fraction", "share", "recall"), stages=INDEX, flops=10,
)  # fmt: skip
_op(
    "topp", "select", 1, rules.score, None, "the fewest pages whose softmax mass reaches p",
    "Adaptive count: best pages until their softmax mass reaches p, at most the budget.",
    attrs=("p", "fraction", "share"), stages=INDEX, flops=20,
)  # fmt: skip
_op(
    "threshold", "select", 1, rules.score, None, "pages with score >= at",
    "Pages at or above a score, at most the budget, best first.",
    attrs=("at", "fraction", "share"), stages=INDEX, flops=10,
)  # fmt: skip
_op(
    "refine", "select", 2, rules.refine, None, "the k pages with the highest y among the candidates by x",
    "Selection in two stages: the best pages by a cheap score are candidates, `candidates` budgets of them, and "
    "the best of these by a dear one are selected. The dear score is computed for candidates alone.",
    attrs=("candidates", "fraction"), stages=INDEX, flops=20,
)  # fmt: skip
_op(
    "union", "select", 2, rules.union, None, "A or B", "Pages in either selection.",
    stages=INDEX, commutes=True,
)  # fmt: skip
_op(
    "residual", "select", 3, rules.residual, None, "A, and every other page as one entry e^w v",
    "What a selection leaves out, merged into the output: each other complete page counts as one entry of weight "
    "e^mass and of one value, a state of D channels in bf16, fp16 or fp32. The last word of a flow.",
    stages=INDEX,
)  # fmt: skip
_op("everything", "select", 0, rules.everything, None, "all pages", "Dense attention.", stages=INDEX, flops=0)

"""The language described from its own definitions: what agents read, and the generated pages under docs/.

python -m vortex_core.flow.reference --write docs
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, fields

from vortex_core.flow import ops
from vortex_core.flow.vtensor import vTensor
from vortex_core.ir import mistakes
from vortex_core.ir.budget import CALLS, NAMES
from vortex_core.ir.graph import MAX_NODES, MAX_NUMBERS
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.opset import OPS, OpSpec
from vortex_core.ir.program import STATE_DTYPES
from vortex_core.ir.types import LARGEST, SYMBOLS
from vortex_core.ir.verify import MAX_STATES

EXAMPLES = (
    "quest",
    "running_average",
)  # of what pages hold, and of what steps carry; `_BY_TOKEN` is of tokens


@dataclass(frozen=True)
class Spelling:
    """How authors write an operator.

    Attributes:
        text: as shown; also Python that traces, for `x` and `y` floats, `m` and `n` masks, `s` and `t`
            scores, `a` and
            `b` selections (a test runs every one).
        op: the IR operator it records, or the name of the vTensor method whose docstring describes it.
    """

    text: str
    op: str


# One line per IR operator, in the order of the opset. A test checks that none is missing and that each
# traces.
SPELLINGS: tuple[Spelling, ...] = (
    Spelling("q", "q"),
    Spelling("page.k", "k"),
    Spelling("page.v", "v"),
    Spelling('cache["name"]', "load"),
    Spelling("ops.position()", "position"),
    Spelling("ops.pages()", "pages"),
    Spelling("ops.length()", "length"),
    Spelling("ops.rotary()", "rotary"),
    Spelling("ops.mass()", "mass"),
    Spelling("ops.dense_mass()", "dense_mass"),
    Spelling("2.5", "const"),
    Spelling('ops.size("D")', "extent"),
    Spelling('ops.arange(dim="D")', "iota"),
    Spelling('ops.param("w", rank=16, dim="D")', "param"),
    Spelling("-x", "neg"),
    *(Spelling(f"x.{name}()", name) for name, spec in OPS.items() if spec.is_method),
    Spelling('x.to("bf16")', "cast"),
    Spelling("x + y", "add"),
    Spelling("x - y", "sub"),
    Spelling("x * y", "mul"),
    Spelling("x / y", "div"),
    Spelling("ops.maximum(x, y)", "maximum"),
    Spelling("ops.minimum(x, y)", "minimum"),
    Spelling("x < y", "lt"),
    Spelling("x <= y", "le"),
    Spelling("x == y", "eq"),
    Spelling("~m", "not"),
    Spelling("m & n", "and"),
    Spelling("m | n", "or"),
    Spelling("ops.where(m, x, y)", "where"),
    Spelling('x.sum("dim")', "sum"),
    Spelling('x.mean("dim")', "mean"),
    Spelling('x.max("head", "dim")', "amax"),
    Spelling('x.min("dim")', "amin"),
    Spelling('x.softmax("dim")', "softmax"),
    Spelling('x.cumsum("page")', "cumsum"),
    Spelling('x.conv([0.25, 0.5, 0.25], "page")', "conv"),
    Spelling('x.maxpool(3, "page")', "maxpool"),
    Spelling('x.largest(8, "dim")', "largest"),
    Spelling('page.k.principal("token", "dim", rank=8)', "principal"),
    Spelling('x.slice("dim", 0, "D/2")', "slice"),
    Spelling('x.channels("rope")', "channels"),
    Spelling('x.split("dim", part=4)', "split"),
    Spelling('ops.concat([x, y], "dim")', "concat"),
    Spelling('x.rename(dim="other")', "rename"),
    Spelling("ops.topk(s)", "topk"),
    Spelling("ops.topp(s, 0.9)", "topp"),
    Spelling("ops.threshold(s, 0.0)", "threshold"),
    Spelling('ops.refine(y.sum("dim"), s, candidates=4)', "refine"),
    Spelling("a | b", "union"),
    Spelling('a.residual(x.sum("dim"), cache["name"])', "residual"),
    Spelling("ops.everything()", "everything"),
)
# Written in terms of the operators above.
SHORTHANDS: tuple[Spelling, ...] = (
    Spelling('x.dot(y, "dim")', "dot"),
    Spelling('ops.signs(bit=64, dim="D")', "signs"),
    Spelling("ops.hadamard(code=32, dim=32)", "hadamard"),
    Spelling('x.norm("dim")', "norm"),
    Spelling('x.var("dim")', "var"),
    Spelling('x.std("dim")', "std"),
    Spelling('x.logsumexp("dim")', "logsumexp"),
    Spelling("x.round()", "round"),
    Spelling('x.to("int4", "dim")', "to"),
    Spelling('x.normalize("page")', "normalize"),
    Spelling('x.argmax("dim")', "argmax"),
    Spelling('x.take(-1, "dim")', "take"),
    Spelling("x.square()", "square"),
    Spelling("x.relu()", "relu"),
    Spelling("x.silu()", "silu"),
    Spelling("x.clamp(0.0, 1.0)", "clamp"),
)


_NOT_AUTHORS = (
    mistakes.UNREADABLE,
    mistakes.OUT_OF_MEMORY,
    mistakes.TRACER_DIED,
    mistakes.NOT_DIVISIBLE,
    mistakes.BAD_EXTENT,
    mistakes.BAD_DIM_NAME,
    mistakes.BAD_FLOW_NAME,
    mistakes.BAD_EAGER,
    mistakes.BAD_KNOBS,
    mistakes.NO_CHANNELS,
    mistakes.BAD_PARAM,
)
_EXPLAINED = ("log", "sign", "cast", "where")  # pointwise operators whose name does not say everything


def compact(examples: Iterable[str] = EXAMPLES) -> str:
    """The language on two pages, for agents: contract, operators, states, knobs, error codes, example flows.

    Args:
        examples: names of library flows appended as examples.
    """
    from vortex_core import library

    parts = [_CONTRACT, _symbols(), _states(), _operators(), _RULES, _BY_TOKEN, _knobs(), _errors()]
    shown = [f"```python\n{library.source(name).strip()}\n```" for name in examples]
    return "\n".join([*parts, "## Worked examples: summaries of pages, memory across steps", *shown])


_CONTRACT = """\
A flow is one Python file with one class; the three methods run once, on symbolic tensors (vTensors) of
*named* dimensions, for one sequence and one kv head. There is no batch dimension and no positional axis.

from vortex_core import Knobs, ops, register, vFlow       # also allowed: import math
@register("name")
class Name(vFlow):
    \"\"\"What it does, the formula, the paper.\"\"\"
    knobs = Knobs(budget="512")                           # optional
    def create_cache(self, page):                         # optional: declare page states
        return {"c": page.state(dim=page.head_dim, dtype="bf16")}
    def forward_cache(self, page):                        # once per completed page; must return every state
        return {"c": page.k.mean("token")}
    def forward_indexer(self, q, cache):                  # every decode step; returns the selection
        return ops.topk((q * cache["c"]).sum("dim").max("head"))
"""

_BIGGEST = ", ".join(f"{symbol}={LARGEST[symbol]}" for symbol in "GDS")
_RULES = f"""\
## Rules
- Tensors broadcast by dimension name; a name has one extent in an expression. `x.max("head")`, never `x.max(1)`.
- A score has dims (page), or (page, head) to let each query head select for itself. Reduce everything else.
- topk keeps only the order of scores: exp, sigmoid, scaling or shifting the whole score changes nothing.
- Plain Python (loops over ranges, helper methods) runs while tracing; control flow cannot depend on tensors.
- page.k, page.v: forward_cache only. q, cache, ops.position/pages/length/mass/dense_mass: forward_indexer only.
- A carried state, page.state(carried=True, init=0.0), is read as cache["r"] and assigned once a step:
  cache["r"] = ... It, and ops.mass(), make the flow request-local: prefix pages are not shared.
- page.state(head="G", dim=page.head_dim, carried=True, scope="request"): one value a request, e.g. the query before;
  init at its first step, no dimension page, and prefix pages stay shared.
- ops.dense_mass() is (page, head): attention of this very step in the nearest layer before of knobs.dense_layers, which
  must hold layer 0. Groups of reuse_layers begin anew after each of them.
- Only complete pages have states and are scored. The partial last page is always attended, as are the
  keep_first and keep_last pages; they count inside the budget and are never candidates.
- Equal scores go to the lower page; NaN ranks last.
- MLA: page.k is the latent, q the absorbed query; .channels("nope"), .channels("rope") pick channels.
- Forbidden: try, with, del, global, async, yield, match, :=, dunder names, files, other imports.
- At most {MAX_NODES} operations per method, loops unrolled (VF008); {MAX_STATES} states; {MAX_NUMBERS:,} numbers a page
  in any one value at {_BIGGEST}, the largest supported (VF026): (page, head, row=S, dim) fits,
  products of two channels for every token (D x D x S) do not.
- Usual spellings work: x ** -0.5, x.pow(p), dim=, axis=, several dims or a list, amax, amin, clip, clamp(min=, max=),
  std, rsqrt, ops.max(x, y), abs(x), round(x), math.sqrt(ops.size("D")), masks as 0 and 1 in arithmetic and sums.
  Sizes are symbols: page.size / 2, page.head_dim // 4 are sizes, page.head_dim ** -0.5 is a value; no loop over them.
  There is no keepdim, unsqueeze, transpose, indexing or @: names broadcast; contract with x.dot(y, "dim").
"""

_BY_TOKEN = """\
## Worked example: tokens, each in a few bits
```python
from vortex_core import ops, register, vFlow


@register("int4_tokens")
class Int4Tokens(vFlow):
    \"\"\"Every key in four bits, one scale a token; a page counts by its share of the estimated attention.

    score(page) = mean_h sum_t softmax_over_all_tokens(q_h . k4_t / sqrt(D))
    \"\"\"

    def create_cache(self, page):
        # Declared last, dim shares one scale: one scale for each row.
        return {"keys": page.state(row=page.size, dim=page.head_dim, dtype="int4")}

    def forward_cache(self, page):
        return {"keys": page.k.rename(token="row")}  # (row, dim): states have no dimension named token

    def forward_indexer(self, q, cache):
        logits = q.dot(cache["keys"], "dim") * ops.size("D") ** -0.5  # (page, head, row)
        weights = (logits - logits.max("page", "row")).exp().sum("row")  # (page, head)
        return ops.topk((weights / weights.sum("page")).mean("head"))
```
"""


def _symbols() -> str:
    names = "; ".join(f"{s} = {what}" for s, what in SYMBOLS.items() if s != "P")
    return (
        f"Extents are numbers or text over symbols: {names}.\n"
        'E.g. dim="D/2", row=4; page.head_dim is "D", page.size is "S"; x.size("dim") works in arithmetic.\n'
    )


def _states() -> str:
    return (
        f"## States\npage.state(**dims, dtype=...): {', '.join(STATE_DTYPES)}; default bf16.\n"
        "Without dims: one number per page. At most 3 dims, none named page, token or head.\n"
        "int8, int4, int3 and int2 keep one scale for all values along the dim declared last; int3 and int2 have no "
        "zero (odd steps -7 to 7, -3 to 3); bits keeps signs and reads back -1 or 1. "
        'Sub-page rows: page.k.split("token", row=4).mean("token") is (row, dim).\n'
    )


def _operators() -> str:
    brief: dict[str, list[str]] = {g: [] for g in ("unary", "binary", "compare", "logic", "reduce")}
    lines = ["## Operators"]
    for spelling in SPELLINGS:
        spec = OPS[spelling.op]
        if spec.group in brief and spelling.op not in _EXPLAINED:
            brief[spec.group].append(spelling.text)
        elif spec.group == "source" and not spec.attrs:
            lines.append(f"{spelling.text} {signature(spec)}: {_first(spec.doc)}")
        elif spelling.op != "const":
            lines.append(f"{spelling.text}: {_first(spec.doc)}")
    lines.insert(1, "Over named dims: " + ", ".join(brief.pop("reduce")))
    lines.insert(1, "Pointwise: " + "; ".join(", ".join(found) for found in brief.values()))
    short = (f"{s.text} = {_first(described(s))}" for s in SHORTHANDS)
    lines.append("Shorthands: " + "; ".join(short))
    lines.append('Also x > y, x >= y, x != y. Methods are functions, too: ops.sqrt(x), ops.sum(x, "dim").')
    return "\n".join(lines) + "\n"


def described(spelling: Spelling) -> str:
    """What a shorthand means: the first paragraph of its function's docstring."""
    found = getattr(vTensor, spelling.op, None) or getattr(ops, spelling.op)
    return inspect.cleandoc(found.__doc__ or "").split("\n\n")[0].removeprefix(f"`{spelling.text}`: ")


def signature(spec: OpSpec) -> str:
    """Dims of a source without attributes, e.g. `(head=G, dim=D)`."""
    return str(spec.infer(spec, [], {}))


def _knobs() -> str:
    found = attributes(Knobs)
    lines = [f"- {f.name} = {f.default!r}: {found[f.name]}" for f in fields(Knobs)]
    words = (
        f"A budget is an expression over {', '.join(NAMES)} with + - * / // %, comparisons, a if c else b, "
    )
    return "\n## Knobs\n" + "\n".join(lines) + f"\n{words}{', '.join(CALLS)}.\n"


def attributes(cls: type) -> dict[str, str]:
    """The `Attributes:` section of a class's docstring, by name."""
    _, _, section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    for item in re.split(r"\n(?=\S)", textwrap.dedent(section)):
        name, _, text = item.partition(":")
        found[name.strip()] = " ".join(text.split())
    return found


def _errors() -> str:
    found = (m for m in mistakes.CATALOGUE.values() if m.code < "VF08" and m not in _NOT_AUTHORS)
    shown = "; ".join(f"{m.code} {m.title}" for m in found if m.level == "error")
    return f"## Error codes\nEach names your line, what was found, the rule and a remedy. {shown}.\n"


def _first(doc: str | None) -> str:
    return " ".join((doc or "").split()).rstrip(".")


def main(arguments: list[str]) -> int:
    """`--write FOLDER` writes operators.md; without it, the compact reference is printed."""
    if not arguments:
        sys.stdout.write(compact())
        return 0
    if len(arguments) != 2 or arguments[0] != "--write":
        sys.stderr.write("usage: python -m vortex_core.flow.reference [--write FOLDER]\n")
        return 2
    from vortex_core.flow import doc_tables

    with open(f"{arguments[1]}/operators.md", "w", encoding="utf-8") as file:
        file.write(doc_tables.operators())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""Every operator of the oracle against plain PyTorch written for the test, index by index where that is clearer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vortex_core.compiler.evaluate import Evaluator
from vortex_core.geometry import Geometry
from vortex_core.ir.graph import GraphBuilder
from vortex_core.ir.opset import OPS

T = torch.Tensor
SIZE = 8
SHAPES = st.tuples(
    st.sampled_from([1, 2, 7, 8, 9]), st.sampled_from([1, 3, 7, 16]), st.sampled_from([2, 6, 8])
)


class Case:
    """`a: (page, row=2, dim)`, `b: (head, dim)`, `s: (page)`, masks `m` like `a` and `n` like `b`; one operator."""

    def __init__(self, shape: tuple[int, int, int], seed: int) -> None:
        self.pages, self.group, self.dim = shape
        g = torch.Generator().manual_seed(seed)

        def draw(*dims: int) -> T:
            x = torch.randn(*dims, generator=g, dtype=torch.float64)
            return torch.where(
                torch.rand(*dims, generator=g) < 0.2, torch.round(x), x
            )  # zeros and equal values

        self.a, self.b = draw(self.pages, 2, self.dim), draw(self.group, self.dim)
        self.s = draw(self.pages)
        self.geometry = Geometry(1, 1, self.group, self.dim, self.dim, self.dim)

    def evaluate(self, op: str, names: str, contract: bool = False, batch: int = 0, **attrs: Any) -> T:
        """`op` on the named operands. `batch`: that many copies along a leading axis, of which one is returned."""
        builder = GraphBuilder("index")
        nodes = {
            "a": builder.emit("load", name="a", dims=(("row", "2"), ("dim", "D"))),
            "b": builder.emit("q"),
            "s": builder.emit("load", name="s", dims=()),
        }
        nodes["m"] = builder.emit("lt", [nodes["a"], builder.emit("const", value=0.0)])
        nodes["n"] = builder.emit("lt", [nodes["b"], builder.emit("const", value=0.5)])
        last = builder.emit(op, [nodes[n] for n in names], **attrs)
        graph = builder.graph({"result": last})
        sources = {"load:a": self.a, "q": self.b, "load:s": self.s}
        if batch:
            sources = {n: x.expand(batch, *x.shape) for n, x in sources.items()}
        valid = torch.ones(batch, self.pages, dtype=torch.bool) if batch else None
        found = Evaluator(graph, self.geometry, SIZE, torch.float64, contract).run(sources, valid)[last]
        lead = builder.nodes[last].type.dims
        return found[-1] if batch and found.dim() > len(lead) else found


A4 = Callable[[T], T]


def wide(a: T, b: T) -> tuple[T, T]:
    """Both as (page, head, row, dim)."""
    return a[:, None], b[None, :, None]


BINARY: dict[str, Callable[[T, T], T]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: torch.where(y == 0, x * math.inf, x / y),
    "maximum": lambda x, y: torch.where(x > y, x, y),
    "minimum": lambda x, y: torch.where(x > y, y, x),
    "lt": lambda x, y: (y - x) > 0,
    "le": lambda x, y: ~((x - y) > 0),
    "eq": lambda x, y: (x - y) == 0,
}
UNARY: dict[str, A4] = {
    "neg": lambda x: 0 - x,
    "exp": lambda x: math.e**x,
    "log": lambda x: torch.log2(x) / math.log2(math.e),
    "sqrt": lambda x: x**0.5,
    "abs": lambda x: torch.where(x < 0, -x, x),
    "sigmoid": lambda x: 1 / (1 + math.e ** (-x)),
    "tanh": lambda x: (math.e**x - math.e**-x) / (math.e**x + math.e**-x),
    "sign": lambda x: 1.0 - 2.0 * (x < 0).double(),
    "floor": lambda x: x - x.remainder(1.0),
}


@given(SHAPES, st.integers(0, 1000), st.booleans())
@pytest.mark.parametrize("op", list(BINARY))
def test_binary(op: str, shape: tuple[int, int, int], seed: int, batched: bool) -> None:
    case = Case(shape, seed)
    found = case.evaluate(op, "ab", batch=3 * batched)
    expected = BINARY[op](*wide(case.a, case.b))
    torch.testing.assert_close(found, expected, equal_nan=True)


@given(SHAPES, st.integers(0, 1000), st.booleans())
@pytest.mark.parametrize("op", list(UNARY))
def test_unary(op: str, shape: tuple[int, int, int], seed: int, batched: bool) -> None:
    case = Case(shape, seed)
    torch.testing.assert_close(case.evaluate(op, "a", batch=3 * batched), UNARY[op](case.a), equal_nan=True)


def test_division_knows_no_negative_zero() -> None:
    case = Case((1, 1, 2), 0)
    case.b = torch.tensor([[-0.0, 0.0]], dtype=torch.float64)
    found = case.evaluate("div", "ab")[:, 0]
    expected = torch.where(case.a > 0, math.inf, torch.where(case.a < 0, -math.inf, math.nan)).double()
    torch.testing.assert_close(found, expected, equal_nan=True)


@given(SHAPES, st.integers(0, 1000))
def test_logic_and_choice(shape: tuple[int, int, int], seed: int) -> None:
    case = Case(shape, seed)
    m, n = wide(case.a < 0, case.b < 0.5)
    assert torch.equal(case.evaluate("and", "mn"), m & n)
    assert torch.equal(case.evaluate("or", "mn"), m | n)
    assert torch.equal(case.evaluate("not", "m"), ~(case.a < 0))
    x, y = wide(case.a, case.b)
    a, b = torch.broadcast_tensors(x, y)
    assert torch.equal(case.evaluate("where", "mab"), a * m.double() + b * (~m).double())


REDUCE: dict[str, Callable[[list[float]], float]] = {
    "sum": math.fsum,
    "mean": lambda v: math.fsum(v) / len(v),
    "amax": max,
    "amin": min,
}


@given(
    SHAPES, st.integers(0, 1000), st.sets(st.sampled_from(["page", "row", "dim"]), min_size=1), st.booleans()
)
@pytest.mark.parametrize("op", list(REDUCE))
def test_reductions(op: str, shape: tuple[int, int, int], seed: int, gone: set[str], batched: bool) -> None:
    case = Case(shape, seed)
    found = case.evaluate(op, "a", dims=tuple(sorted(gone)), batch=2 * batched)
    names = ["page", "row", "dim"]
    kept = [n for n in names if n not in gone]
    moved = case.a.permute([names.index(n) for n in [*kept, *gone]]).flatten(len(kept))
    rows = moved.reshape(-1, moved.shape[-1]).tolist()
    expected = torch.tensor([REDUCE[op](r) for r in rows], dtype=torch.float64).view(found.shape)
    torch.testing.assert_close(found, expected)


@given(SHAPES, st.integers(0, 1000), st.sampled_from(["page", "row", "dim"]), st.booleans())
@pytest.mark.parametrize("op", ["softmax", "cumsum", "conv", "maxpool", "largest"])
def test_scans(op: str, shape: tuple[int, int, int], seed: int, dim: str, batched: bool) -> None:
    if op == "largest" and dim == "page":
        return
    case = Case(shape, seed)
    weights, size, k = (0.5, -1.0, 2.0, 0.25, 3.0), 5, 3
    attrs = {"conv": {"weights": weights}, "maxpool": {"size": size}, "largest": {"k": k}}.get(op, {})
    found = case.evaluate(op, "a", dim=dim, batch=2 * batched, **attrs).movedim(
        ["page", "row", "dim"].index(dim), -1
    )
    rows = case.a.movedim(["page", "row", "dim"].index(dim), -1)
    expected = torch.zeros_like(rows)
    for index in range(rows.shape[0] * rows.shape[1]):
        i, j = divmod(index, rows.shape[1])
        x = rows[i, j].tolist()
        n = len(x)
        if op == "softmax":
            total = math.fsum(math.exp(v) for v in x)
            out = [math.exp(v) / total for v in x]
        elif op == "cumsum":
            out = [math.fsum(x[: t + 1]) for t in range(n)]
        elif op == "conv":
            out = [
                sum(w * x[t + o - 2] for o, w in enumerate(weights) if 0 <= t + o - 2 < n) for t in range(n)
            ]
        elif op == "maxpool":
            out = [max(x[max(0, t - 2) : t + 3]) for t in range(n)]
        else:
            best = sorted(range(n), key=lambda t: (-x[t], t))[:k]
            out = [float(t in best) for t in range(n)]
        expected[i, j] = torch.tensor(out, dtype=torch.float64)
    torch.testing.assert_close(found.double(), expected)


@given(SHAPES, st.integers(0, 1000))
def test_shapes(shape: tuple[int, int, int], seed: int) -> None:
    case = Case(shape, seed)
    half = case.dim // 2
    assert torch.equal(case.evaluate("slice", "a", dim="dim", start="D/2", stop="D"), case.a[..., half:])
    assert torch.equal(case.evaluate("slice", "a", dim="row", start=1, stop="2"), case.a[:, 1:])
    assert torch.equal(case.evaluate("channels", "a", group="rope"), case.a)
    parts = case.evaluate("split", "a", dim="dim", into="part", parts=2)  # (page, part, row, dim)
    assert torch.equal(torch.cat([parts[:, 0], parts[:, 1]], -1), case.a)
    both = case.evaluate("concat", "ab", dim="dim")  # (page, head, row, dim): b has no rows of its own
    wide_a, wide_b = wide(case.a, case.b)
    assert both.shape == (case.pages, case.group, 2, 2 * case.dim)
    assert torch.equal(both[..., : case.dim], wide_a.expand(-1, case.group, -1, -1))
    assert torch.equal(both[..., case.dim :], wide_b.expand(case.pages, -1, 2, -1))
    rows = case.evaluate("concat", "aa", dim="row")
    assert torch.equal(rows, torch.cat([case.a, case.a], 1))
    assert torch.equal(case.evaluate("concat", "ab", batch=3, dim="dim"), both)
    renamed = case.evaluate("rename", "a", dim="dim", to="apart")  # (page, apart, row): canonical order
    assert torch.equal(renamed.transpose(1, 2), case.a)


@pytest.mark.parametrize(("group", "expected"), [("rope", slice(6, 8)), ("nope", slice(0, 6))])
def test_channels_of_mla_and_of_partial_rope(group: str, expected: slice) -> None:
    case = Case((3, 2, 8), 0)
    case.geometry = Geometry(1, 1, 2, 8, rope_dim=2, value_dim=6)
    assert torch.equal(case.evaluate("channels", "a", group=group), case.a[..., expected])
    case.geometry = Geometry(1, 1, 2, 8, rope_dim=2, value_dim=8)  # partial RoPE: rotary channels first
    first = slice(0, 2) if group == "rope" else slice(2, 8)
    assert torch.equal(case.evaluate("channels", "a", group=group), case.a[..., first])


@given(SHAPES, st.integers(0, 1000), st.sampled_from(["bf16", "fp16", "fp8_e4m3", "fp8_e5m2"]))
def test_cast_is_the_nearest_storable_number(shape: tuple[int, int, int], seed: int, dtype: str) -> None:
    case = Case(shape, seed)
    case.a = case.a * 1e4
    found = case.evaluate("cast", "a", dtype=dtype)
    bits, least, top = {
        "bf16": (8, -126, 3.3895313892515355e38), "fp16": (11, -14, 65504.0), "fp8_e4m3": (4, -6, 448.0),
        "fp8_e5m2": (3, -14, 57344.0),
    }[dtype]  # fmt: skip

    def nearest(v: float) -> float:
        exponent = max(math.frexp(v)[1] - 1, least) if v else 0
        step = 2.0 ** (exponent - bits + 1)
        return max(
            -top, min(top, round(v / step) * step)
        )  # Python rounds halves to even, as the hardware does

    expected = torch.tensor([nearest(v) for v in case.a.flatten().tolist()], dtype=torch.float64)
    assert torch.equal(found.flatten(), expected)


@given(SHAPES, st.integers(0, 1000), st.integers(0, 3))
def test_padding_pages_do_not_count(shape: tuple[int, int, int], seed: int, padding: int) -> None:
    """What looks across pages sees real pages only, whatever lies in the padding of a batch."""
    case = Case(shape, seed)
    padded = torch.cat([case.s, torch.full((padding,), 1e6, dtype=torch.float64)])
    valid = torch.arange(len(padded)) < case.pages
    for op, attrs in (
        ("sum", {"dims": ("page",)}), ("amax", {"dims": ("page",)}), ("amin", {"dims": ("page",)}),
        ("softmax", {"dim": "page"}), ("cumsum", {"dim": "page"}), ("maxpool", {"dim": "page", "size": 5}),
        ("conv", {"dim": "page", "weights": (1.0, 2.0, 3.0)}),
    ):  # fmt: skip
        builder = GraphBuilder("index")
        last = builder.emit(op, [builder.emit("load", name="s", dims=())], **attrs)
        evaluator = Evaluator(builder.graph({"r": last}), case.geometry, SIZE, torch.float64, contract=True)
        found = evaluator.run({"load:s": padded}, valid)[last]
        expected = case.evaluate(op, "s", **attrs)
        torch.testing.assert_close(found[: case.pages] if found.dim() else found, expected)


@given(SHAPES, st.integers(0, 1000))
def test_contraction_is_the_sum_of_products(shape: tuple[int, int, int], seed: int) -> None:
    case = Case(shape, seed)
    builder = GraphBuilder("index")
    a = builder.emit("load", name="a", dims=(("row", "2"), ("dim", "D")))
    product = builder.emit("mul", [a, builder.emit("q")])
    last = builder.emit("sum", [product], dims=("dim",))
    evaluator = Evaluator(builder.graph({"r": last}), case.geometry, SIZE, torch.float64, contract=True)
    found = evaluator.run({"load:a": case.a, "q": case.b})[last]
    torch.testing.assert_close(found, torch.einsum("prd,hd->phr", case.a, case.b))


def test_sources() -> None:
    builder = GraphBuilder("index")
    nodes = {
        "extent": builder.emit("extent", extent="3*D/4"),
        "iota": builder.emit("iota", dim="x", extent="D/2"),
        "const": builder.emit("const", value=2.5),
        "position": builder.emit("position"),
    }
    evaluator = Evaluator(builder.graph(dict(nodes)), Geometry(1, 1, 1, 8, 8, 8), SIZE, torch.float64, False)
    found = evaluator.run({"position": torch.arange(3.0)})
    assert found[nodes["extent"]].item() == 6.0
    assert found[nodes["iota"]].tolist() == [0, 1, 2, 3]
    assert found[nodes["const"]].item() == 2.5
    assert found[nodes["position"]].tolist() == [0, 1, 2]


def test_no_operator_is_left_out() -> None:
    """Sources and selections are tested with whole flows: test_selection, test_backends, test_shapes."""
    here = {*BINARY, *UNARY, *REDUCE, "softmax", "cumsum", "conv", "maxpool", "largest", "slice", "channels", "split",
            "concat", "rename", "cast", "and", "or", "not", "where", "extent", "iota", "const", "position"}  # fmt: skip
    whole = {
        "q",
        "k",
        "v",
        "pages",
        "length",
        "mass",
        "dense_mass",
        "load",
        "param",
        "rotary",  # test_rotary
        "principal",  # test_principal
        "topk",
        "topp",
        "threshold",
        "union",
        "residual",  # test_residual
        "refine",  # test_refinement
        "everything",
    }
    assert here | whole == set(OPS)


def test_a_contraction_keeps_what_infinities_make_undefined() -> None:
    """sum_d (q_d * inf) is NaN where q has both signs, though (sum_d q_d) * inf is not."""
    builder = GraphBuilder("index")
    q, s = builder.emit("q"), builder.emit("load", name="s", dims=())
    last = builder.emit("sum", [builder.emit("mul", [q, s])], dims=("dim",))
    sources = {
        "q": torch.tensor([[1.0, 2.0, -0.5], [1.0, 2.0, 0.5]]),
        "load:s": torch.tensor([math.inf, 2.0]),
    }
    geometry = Geometry(1, 1, 2, 3, 3, 3)
    graph = builder.graph({"result": last})
    for contract in (False, True):
        found = Evaluator(graph, geometry, SIZE, torch.float32, contract).run(sources)[last]
        expected = torch.tensor([[math.nan, math.inf], [5.0, 7.0]])
        torch.testing.assert_close(found, expected, equal_nan=True)

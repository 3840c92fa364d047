"""Every vortex_torch operator means what its formula says: scores against plain, positional PyTorch.

The references are written from the formulas, know nothing of named dimensions, and run on concrete `[S, D0, D1]`
tensors.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.cpu.library.dialect_reference import BLOCK, OPTIONS, PAGES, D, H, Tensor, check, data
from tests.null.dialects import programs
from vortex_core.compiler import backends
from vortex_core.compiler.interface import BatchView, LayerKV
from vortex_core.geometry import Geometry
from vortex_core.sandbox.jail import run


def gate(x: Tensor, a: float, b: float) -> Tensor:
    return 1 / (1 + torch.exp(b * x + a))


def mean_key(k: Tensor) -> Tensor:
    return k.mean(1, keepdim=True)


def dots(q: Tensor, k: Tensor) -> Tensor:
    """GeMM(q, c): `[S, 1, H]`."""
    return mean_key(k) @ q.transpose(1, 2)


DOTS = 'd = self.dot(q, cache["c"], ctx=ctx)\n'
END = "self.top(self.most(x, ctx=ctx), o, ctx=ctx)"
INIT = "self.dot, self.most = GeMM(), Max(dim=2)\n"

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Relu()": lambda x: x.clamp(min=0),
    "Relu(alpha=0.3, beta=-1.0)": lambda x: torch.where(x >= 0.3, x, -1.0),
    "Relu(alpha=0.2, beta=0.2)": lambda x: x.clamp(min=0.2),
    "Sigmoid(alpha=0.5, beta=-2.0)": lambda x: gate(x, 0.5, -2.0),
    "Silu(alpha=0.1, beta=-1.0)": lambda x: x * gate(x, 0.1, -1.0),
    "Add_Mul(alpha=0.5, beta=-3.0)": lambda x: -3 * x + 0.5,
    "Abs(alpha=0.1, beta=2.0)": lambda x: (2 * x + 0.1).abs(),
    "Exp(alpha=0.1, beta=0.5)": lambda x: torch.exp(0.5 * x + 0.1),
    "Log(alpha=50.0, beta=1.0)": lambda x: torch.log(x + 50.0),
}


@pytest.mark.parametrize("op", list(UNARY))
def test_unary(op: str) -> None:
    source = programs.centroid(INIT + f"self.f = {op}", DOTS + "x = self.f(d, ctx=ctx)\n" + END)
    check(source, lambda q, k, v: UNARY[op](dots(q, k)).amax(2)[:, 0])


@pytest.mark.parametrize("op", list(UNARY))
def test_unary_in_the_cache(op: str) -> None:
    source = programs.per_page(
        f"self.m, self.f, self.s = CMean(dim=1), C{op}, CMax(dim=2)",
        'm = self.m(cache["k"], None, loc=loc, ctx=ctx)\n'
        'self.s(self.f(m, loc=loc, ctx=ctx), cache["f"], loc=loc, ctx=ctx)',
    )
    check(source, lambda q, k, v: UNARY[op](mean_key(k)).amax((1, 2)) * q.norm(dim=2).amax())


def masked(predicate: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: torch.where(predicate(x, y), 0.0, -1e30).double()


BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Multiply()": lambda x, y: x * y,
    "Add()": lambda x, y: x + y,
    "Add(alpha=0.5, beta=-2.0)": lambda x, y: 0.5 * x - 2 * y,
    "Maximum()": torch.maximum,
    "Minimum()": torch.minimum,
    "WhereEqual()": masked(lambda x, y: x == y),
    "WhereNotEqual()": masked(lambda x, y: x != y),
    "WhereGreater()": masked(lambda x, y: x > y),
    "WhereGreaterEqual()": masked(lambda x, y: x >= y),
    "WhereLess()": masked(lambda x, y: x < y),
    "WhereLessEqual()": masked(lambda x, y: x <= y),
}


@pytest.mark.parametrize("op", list(BINARY))
def test_binary_broadcasts_pages_against_the_sequence(op: str) -> None:
    source = programs.centroid(
        INIT + f"self.f, self.g, self.all = {op}, Add(), Mean(dim=0)",
        DOTS + "x = self.g(d, self.f(d, self.all(d, ctx=ctx), ctx=ctx), ctx=ctx)\n" + END,
    )

    def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        d = dots(q, k)
        return (d + BINARY[op](d, d.mean(0, keepdim=True))).amax(2)[:, 0]

    check(source, reference)


@pytest.mark.parametrize("op", list(BINARY))
def test_binary_in_the_cache(op: str) -> None:
    """`[1, T, D]` with `[1, 1, D]`."""
    source = programs.per_page(
        f"self.m, self.f, self.g, self.r, self.s = CMean(dim=1), C{op}, CMaximum(), CMax(dim=1), "
        f"CMean(dim=2)\n"
        "self.floor = CAdd_Mul(alpha=-9.0, beta=0.0)",
        'm = self.m(cache["v"], None, loc=loc, ctx=ctx)\n'
        'x = self.f(cache["k"], m, loc=loc, ctx=ctx)\n'
        "x = self.g(x, self.floor(x, loc=loc, ctx=ctx), loc=loc, ctx=ctx)\n"
        'self.s(self.r(x, loc=loc, ctx=ctx), cache["f"], loc=loc, ctx=ctx)',
    )

    def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        x = BINARY[op](k, mean_key(v)).clamp(min=-9.0)
        return x.amax(1).mean(1) * q.norm(dim=2).amax()

    check(source, reference)


REDUCE: dict[str, Callable[[Tensor, int], Tensor]] = {
    "Mean": lambda x, d: x.mean(d, keepdim=True),
    "Max": lambda x, d: x.amax(d, keepdim=True),
    "Min": lambda x, d: x.amin(d, keepdim=True),
    "Sum": lambda x, d: x.sum(d, keepdim=True),
    "L2Norm": lambda x, d: x.norm(dim=d, keepdim=True),
}


@pytest.mark.parametrize("op", list(REDUCE))
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_reductions(op: str, dim: int) -> None:
    """Of q * c, `[S, H, D]`; what is left is folded with Sum and multiplied with something that has pages."""
    source = programs.centroid(
        f"self.f, self.mul, self.a, self.b, self.c2 = {op}(dim={dim}), Multiply(), Sum(dim=1), "
        f"Sum(dim=2), Multiply()\n"
        "self.dot, self.most = GeMM(), Max(dim=2)",
        DOTS + 'x = self.f(self.mul(q, cache["c"], ctx=ctx), ctx=ctx)\n'
        "x = self.c2(self.b(self.a(x, ctx=ctx), ctx=ctx), self.most(d, ctx=ctx), ctx=ctx)\n"
        "self.top(x, o, ctx=ctx)",
    )

    def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        x = REDUCE[op](q * mean_key(k), dim)
        return (x.sum((1, 2), keepdim=True) * dots(q, k).amax(2, keepdim=True))[:, 0, 0]

    check(source, reference)


@pytest.mark.parametrize("op", ["Mean", "Max", "Min", "L2Norm"])
@pytest.mark.parametrize(("dim", "k"), [(1, 2), (1, 8), (1, 1), (2, 4), (2, 16)])
def test_interleaved_reductions(op: str, dim: int, k: int) -> None:
    shape = (BLOCK // k, D) if dim == 1 else (BLOCK, D // k)
    source = program_over_field(f"{op}Interleave(dim={dim}, k={k})", shape, index_weights(shape))

    def reference(q: Tensor, k_: Tensor, v: Tensor) -> Tensor:
        split = k_.unflatten(dim, (-1, k))
        return (REDUCE[op](split, dim + 1).squeeze(dim + 1) * index_values(shape)).sum((1, 2)) * q.norm(
            dim=2
        ).amax()

    check(source, reference)


def index_weights(shape: tuple[int, int]) -> str:
    """Statements that give every element of `x` its own weight, so that a wrong order shows."""
    return (
        "w = self.w0(self.k0(x, ctx=ctx), self.k1(x, ctx=ctx), ctx=ctx)\n"
        if min(shape) > 1
        else f"w = self.k{0 if shape[0] > 1 else 1}(x, ctx=ctx)\n"
    )


def index_values(shape: tuple[int, int]) -> Tensor:
    """The same weights: 2 in the first row, 3 in the first column, else 1, multiplied."""
    w = torch.ones(shape, dtype=torch.float64)
    if shape[0] > 1:
        w[0] *= 2
    if shape[1] > 1:
        w[:, 0] *= 3
    return w


def program_over_field(op: str, shape: tuple[int, int], weights: str) -> str:
    return programs.program(
        f"self.f, self.top = {op}, topK()\nself.norm, self.most = L2Norm(dim=2), Max(dim=1)\n"
        "self.k0, self.k1, self.w0 = MaskSlice(0, 1, 1, 2.0, 1.0), MaskSlice(0, 1, 2, 3.0, 1.0), Multiply()\n"
        "self.mul, self.a, self.b, self.last = Multiply(), Sum(dim=1), Sum(dim=2), Multiply()",
        f'{{"f": {shape}}}',
        'self.f(cache["k"], cache["f"], loc=loc, ctx=ctx)',
        'x = cache["f"]\n' + weights + "s = self.b(self.a(self.mul(x, w, ctx=ctx), ctx=ctx), ctx=ctx)\n"
        "n = self.most(self.norm(q, ctx=ctx), ctx=ctx)\nself.top(self.last(s, n, ctx=ctx), o, ctx=ctx)",
    )


def test_gemm_of_two_page_tensors_and_transpose() -> None:
    """The Gram matrix of a page's keys and values, `[1, T, T]`, and its transpose."""
    for flip in (False, True):
        source = programs.per_page(
            "self.g, self.r, self.s = CGeMM(), CMax(dim=1), CMean(dim=2)",
            f'x = self.g(cache["{"v" if flip else "k"}"], cache["{"k" if flip else "v"}"], '
            f"loc=loc, ctx=ctx)\n"
            'self.s(self.r(x, loc=loc, ctx=ctx), cache["f"], loc=loc, ctx=ctx)',
        )

        def reference(q: Tensor, k: Tensor, v: Tensor, flip: bool = flip) -> Tensor:
            x, y = (v, k) if flip else (k, v)
            return (y @ x.transpose(1, 2)).amax(1).mean(1) * q.norm(dim=2).amax()

        check(source, reference)
    source = programs.centroid(
        "self.dot, self.flip, self.a, self.b = GeMM(), Transpose(), Max(dim=1), Sum(dim=2)",
        DOTS + "self.top(self.b(self.a(self.flip(d, ctx=ctx), ctx=ctx), ctx=ctx), o, ctx=ctx)",
    )
    check(source, lambda q, k, v: dots(q, k).transpose(1, 2).amax(1).sum(1))


def test_gemm_of_a_tensor_with_itself() -> None:
    source = programs.centroid(
        "self.up, self.gram, self.a, self.b = Multiply(), GeMM(), Max(dim=1), Min(dim=2)",
        'x = self.up(q, cache["c"], ctx=ctx)\n'
        "self.top(self.b(self.a(self.gram(x, x, ctx=ctx), ctx=ctx), ctx=ctx), o, ctx=ctx)",
    )

    def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        x = q * mean_key(k)
        return (x @ x.transpose(1, 2)).amax(1).amin(1)

    check(source, reference)


@pytest.mark.parametrize("dim", ["1", "[1]"])
def test_kron_of_rows(dim: str) -> None:
    """q `[1, H, D]` with sub-page means `[S, 4, D]`: every head with every sub-page."""
    check(
        kron(f"Kron(dim={dim})", 'x = self.kron(q, cache["f"], ctx=ctx)'),
        lambda q, k, v: weigh(torch.einsum("hd,srd->shrd", q[0], sub_pages(k)).flatten(1, 2)),
    )


@pytest.mark.parametrize("dim", ["2", "(1, 2)"])
def test_kron_of_channels(dim: str) -> None:
    """The queries' norms, as `[1, 1, 4]` or `[1, 2, 2]`, with sub-page means `[S, 4, D]`."""
    rows, columns = (2, 2) if dim == "(1, 2)" else (1, 4)
    statements = 'n = self.fold(self.norm(q, ctx=ctx), ctx=ctx)\nx = self.kron(n, cache["f"], ctx=ctx)'
    check(
        kron(f"Kron(dim={dim})", statements, fold=f"Reshape(-1, {rows}, {columns})"),
        lambda q, k, v: weigh(
            torch.stack([torch.kron(q[0].norm(dim=1).reshape(rows, columns), page) for page in sub_pages(k)])
        ),
    )


def kron(op: str, statements: str, fold: str = "Transpose()") -> str:
    """A program that weighs positions of `x`, so that a wrong order shows, and reduces it."""
    return programs.program(
        f"self.f, self.top, self.kron, self.fold = MeanInterleave(dim=1, k=2), topK(), {op}, {fold}\n"
        "self.k0, self.k1 = MaskSlice(1, 3, 1, 2.0, 1.0), MaskSlice(2, 9, 2, 3.0, 1.0)\n"
        "self.w, self.u, self.norm, self.a, self.b = Multiply(), Multiply(), L2Norm(dim=2), Max(dim=1), Sum(dim=2)",
        '{"f": (4, head_dim)}',
        'self.f(cache["k"], cache["f"], loc=loc, ctx=ctx)',
        statements + "\n"
        "x = self.u(self.w(x, self.k0(x, ctx=ctx), ctx=ctx), self.k1(x, ctx=ctx), ctx=ctx)\n"
        "self.top(self.b(self.a(x, ctx=ctx), ctx=ctx), o, ctx=ctx)",
    )


def sub_pages(k: Tensor) -> Tensor:
    return k.unflatten(1, (4, 2)).mean(2)


def weigh(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 1:3] *= 2
    x[:, :, 2:9] *= 3
    return x.amax(1).sum(1)


@pytest.mark.parametrize(("x2", "y2"), [(8, 8), (1, 64), (64, 1), (2, 32), (16, 4)])
def test_reshape(x2: int, y2: int) -> None:
    """q * c is `[S, 4, 16]`; weights by position tell one layout from another."""
    source = programs.centroid(
        f"self.up, self.fold = Multiply(), Reshape(-1, {x2}, {y2})\n"
        f"self.k0, self.k1 = MaskSlice(0, 1, 1, 2.0, 1.0), MaskSlice(0, 1, 2, 3.0, 1.0)\n"
        "self.w, self.u, self.a, self.b = Multiply(), Multiply(), Max(dim=1), Sum(dim=2)",
        'x = self.fold(self.up(q, cache["c"], ctx=ctx), ctx=ctx)\n'
        "x = self.u(self.w(x, self.k0(x, ctx=ctx), ctx=ctx), self.k1(x, ctx=ctx), ctx=ctx)\n"
        "self.top(self.b(self.a(x, ctx=ctx), ctx=ctx), o, ctx=ctx)",
    )

    def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        x = (q * mean_key(k)).reshape(PAGES, x2, y2).clone()
        x[:, 0] *= 2
        x[:, :, 0] *= 3
        return x.amax(1).sum(1)

    check(source, reference)


def test_reshape_in_the_cache() -> None:
    source = programs.per_page(
        "self.m, self.fold, self.a, self.s = CMean(dim=1), CReshape(-1, 4, 4), CMax(dim=1), CMean(dim=2)",
        'm = self.fold(self.m(cache["k"], None, loc=loc, ctx=ctx), loc=loc, ctx=ctx)\n'
        'self.s(self.a(m, loc=loc, ctx=ctx), cache["f"], loc=loc, ctx=ctx)',
    )
    check(source, lambda q, k, v: k.mean(1).reshape(PAGES, 4, 4).amax(1).mean(1) * q.norm(dim=2).amax())


def test_softmax_normalize_and_convolution() -> None:
    cases: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        ("Softmax(dim=0, scale=0.5)", lambda d: torch.softmax(0.5 * d, 0)),
        ("Normalize(dim=0)", lambda d: d / d.norm(dim=0, keepdim=True)),
        ("Conv1d([[[0.2]*4], [[0.5]*4], [[-0.3]*4]], dim=0)",
         lambda d: causal(d, [[0.2] * 4, [0.5] * 4, [-0.3] * 4])),
        ("Conv1d(weight=[[[1.0, 2.0, 3.0, 4.0]], [[0.5, -1.0, 0.0, 2.0]]])",
         lambda d: causal(d, [[1.0, 2.0, 3.0, 4.0], [0.5, -1.0, 0.0, 2.0]])),
    ]  # fmt: skip
    for op, f in cases:
        source = programs.centroid(INIT + f"self.f = {op}", DOTS + "x = self.f(d, ctx=ctx)\n" + END)
        check(source, lambda q, k, v, f=f: f(dots(q, k)).amax(2)[:, 0])


def causal(d: Tensor, weights: list[list[float]]) -> Tensor:
    """y[s] = sum_k w[k] x[s - k], zero before the first page; `[S, 1, H]`."""
    y = torch.zeros_like(d)
    for s in range(len(d)):
        for k, w in enumerate(weights):
            if s - k >= 0:
                y[s] += torch.tensor(w, dtype=d.dtype) * d[s - k]
    return y


def test_early_programs_use_softmax_for_its_effect() -> None:
    written = programs.centroid(
        INIT + "self.soft = Softmax(dim=0, scale=0.5)", DOTS + "self.soft(d, ctx=ctx)\nx = d\n" + END
    )
    check(written, lambda q, k, v: torch.softmax(0.5 * dots(q, k), 0).amax(2)[:, 0])


def test_query_mean_as_a_torch_method() -> None:
    source = programs.centroid(
        "self.dot = GeMV()",
        'self.top(self.dot(q.mean(dim=1, keepdim=True), cache["c"], ctx=ctx), o, ctx=ctx)',
    )
    check(source, lambda q, k, v: (q.mean(1, keepdim=True) @ mean_key(k).transpose(1, 2))[:, 0, 0])


def test_state_is_carried_from_step_to_step() -> None:
    """A running minimum that starts high: score = current - minimum so far."""
    source = programs.program(
        "self.k_mean, self.high, self.top = CMean(dim=1), Fill(alpha=1.0e6), topK()\n"
        "self.mean, self.dot, self.load, self.low, self.save = Mean(dim=1), GeMM(), Load(), "
        "Minimum(), Save()\n"
        "self.rise = Add(alpha=1.0, beta=-1.0)",
        '{"c": (1, head_dim), "least": (1, 1)}',
        'self.k_mean(cache["k"], cache["c"], loc=loc, ctx=ctx)\nself.high(cache["least"], loc=loc, ctx=ctx)',
        's = self.dot(self.mean(q, ctx=ctx), cache["c"], ctx=ctx)\n'
        'low = self.low(self.load(cache["least"], ctx=ctx), s, ctx=ctx)\n'
        'self.save(low, cache["least"], ctx=ctx)\nself.top(self.rise(s, low, ctx=ctx), o, ctx=ctx)',
    )
    q, k, v = data()
    traced = run(source, "program.py", OPTIONS)
    assert traced.program.is_request_local
    flow = backends.get("oracle").compile(traced.original, traced.knobs, Geometry(1, 1, H, D, D, D))
    states = flow.new_states(PAGES, torch.device("cpu"))
    flow.update(states, LayerKV(k[None], v[None]), torch.arange(PAGES), 0)
    view = BatchView(torch.arange(PAGES)[None], torch.tensor([48]), torch.tensor([3]), 48)
    least = torch.full((PAGES,), 1.0e6, dtype=torch.float64)
    for step in range(3):
        query = q[0] * (1 - step)
        now = mean_key(k)[:, 0] @ query.mean(0)
        least = torch.minimum(least, now)
        (found,) = flow.scores(query[None], states, view, 0).values()  # type: ignore[attr-defined]
        torch.testing.assert_close(found[0], now - least, rtol=1e-5, atol=1e-5)
        flow.select(query[None], states, view, 0)


def test_union_of_two_streams_takes_k_pages_of_each() -> None:
    source = programs.centroid(
        "self.mean, self.dot, self.a, self.b, self.neg = Mean(dim=1), GeMM(), TopK(k=2), "
        "TopK(k=1), Add_Mul(beta=-1.0)\n"
        "self.out = Union()",
        's = self.dot(self.mean(q, ctx=ctx), cache["c"], ctx=ctx)\n'
        "best, n = self.a(s, ctx=ctx)\nworst, m = self.b(self.neg(s, ctx=ctx), ctx=ctx)\n"
        "self.out((best, n), (worst, m), o, ctx=ctx)",
    )
    q, k, v = data()
    for backend in ("oracle", "torch"):
        traced = run(source, "program.py", OPTIONS)
        flow = backends.get(backend).compile(traced.original, traced.knobs, Geometry(1, 1, H, D, D, D))
        states = flow.new_states(PAGES, torch.device("cpu"))
        flow.update(states, LayerKV(k[None], v[None]), torch.arange(PAGES), 0)
        budget = torch.tensor([traced.knobs.pages(4096)])
        assert budget.item() == 1 + 2 + 1 + 1  # bos, both streams, eos
        view = BatchView(torch.arange(PAGES)[None], torch.tensor([48]), budget, 48)
        chosen = flow.select(q[0][None].float(), states, view, 0)
        s = mean_key(k)[:, 0] @ q[0].mean(0)
        middle = list(range(1, PAGES - 1))
        ranked = sorted(middle, key=lambda p: -s[p])
        assert set(chosen.page_ids[0, 0, : chosen.counts[0, 0]].tolist()) == {
            0,
            PAGES - 1,
            *ranked[:2],
            ranked[-1],
        }


def test_a_field_that_is_filled_and_never_saved_is_a_constant() -> None:
    source = programs.program(
        "self.k_mean, self.half, self.top = CMean(dim=1), Fill(0.5), topK()\n"
        "self.mean, self.dot, self.mul = Mean(dim=1), GeMM(), Multiply()",
        '{"c": (1, head_dim), "w": (1, head_dim)}',
        'self.k_mean(cache["k"], cache["c"], loc=loc, ctx=ctx)\nself.half(cache["w"], loc=loc, ctx=ctx)',
        'w = self.mul(self.mean(q, ctx=ctx), cache["w"], ctx=ctx)\nself.top(self.dot(w, '
        'cache["c"], ctx=ctx), o, ctx=ctx)',
    )
    check(source, lambda q, k, v: 0.5 * (mean_key(k)[:, 0] @ q[0].mean(0)))

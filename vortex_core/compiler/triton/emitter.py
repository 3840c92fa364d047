"""Lowering of IR nodes to Triton tile expressions, by index environments.

A node is emitted under an *environment* that says at which indices its dimensions are wanted. `slice`, `split`,
`rename` and `channels` only change the environment, so they cost nothing: they end up in the addresses of the loads.
Padding lanes (extents that are no power of two) hold arbitrary values and are neutralised where a reduction, a load
or a store would see them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from vortex_core.compiler.triton.contraction import Contraction
from vortex_core.compiler.triton.decomposition import coordinates, principal, turned
from vortex_core.compiler.triton.tile import (
    FEW_CHANNELS,
    MANY_CHANNELS,
    MAX_PADDING,
    Axis,
    Env,
    Tile,
    atom,
    order,
    pow2,
    powers_of_two,
    unsupported,
)
from vortex_core.ir.graph import Graph, Node
from vortex_core.ir.opset import OPS
from vortex_core.ir.types import Extent

# A reduction whose input is a larger tile runs over chunks: more would not fit the registers.
MAX_LANES = 16384


POINTWISE = {
    "neg": "-{0}",
    "exp": "tl.exp({0})",
    "log": "tl.log({0})",
    "sqrt": "tl.sqrt({0})",
    "abs": "tl.abs({0})",
    "sigmoid": "tl.sigmoid({0})",
    "tanh": "(2 * tl.sigmoid(2 * {0}) - 1)",
    "sign": "tl.where({0} < 0, -1.0, 1.0)",
    "floor": "tl.floor({0})",
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "maximum": "tl.maximum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    "minimum": "tl.minimum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "eq": "{0} == {1}",
    "not": "{0} == 0",
    "and": "{0} & {1}",
    "or": "{0} | {1}",
    "where": "tl.where({0}, {1}, {2})",
}
REDUCE = {  # over an axis of a tile, and of two results
    "sum": ("tl.sum({0}, axis={1})", "{0} + {1}"),
    "amax": ("tl.max({0}, axis={1})", "tl.maximum({0}, {1})"),
    "amin": ("tl.min({0}, axis={1})", "tl.minimum({0}, {1})"),
}
_FLOATS = {"fp16": "tl.float16", "fp8_e4m3": "tl.float8e4nv", "fp8_e5m2": "tl.float8e5"}
_TOP = {"fp16": 65504.0, "fp8_e4m3": 448.0, "fp8_e5m2": 57344.0}


def neutral(op: str) -> str:
    """The text of what padding holds where an operator looks along a dimension."""
    value = OPS[op].traits.neutral
    assert value is not None, op
    return repr(value) if math.isfinite(value) else f'{"-" if value < 0 else ""}float("inf")'


def rounded(text: str, dtype: str) -> str:
    """`text` saturated and converted to a float storage dtype."""
    if dtype == "fp32":
        return text
    if dtype == "bf16":
        return f"to_bf16({text})"
    return f"tl.minimum(tl.maximum({text}, -{_TOP[dtype]!r}), {_TOP[dtype]!r}).to({_FLOATS[dtype]})"


def _as_loaded(x: Tile, axes: Sequence[Axis], *, whole: bool) -> Tile:
    """A tile with its axes in the order of a product's and, if `whole`, all of them: of one lane those that it lacks.
    Triton moves layouts of loads through a reshape but not through an index of None."""
    own = tuple(a for a in axes if a in x.axes)
    if own != x.axes:
        x = Tile(f"tl.permute({x.text}, {tuple(x.axes.index(a) for a in own)})", own)
    if not whole or len(own) < 2 or own[0].name != "page" or own == tuple(axes):
        return Tile(f"({x.text})", x.axes) if x.text.startswith("tl.permute") else x
    return Tile(f"tl.reshape({x.text}, {[a.size if a in own else 1 for a in axes]})", tuple(axes))


LEAST_ROWS = 64
"""Rows of a page from which a sum of as many lanes is lowered rightly without an anchor: with 16 and 32 it is not."""

Products = Callable[["Emitter", int, Env], "Tile | None"]


@dataclass
class Emitter:
    """Writes the statements of one kernel.

    Args:
        graph: the stage's graph.
        sizes: concrete extent symbols.
        source: text of a source node under an environment; how the kernel loads.
        channel_start: first channel of a `channels` node.
        page: the page axis, or None (cache stage: one page a program).
        contractions: sums that run as matrix products; their head axis has at least 16 lanes.
        before: nodes that a launch before has computed; `load_before` reads them.
        products: writes further sums as matrix products, of codes.
        channels: most of a matrix product where their number is no power of two.
        wide: whether bf16 does not hold the query: it takes part in exact products as three numbers that bf16 holds.
        anchored: reductions that rows inside pages meet, by node: lanes of those rows.
        summed: products that are summed where their loads lie, and along what: that axis comes last.
    """

    graph: Graph
    sizes: Mapping[str, int]
    source: Callable[[Emitter, Node, Env], Tile]
    channel_start: Callable[[Node], int]
    page: Axis | None
    contractions: Mapping[int, Contraction] = field(default_factory=dict)
    products: Products | None = None
    before: Collection[int] = ()
    load_before: Callable[[int, Env], Tile] | None = None
    channels: int = FEW_CHANNELS
    wide: bool = False
    anchored: Mapping[int, int] = field(default_factory=dict)
    summed: Mapping[Node, str] = field(default_factory=dict)
    outer: list[str] = field(default_factory=list)
    inner: list[str] | None = None
    axes: dict[str, Axis] = field(default_factory=dict)
    known: dict[int, Tile] = field(default_factory=dict)
    page_value: Callable[[int, Env], Tile | None] | None = None
    decomposed: dict[Node, Tile] = field(default_factory=dict)
    _memo: dict[tuple[int, str], Tile] = field(default_factory=dict)
    _page_memo: dict[tuple[int, str], Tile] = field(default_factory=dict)
    _shared: dict[str, Tile] = field(default_factory=dict)
    _count: int = 0

    def begin_loop(self) -> None:
        """Statements with a page axis now go into a loop's body."""
        self.inner = []
        self._page_memo = {}

    def end_loop(self) -> list[str]:
        """The body written since `begin_loop`."""
        body = self.inner or []
        self.inner, self._page_memo = None, {}
        return body

    def axis(self, name: str, real: int, least: int = 1) -> Axis:
        """An axis of `least` lanes or more; its index variable is defined at the top of the kernel."""
        least = least if least > pow2(real) else 1
        made = Axis(name, real, 16 if name == "head" and self.contractions else least)
        if name != "page":
            self.axes[made.index] = made
        return made

    def identity(self, dims: Sequence[tuple[str, Extent]]) -> dict[str, Tile]:
        """The environment that asks for every element of `dims`."""
        env = {}
        for name, extent in dims:
            axis = self.page if name == "page" else self.axis(name, extent.resolve(self.sizes))
            assert axis is not None
            env[name] = Tile(axis.index, (axis,))
        return env

    def bind(self, text: str, axes: Sequence[Axis], inside: bool) -> Tile:
        """Assign an expression to a fresh variable."""
        self._count += 1
        name = f"v{self._count}"
        lines = self.inner if inside and self.inner is not None else self.outer
        lines.append(f"{name} = {text}")
        return Tile(name, tuple(axes))

    def shared(self, text: str, axes: Sequence[Axis]) -> Tile:
        """A fresh variable outside the loop, or the one that holds the same expression."""
        if text not in self._shared:
            self._shared[text] = self.bind(text, axes, False)
        return self._shared[text]

    def emit(self, i: int, env: Env) -> Tile:
        """The value of node `i` at the indices of `env` (one entry for each of its dims)."""
        node = self.graph.nodes[i]
        if i in self.known:
            return self._known(node, self.known[i], env)
        if i in self.before and self.load_before is not None:
            key = (i, repr(sorted((n, t.text) for n, t in env.items())))
            if key not in self._memo:
                self._memo[key] = self.load_before(i, env)
            return self._memo[key]
        paged = "page" in node.type.names
        memo = self._page_memo if paged and self.inner is not None else self._memo
        key = (i, repr(sorted((n, t.text) for n, t in env.items())))
        if key not in memo:
            found = self.page_value(i, env) if paged and self.page_value is not None else None
            if found is None and i in self.contractions:
                found = self._matrix_product(node, self.contractions[i], env)
            if found is None and self.products is not None:
                found = self.products(self, i, env)
            # Triton gives the layout of rows to sums that rows add, and lowers a sum over fewer lanes than rows wrongly
            # in it: threads that hold the same lane are left with different sums. It moves no layout past an anchor.
            anchor = i in self.anchored
            if found is None and anchor:
                found = self._wide_sum(i, env, paged)
                anchor = found is None
            found = found if found is not None else self._node(node, env, paged)
            if anchor and found.axes:
                found = self.bind(f"anchored({found.text})", found.axes, paged)
            memo[key] = found
        return memo[key]

    def _known(self, node: Node, found: Tile, env: Env) -> Tile:
        """A value that is there whole, at the indices of `env`."""
        for axis in found.axes:
            at = env[axis.name]
            if at.text == axis.index:
                continue
            if axis in at.axes:
                raise unsupported(node, f"it is asked for in another order along {axis.name!r}")
            axes = order([*found.axes, *at.axes])
            here = f"{Tile(axis.index, (axis,)).to(axes)} == {at.to(axes)}"
            text = f"tl.sum(tl.where({here}, {found.to(axes)}, 0.0), axis={axes.index(axis)})"
            found = self.bind(text, [a for a in axes if a != axis], False)
        return found

    def value(self, i: int) -> Tile:
        """The value of node `i` everywhere."""
        return self.emit(i, self.identity(self.graph.nodes[i].type.dims))

    def at(self, i: int, env: Env) -> Tile:
        """The value of node `i` at those of the indices of `env` that are its dimensions'."""
        names = self.graph.nodes[i].type.names
        return self.emit(i, {n: t for n, t in env.items() if n in names})

    def _node(self, node: Node, env: Env, inside: bool) -> Tile:
        a = node.attr
        if node.spec.group == "source":
            match node.op:
                case "const":
                    return Tile(repr(float(a["value"])))
                case "extent":
                    return Tile(repr(float(Extent.parse(a["extent"]).resolve(self.sizes))))
                case "iota":
                    return Tile(f"{atom(env[a['dim']].text)}.to(tl.float32)", env[a["dim"]].axes)
            return self.source(self, node, env)
        match node.op:
            case "sum" | "amax" | "amin":
                found = None
                if node.op == "sum" and not inside:
                    found = coordinates(self, node, env) or turned(self, node, env)
                return self._reduce(node, env, inside) if found is None else found
            case "slice":
                start = 0 if a["start"] == 0 else Extent.parse(a["start"]).resolve(self.sizes)
                return self.at(node.inputs[0], {**env, a["dim"]: self._shift(env[a["dim"]], start)})
            case "channels":
                return self.at(
                    node.inputs[0], {**env, "dim": self._shift(env["dim"], self.channel_start(node))}
                )
            case "split":
                inner = node.type.extent(a["dim"]).resolve(self.sizes)
                axes = order([*env[a["into"]].axes, *env[a["dim"]].axes])
                text = f"{env[a['into']].to(axes)} * {inner} + {env[a['dim']].to(axes)}"
                return self.at(node.inputs[0], {**env, a["dim"]: Tile(text, axes)})
            case "concat":
                return self._concat(node, env, inside)
            case "rename":
                return self.at(node.inputs[0], {**env, a["dim"]: env[a["to"]]})
            case "softmax" | "cumsum" | "conv" | "maxpool" | "largest":
                return self._along(node, env, inside)
            case "principal":
                return principal(self, node, env)
            case "cast":
                x = self.at(node.inputs[0], env)
                return (
                    self.bind(f"{rounded(x.text, a['dtype'])}.to(tl.float32)", x.axes, inside)
                    if a["dtype"] != "fp32"
                    else x
                )
        args = [self.at(j, env) for j in node.inputs]
        axes = order([x for t in args for x in t.axes])
        if inside and node in self.summed:
            axes = tuple(sorted(axes, key=lambda a: a.name == self.summed[node]))
            loads = [self.graph.nodes[j].op == "load" for j in node.inputs]
            args = [_as_loaded(t, axes, whole=x or len(t.axes) < 3) for t, x in zip(args, loads, strict=True)]
        text = POINTWISE[node.op].format(
            *(atom(t.to(axes)) if node.op not in ("where",) else t.to(axes) for t in args)
        )
        if not axes and all(not t.text.startswith("v") for t in args):
            text = f"tl.full([], 0.0, tl.float32) + ({text})" if node.type.kind == "float" else text
        return self.bind(text, axes, inside)

    def _concat(self, node: Node, env: Env, inside: bool) -> Tile:
        """Each lane reads one of the two: indices stay inside both, so that no load leaves its tensor."""
        dim, at = node.attr["dim"], env[node.attr["dim"]]
        first = self.graph.nodes[node.inputs[0]].type.extent(dim).resolve(self.sizes)
        low = Tile(f"tl.minimum({at.text}, {first - 1})", at.axes)
        high = Tile(f"tl.maximum({at.text} - {first}, 0)", at.axes)
        a = self.at(node.inputs[0], {**env, dim: low})
        b = self.at(node.inputs[1], {**env, dim: high})
        axes = order([*at.axes, *a.axes, *b.axes])
        text = f"tl.where({Tile(f'({at.text})', at.axes).to(axes)} < {first}, {a.to(axes)}, {b.to(axes)})"
        return self.bind(text, axes, inside)

    @staticmethod
    def _shift(index: Tile, start: int) -> Tile:
        return index if start == 0 else Tile(f"{start} + {index.text}", index.axes)

    def masked(self, x: Tile, axis: Axis, fill: str) -> str:
        """`x` with `fill` on the padding lanes of `axis`."""
        if axis.mask is None:
            return x.text
        mask = Tile(f"({axis.mask})", (axis,)).to(x.axes) if len(x.axes) > 1 else f"({axis.mask})"
        return f"tl.where({mask}, {x.text}, {fill})"

    def fold(self, op: str, x: Tile, names: Sequence[str], inside: bool) -> Tile:
        """Reduce the axes called `names`."""
        template, _ = REDUCE[op]
        for axis in [ax for ax in reversed(x.axes) if ax.name in names]:
            text = template.format(self.masked(x, axis, neutral(op)), x.axes.index(axis))
            x = self.bind(text, [ax for ax in x.axes if ax != axis], inside)
        return x

    def needs_whole(self, i: int, dim: str) -> bool:
        """Whether computing node `i` compares lanes along `dim`, so that it cannot be computed piece by piece."""
        node = self.graph.nodes[i]
        if dim not in node.type.names or i in self.before:
            return False
        if i in self.known:
            return True
        if node.spec.group == "scan" and node.attr["dim"] == dim:
            return True
        return any(self.needs_whole(j, dim) for j in node.inputs)

    def _matrix_product(self, node: Node, c: Contraction, env: Env) -> Tile | None:
        """A contraction over channels on tensor cores, or None where a shape does not suit them."""
        real = self.graph.nodes[c.query].type.extent("dim").resolve(self.sizes)
        whole = any(self.needs_whole(i, "dim") for i in (c.query, *c.page))
        # A bound holds two states, their larger and their smaller part, all at once.
        most = self.channels if c.bound is None else FEW_CHANNELS
        pieces = [(0, real)] if whole or pow2(real) == real <= MANY_CHANNELS else powers_of_two(real, most)
        if any(pow2(size) < 16 for _, size in pieces):  # the least a matrix product takes
            return None
        group = self.graph.nodes[c.query].type.extent("head").resolve(self.sizes)
        head = self.axis("head", group)
        if not c.over_heads and env["head"].text != head.index:
            return None
        total: str | None = None
        axes: tuple[Axis, ...] = ()
        for start, size in pieces:
            lanes = self.axis("dim", size)
            at = {"dim": self._shift(Tile(lanes.index, (lanes,)), start)}
            q = self.at(c.query, {"head": Tile(head.index, (head,)), **at})
            pages = [self.at(i, {**env, **at}) for i in c.page]
            for left, right in self._operands(c, q, pages):
                assert left.axes[-1] == lanes and right.axes == (head, lanes), (left, right)
                axes = left.axes[:-1]
                rows = math.prod(a.size for a in axes)
                if rows < 16:
                    return None
                cast, precision = (".to(OPERAND)", "ieee") if c.exact else ("", "tf32x3")
                a = f"tl.reshape({left.text}{cast}, [{rows}, {lanes.size}])"
                text = self.masked(right, lanes, "0.0")
                for part in self._parts(text, right.axes) if c.exact and self.wide else [f"{text}{cast}"]:
                    b = f"tl.trans({part})"
                    extra = "" if total is None else f", {total}"
                    dot = f'tl.dot({a}, {b}{extra}, input_precision="{precision}")'
                    total = self.bind(dot, axes, True).text
        shape = [a.size for a in axes] + [head.size]
        full = self.bind(f"tl.reshape({total}, {shape})", (*axes, head), True)
        target = order(full.axes)
        if target != full.axes:
            moved = tuple(full.axes.index(a) for a in target)
            full = self.bind(f"tl.permute({full.text}, {moved})", target, True)
        return self.fold("sum", full, ("head",), True) if c.over_heads else full

    def _parts(self, text: str, axes: Sequence[Axis]) -> list[str]:
        """A query as the sum of three values that bf16 holds, each what those before left: all 24 bits of fp32."""
        parts: list[str] = []
        for _ in range(3):
            parts.append(self.shared(f"({text}).to(OPERAND)", axes).text)
            text = self.shared(f"{text} - {parts[-1]}.to(tl.float32)", axes).text
        return parts

    def _operands(self, c: Contraction, q: Tile, pages: Sequence[Tile]) -> list[tuple[Tile, Tile]]:
        """(page side, query side) pairs whose products add up to the contraction."""
        if c.bound is None:
            return [(pages[0], q)]
        axes = order([a for p in pages for a in p.axes])
        sides = [p.to(axes) for p in pages]
        high = self.bind(f"tl.maximum({sides[0]}, {sides[1]})", axes, True)
        low = self.bind(f"tl.minimum({sides[0]}, {sides[1]})", axes, True)
        up = self.bind(f"tl.maximum({q.text}, 0.0)", q.axes, False)
        down = self.bind(f"tl.minimum({q.text}, 0.0)", q.axes, False)
        return [(high, up), (low, down)] if c.bound == "maximum" else [(low, up), (high, down)]

    def _reduce(self, node: Node, env: Env, inside: bool) -> Tile:
        (i,) = node.inputs
        source = self.graph.nodes[i].type
        names = node.attr["dims"]
        inner = dict(env)
        chunked: tuple[str, int, int] | None = None
        for name in names:
            real = source.extent(name).resolve(self.sizes)
            chunk = real & -real
            padded = pow2(real) > MAX_PADDING * real and chunk >= 16 and name != "page"
            if padded and chunked is None and not self.needs_whole(i, name):
                chunked = (name, real, chunk)
            else:
                axis = self.axis(name, real)
                inner[name] = Tile(axis.index, (axis,))
        if chunked is None:
            chunked = self._too_large(i, inner, names)
        if chunked is None:
            return self.fold(node.op, self.at(i, inner), names, inside)
        name, real, chunk = chunked
        axis = self.axis(name, chunk)
        total: Tile | None = None
        for start in range(0, real, chunk):
            piece = self.at(i, {**inner, name: self._shift(Tile(axis.index, (axis,)), start)})
            part = self.fold(node.op, piece, names, inside)
            total = (
                part
                if total is None
                else self.bind(REDUCE[node.op][1].format(total.text, part.text), part.axes, inside)
            )
        assert total is not None
        return total

    def _wide_sum(self, i: int, env: Env, inside: bool) -> Tile | None:
        """A reduction that rows meet over as many lanes as they have, or None where that is not possible: it needs no
        anchor, which costs exchanges between warps."""
        node, rows = self.graph.nodes[i], self.anchored[i]
        (source,), names = node.inputs, node.attr["dims"]
        if len(names) > 1 or rows < LEAST_ROWS:
            return None
        (name,) = names
        axis = self.axis(name, self.graph.nodes[source].type.extent(name).resolve(self.sizes), rows)
        inner = {**env, name: Tile(axis.index, (axis,))}
        padded = axis.least > 1 and self.needs_whole(source, name)
        if name == "page" or padded or self._too_large(source, inner, names) is not None:
            return None
        return self.fold(node.op, self.at(source, inner), names, inside)

    def _too_large(self, i: int, env: Env, names: Sequence[str]) -> tuple[str, int, int] | None:
        """Which reduced dimension of node `i` to take in chunks so that its tile fits, as (name, extent, chunk)."""
        dims = self.graph.nodes[i].type.names
        lanes = math.prod(a.size for a in order([a for n in dims for a in env[n].axes]))
        extents = {n: self.graph.nodes[i].type.extent(n).resolve(self.sizes) for n in names if n != "page"}
        free = [n for n in extents if not self.needs_whole(i, n)]
        if lanes <= MAX_LANES or not free:
            return None
        name = max(free, key=lambda n: (extents[n] & -extents[n], n))
        real = extents[name]
        most = real & -real
        while most > 1 and lanes // pow2(real) * most > MAX_LANES // 2:
            most //= 2
        return None if most == real else (name, real, most)

    def _whole(self, node: Node, env: Env, dim: str) -> tuple[Tile, Axis]:
        """The input along all of `dim`, which must be asked for as it is."""
        real = node.type.extent(dim).resolve(self.sizes)
        axis = self.axis(dim, real)
        if env[dim].text != axis.index:
            raise unsupported(
                node, f"a part of its result along {dim!r} is taken; slice or split its input instead"
            )
        return self.at(node.inputs[0], env), axis

    def _along(self, node: Node, env: Env, inside: bool) -> Tile:
        dim = node.attr["dim"]
        assert dim != "page", "handled by the passes"
        x, axis = self._whole(node, env, dim)
        at = x.axes.index(axis)
        if node.op == "softmax":
            shown = Tile(self.masked(x, axis, neutral(node.op)), x.axes)
            top = self.bind(f"tl.max({shown.text}, axis={at})", [a for a in x.axes if a != axis], inside)
            e = self.bind(f"tl.exp({shown.text} - {top.to(x.axes)})", x.axes, inside)
            total = self.bind(f"tl.sum({e.text}, axis={at})", top.axes, inside)
            return self.bind(f"{e.text} / {total.to(x.axes)}", x.axes, inside)
        if node.op == "cumsum":
            return self.bind(
                f"tl.cumsum({self.masked(x, axis, neutral(node.op))}, axis={at})", x.axes, inside
            )
        if node.op == "largest" and node.attr["k"] == 1:
            candidates = self.masked(x, axis, '-float("inf")')
            first = self.bind(f"tl.argmax({candidates}, axis={at})", [a for a in x.axes if a != axis], inside)
            lane = Tile(axis.index, (axis,)).to(x.axes)
            return self.bind(f"{lane} == {first.to(x.axes)}", x.axes, inside)
        if node.op == "largest":
            candidates = self.masked(x, axis, '-float("inf")')
            return self.bind(f"largest_mask({candidates}, {node.attr['k']}, {at})", x.axes, inside)
        # The rest compares every lane with every other: small dimensions, a square tile.
        other = self.axis(f"{dim}_other", axis.real)
        y = self.at(node.inputs[0], {**env, dim: Tile(other.index, (other,))})
        axes = order([*x.axes, *y.axes])
        i, j = Tile(axis.index, (axis,)).to(axes), Tile(other.index, (other,)).to(axes)
        real = "" if other.mask is None else f" & ({Tile(f'({other.mask})', (other,)).to(axes)})"
        if node.op == "maxpool":
            near = f"(tl.abs({i} - {j}) <= {node.attr['size'] // 2}){real}"
            text = f"tl.where({near}, {y.to(axes)}, {neutral(node.op)})"
            return self.bind(f"tl.max({text}, axis={axes.index(other)})", x.axes, inside)
        half = len(node.attr["weights"]) // 2
        terms = [
            f"tl.where(({j} - {i} == {n - half}){real}, {w!r} * {y.to(axes)}, 0.0)"
            for n, w in enumerate(node.attr["weights"])
        ]
        return self.bind(f"tl.sum({' + '.join(terms)}, axis={axes.index(other)})", x.axes, inside)

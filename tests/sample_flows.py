"""Flows that between them use most of the language. Shared by the tests of several layers."""

from __future__ import annotations

from vortex_core import library
from vortex_core.flow.trace import Traced
from vortex_core.sandbox.jail import run

HEADER = "from vortex_core import Knobs, ops, vFlow\n\nclass W(vFlow):\n"


def turned(channels: int) -> tuple[float, ...]:
    """Rotary frequencies of a head whose channels all rotate."""
    return tuple(1e4 ** (-2 * i / channels) for i in range(channels // 2))


SOURCES = {
    "carried": """
    knobs = Knobs(page_size=8, budget="32")
    def create_cache(self, page):
        return {"c": page.state(dim=page.head_dim, dtype="int4"), "r": page.state(carried=True, dtype="fp32", init=0.5)}
    def forward_cache(self, page):
        return {"c": page.k.mean("token")}
    def forward_indexer(self, q, cache):
        s = (q * cache["c"]).sum("dim").softmax("page").max("head")
        cache["r"] = 0.9 * cache["r"] + s
        return ops.topk(cache["r"] + s)
""",
    "dtypes_and_union": """
    knobs = Knobs(page_size=8, budget="48")
    def create_cache(self, page):
        return {"c": page.state(dim=page.head_dim, row=2, dtype="fp8_e4m3"),
                "b": page.state(dim=page.head_dim, dtype="bits"),
                "n": page.state(), "i8": page.state(dim="D/2", dtype="int8")}
    def forward_cache(self, page):
        return {"c": page.k.split("token", row=2).mean("token"), "b": page.k.mean("token"),
                "n": page.v.norm("dim").mean("token"), "i8": page.k.slice("dim", 0, "D/2").max("token")}
    def forward_indexer(self, q, cache):
        s = (q * cache["c"]).sum("dim").max("row", "head") * cache["n"]
        t = (q.sign() * cache["b"]).sum("dim").mean("head").conv([0.25, 0.5, 0.25]) + 0.1 * cache["n"]
        u = (q.slice("dim", 0, "D/2") * cache["i8"]).sum("dim").max("head")
        return ops.topk(s + 0.1 * t + u, fraction=0.5) | ops.topp(t.maxpool(3), 0.6)
""",
    "signs": """
    knobs = Knobs(page_size=8, budget="40")
    def create_cache(self, page):
        return {"z": page.state(bit=12, dtype="fp32"), "b": page.state(bit=12, row=page.size, dtype="bits")}
    def forward_cache(self, page):
        w = ops.signs(bit=12, dim="D")
        token = ops.dot(page.k, ops.signs(bit=12, dim="D", seed=3), "dim")
        return {"z": ops.dot(page.k.mean("token"), w, "dim"), "b": token.rename(token="row")}
    def forward_indexer(self, q, cache):
        z = ops.dot(q, ops.signs(bit=12, dim="D"), "dim")
        h = ops.dot(q, ops.signs(bit=12, dim="D", seed=3), "dim").sign()
        votes = (h * cache["b"]).sum("bit").max("row")
        return ops.topk(((z * cache["z"]).sum("bit") / 12 + 0.25 * votes).max("head"))
""",
    "joined": """
    knobs = Knobs(page_size=8, budget="40")
    def parts(self, x):
        return ops.concat([x.slice("dim", "3*D/4", "D"), x.slice("dim", 0, "D/4"), x.slice("dim", "D/4", "D/2")], "dim")
    def create_cache(self, page):
        return {"k": page.state(row=page.size // 2, dim="3*D/4", dtype="int8"), "m": page.state(dim="D*3/2")}
    def forward_cache(self, page):
        k = page.k.rename(token="row")
        part = self.parts(k).split("row", pair=2).max("pair")
        return {"k": part, "m": ops.concat(page.k.mean("token"), page.v.slice("dim", 0, "D/2").max("token"))}
    def forward_indexer(self, q, cache):
        s = (self.parts(q) * cache["k"]).sum("dim").max("row")
        t = (ops.concat([q, q.slice("dim", "D/2", "D") - 1.0]) * cache["m"]).sum("dim")
        u = ops.concat([cache["m"].slice("dim", 0, "D/2"), q.slice("dim", 0, "D/2")], dim="dim").max("dim")
        return ops.topk((s + 0.5 * t + u).max("head"))
""",
    "scales": """
    knobs = Knobs(page_size=8, budget="40")
    def create_cache(self, page):
        return {"t": page.state(dim=page.head_dim, row=page.size, dtype="int8"),
                "c": page.state(row=page.size, ch="D/2", dtype="int4"),
                "e": page.state(ch="D/2", row=page.size, dtype="int4"),
                "w": page.state(dim=page.head_dim, row=page.size, dtype="int4")}
    def forward_cache(self, page):
        k = page.k.rename(token="row")
        half = k.slice("dim", 0, "D/2").rename(dim="ch")
        return {"t": k, "c": half, "e": half, "w": k.cumsum("row")}
    def forward_indexer(self, q, cache):
        x = q.slice("dim", "D/2", "D").rename(dim="ch")
        s = (q * cache["t"]).sum("dim").max("row") + (x * cache["c"]).sum("ch").max("row")
        t = (x * cache["e"]).sum("ch").max("row") + (q * cache["w"]).sum("dim").max("row")
        return ops.topk((s + 0.5 * t).max("head"))
""",
    "few_bits": """
    knobs = Knobs(page_size=8, budget="40")
    def create_cache(self, page):
        return {"a": page.state(row=page.size, dim=page.head_dim, dtype="int2"),
                "b": page.state(ch="D/2", row=page.size, dtype="int3"),
                "m": page.state(dim=page.head_dim, dtype="int3")}
    def forward_cache(self, page):
        k = page.k.rename(token="row")
        half = page.v.rename(token="row").slice("dim", 0, "D/2").rename(dim="ch")
        return {"a": k - k.mean("row").to("int3", "dim"), "b": half, "m": k.mean("row")}
    def forward_indexer(self, q, cache):
        s = (q * cache["a"]).sum("dim").max("row") + (q * cache["m"]).sum("dim")
        return ops.topk(s.max("head") + cache["b"].abs().max("ch", "row"))
""",
    "rotary": """
    knobs = Knobs(page_size=8, budget="40")
    def create_cache(self, page):
        return {"slow": page.state(row=page.size, dim=page.head_dim, dtype="int4"),
                "mean": page.state(dim=page.head_dim)}
    def forward_cache(self, page):
        k = page.k.rename(token="row")
        slow = ops.where(ops.rotary() < 0.1, k, 0.0)
        return {"slow": slow, "mean": k.mean("row") * (-4 * ops.rotary()).exp()}
    def forward_indexer(self, q, cache):
        fast = ops.where(ops.rotary() >= 0.1, q, 0.0)
        score = (q * cache["slow"]).sum("dim").max("row") + (fast * cache["mean"]).sum("dim")
        return ops.topk(score.max("head"))
""",
    "per_query_head": """
    knobs = Knobs(page_size=8, budget="40")
    def create_cache(self, page):
        return {"c": page.state(dim=page.head_dim)}
    def forward_cache(self, page):
        return {"c": page.k.mean("token")}
    def forward_indexer(self, q, cache):
        s = (q * cache["c"]).sum("dim")
        return ops.topk(s - 2 * s.mean("page") + ops.where(s > 0, s, 0.5 * s))
""",
    "mass": """
    knobs = Knobs(page_size=8, budget="40")
    def create_cache(self, page):
        return {"a": page.state(carried=True, dtype="fp32")}
    def forward_indexer(self, q, cache):
        cache["a"] = cache["a"] + ops.mass().sum("head")
        return ops.topk(cache["a"] + 0.001 * ops.position())
""",
    "dense_mass": """
    knobs = Knobs(page_size=8, budget="40", dense_layers=(0,))
    def create_cache(self, page):
        return {"c": page.state(dim=page.head_dim)}
    def forward_cache(self, page):
        return {"c": page.k.mean("token")}
    def forward_indexer(self, q, cache):
        near = ops.dense_mass().maxpool(3).sum("head")
        return ops.topk((q * cache["c"]).sum("dim").softmax("page").max("head") + near)
""",
    "dense_mass_alone": """
    knobs = Knobs(page_size=8, budget="40", dense_layers=(0,))
    def forward_indexer(self, q, cache):
        return ops.topk(ops.dense_mass())
""",
    "shared": """
    knobs = Knobs(page_size=8, budget="40")
    def create_cache(self, page):
        return {"c": page.state(dim=page.head_dim, dtype="fp16"), "d": page.state(dtype="fp32")}
    def forward_cache(self, page):
        return {"c": page.k.max("token") - page.k.min("token"), "d": page.k.norm("dim").max("token")}
    def forward_indexer(self, q, cache):
        mask = q.abs().largest(4, "dim")
        s = ops.where(mask, q, 0.0).dot(cache["c"], "dim").mean("head") + cache["d"].cumsum("page") / ops.pages()
        return ops.topk((0.02 * s).tanh(), share="max")
""",
    "three_streams": """
    knobs = Knobs(page_size=8, budget="24", keep_first=0, keep_last=1)
    def create_cache(self, page):
        return {"c": page.state(dim=page.head_dim), "d": page.state(dtype="fp32")}
    def forward_cache(self, page):
        return {"c": page.k.mean("token"), "d": page.k.norm("dim").max("token")}
    def forward_indexer(self, q, cache):
        s = (q * cache["c"]).sum("dim").max("head")
        recent = ops.threshold(ops.position() / ops.pages() + 0 * s, 0.8)
        return ops.topp(s, 0.7, fraction=0.55) | ops.topk(cache["d"] + 0 * s, fraction=0.1) | recent
""",
    "threshold": """
    knobs = Knobs(page_size=8, budget="40")
    def create_cache(self, page):
        return {"c": page.state(dim=page.head_dim)}
    def forward_cache(self, page):
        return {"c": page.k.mean("token")}
    def forward_indexer(self, q, cache):
        s = (q * cache["c"]).sum("dim").normalize("page").max("head")
        return ops.threshold(s, 0.3)
""",
}


def load(name: str) -> Traced:
    """One flow of `SOURCES`, or of the library."""
    return run(HEADER + SOURCES[name], f"{name}.py") if name in SOURCES else library.load(name)


def names() -> list[str]:
    """All of them."""
    return [*library.names(), *SOURCES]

from vortex_core import ops, register, vFlow


@register("even_odd_tokens")
class EvenOddTokens(vFlow):
    """Differences of neighbouring tokens tell how far keys move within a page: mean plus mean drift."""

    def create_cache(self, page):
        return {"mean": page.state(dim=page.head_dim), "drift": page.state(dim=page.head_dim, dtype="int8")}

    def forward_cache(self, page):
        a = page.k.slice("token", 0, "S-1")
        b = page.k.slice("token", 1, "S")
        return {"mean": page.k.mean("token"), "drift": (b - a).abs().sum("token") / 2}

    def forward_indexer(self, q, cache):
        s = q.dot(cache["mean"], "dim") + 0.25 * q.abs().dot(cache["drift"], "dim")
        return ops.topk(s.max("head"))

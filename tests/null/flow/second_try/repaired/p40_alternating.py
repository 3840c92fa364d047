from vortex_core import ops, register, vFlow


@register("even_odd_tokens")
class EvenOddTokens(vFlow):
    """Differences of neighbouring tokens tell how far keys move within a page: mean plus mean drift."""

    def create_cache(self, page):
        return {"mean": page.state(dim=page.head_dim), "drift": page.state(dim=page.head_dim, dtype="int8")}

    def forward_cache(self, page):
        k = page.k
        follows = ops.arange(token="S") < page.size - 1  # the last token has no right neighbour
        step = (k.conv([0, 0, 1], "token") - k).abs() * follows
        return {"mean": page.k.mean("token"), "drift": step.sum("token") / 2}

    def forward_indexer(self, q, cache):
        s = q.dot(cache["mean"], "dim") + 0.25 * q.abs().dot(cache["drift"], "dim")
        return ops.topk(s.max("head"))

from vortex_core import ops, register, vFlow


@register("half_token_subsample")
class HalfTokenSubsample(vFlow):
    """The eight keys of largest norm in a page, in four bits; the rest by the mean."""

    def create_cache(self, page):
        return {
            "loud": page.state(dim=page.head_dim, dtype="bf16"),
            "mean": page.state(dim=page.head_dim, dtype="bf16"),
        }

    def forward_cache(self, page):
        loud = page.k.norm("dim").largest(8, "token")
        n = loud.sum("token")
        return {
            "loud": (page.k * loud).sum("token") / n,
            "mean": (page.k * ~loud).sum("token") / ops.maximum(page.size - n, 1),
        }

    def forward_indexer(self, q, cache):
        s = ops.maximum(q.dot(cache["loud"], "dim"), q.dot(cache["mean"], "dim"))
        return ops.topk(s.max("head"))

from vortex_core import ops, register, vFlow


@register("ball_bound")
class BallBound(vFlow):
    """A ball around the mean key: q.c + |q| r bounds every key of the page (ArkVale style)."""

    def create_cache(self, page):
        return {"c": page.state(dim=page.head_dim, dtype="int8"), "r": page.state(dtype="bf16")}

    def forward_cache(self, page):
        c = page.k.mean("token")
        r = ((page.k - c) ** 2).sum("dim").sqrt().max("token")
        return {"c": c, "r": r}

    def forward_indexer(self, q, cache):
        bound = (q * cache["c"]).sum("dim") + 0.5 * q.norm("dim") * cache["r"]
        return ops.topk((bound * ops.size("D") ** -0.5).max("head"))

from vortex_core import ops, register, vFlow


@register("center_radius")
class CenterRadius(vFlow):
    """Ball bound: q.c + |q| r with the largest distance of a key to its centroid (ArkVale)."""

    def create_cache(self, page):
        return {"c": page.state(dim=page.head_dim), "r": page.state(dtype="fp16")}

    def forward_cache(self, page):
        c = page.k.mean("token")
        r = (page.k - c).norm("dim").max("token")
        return {"c": c, "r": r}

    def forward_indexer(self, q, cache):
        bound = (q * cache["c"]).sum("dim") + q.norm("dim") * cache["r"]
        return ops.topk(bound.max("head"))

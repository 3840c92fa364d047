from vortex_core import ops, register, vFlow


@register("window_union")
class WindowUnion(vFlow):
    """Long-range centroid pages and the local window together, masked by distance."""

    def create_cache(self, page):
        return {"mean": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"mean": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        score = (q * cache["mean"]).sum("dim").max("head")
        distance = ops.pages() - ops.position()
        near = distance <= 8
        far_score = ops.where(near, -1e9, score)
        local = ops.topk(ops.where(near, 1.0 / distance, -1e9), fraction=0.25)
        return local | ops.topk(far_score, fraction=0.75)

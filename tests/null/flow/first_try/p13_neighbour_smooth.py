from vortex_core import ops, register, vFlow


@register("neighbour_smooth")
class NeighbourSmooth(vFlow):
    """SnapKV-like pooling: a page near a good page is probably good."""

    def create_cache(self, page):
        return {"kmax": page.state(dim=page.head_dim), "kmin": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"kmax": page.k.max("token"), "kmin": page.k.min("token")}

    def forward_indexer(self, q, cache):
        bound = ops.where(q > 0, q * cache["kmax"], q * cache["kmin"]).sum("dim")
        score = bound.max("head")
        smooth = score.conv([0.25, 0.5, 0.25], "page")
        pooled = score.maxpool(3, "page")
        return ops.topk(0.7 * smooth + 0.3 * pooled)

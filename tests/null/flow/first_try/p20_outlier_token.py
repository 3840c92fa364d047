from vortex_core import ops, register, vFlow


@register("outlier_token")
class OutlierToken(vFlow):
    """Centroid plus the one key of the page that is farthest from it."""

    def create_cache(self, page):
        return {
            "mean": page.state(dim=page.head_dim),
            "far": page.state(dim=page.head_dim),
        }

    def forward_cache(self, page):
        mean = page.k.mean("token")
        dist = (page.k - mean).square().sum("dim")
        pick = dist.largest(1, "token")
        far = ops.where(pick, page.k, 0.0).sum("token")
        return {"mean": mean, "far": far}

    def forward_indexer(self, q, cache):
        a = (q * cache["mean"]).sum("dim")
        b = (q * cache["far"]).sum("dim")
        return ops.topk(ops.maximum(a, b).amax("head"))

from vortex_core import ops, register, vFlow


@register("mean_plus_outlier")
class MeanPlusOutlier(vFlow):
    """The mean key and the key farthest from it: a page is rarely more than a crowd and one stranger."""

    def create_cache(self, page):
        return {
            "mean": page.state(dim=page.head_dim, dtype="int8"),
            "far": page.state(dim=page.head_dim, dtype="int8"),
        }

    def forward_cache(self, page):
        mean = page.k.mean("token")
        dist = (page.k - mean).norm("dim")
        pick = dist.largest(1, "token")
        far = ops.where(pick, page.k, 0.0).sum("token")
        return {"mean": mean, "far": far}

    def forward_indexer(self, q, cache):
        a = q.dot(cache["mean"], "dim")
        b = q.dot(cache["far"], "dim")
        return ops.topk(ops.maximum(a, b).max("head"))

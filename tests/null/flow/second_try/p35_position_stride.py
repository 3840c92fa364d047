from vortex_core import ops, register, vFlow


@register("strided_and_scored")
class StridedAndScored(vFlow):
    """Every eighth page for coverage, united with the best by centroid."""

    def create_cache(self, page):
        return {"c": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"c": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        pos = ops.position()
        stride = pos - 8 * (pos / 8).floor()
        on = ops.where(stride == 0, 1.0 + pos / ops.pages(), -1.0)
        s = q.dot(cache["c"], "dim").mean("head")
        return ops.topk(s, fraction=0.75) | ops.topk(on, fraction=0.25)

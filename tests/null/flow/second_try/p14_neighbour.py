from vortex_core import ops, register, vFlow


@register("smooth_neighbours")
class SmoothNeighbours(vFlow):
    """Context around a hit matters: page scores are smoothed along the sequence before selecting."""

    def create_cache(self, page):
        return {"c": page.state(row=2, dim=page.head_dim)}

    def forward_cache(self, page):
        return {"c": page.k.split("token", row=2).mean("token")}

    def forward_indexer(self, q, cache):
        s = q.dot(cache["c"], "dim").max("row").softmax("page").mean("head")
        return ops.topk(s + s.conv([0.2, 0.6, 0.2], "page") + 0.3 * s.maxpool(3, "page"))

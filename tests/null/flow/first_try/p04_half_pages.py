from vortex_core import ops, register, vFlow


@register("half_pages")
class HalfPages(vFlow):
    """Two sub-page centroids, the better one counts."""

    def create_cache(self, page):
        return {"c": page.state(half=2, dim=page.head_dim, dtype="int8")}

    def forward_cache(self, page):
        # consecutive halves of a page
        halves = page.k.split("token", half=2)
        return {"c": halves.mean("token")}

    def forward_indexer(self, q, cache):
        scores = (q * cache["c"]).sum("dim")
        return ops.topk(scores.max("half").max("head"))

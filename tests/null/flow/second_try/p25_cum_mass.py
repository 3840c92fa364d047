from vortex_core import ops, register, vFlow


@register("heavy_hitters")
class HeavyHitters(vFlow):
    """H2O (arXiv 2306.14048) by page: accumulated attention, decayed, decides alone."""

    def create_cache(self, page):
        return {"total": page.state(carried=True, init=1.0)}

    def forward_cache(self, page):
        return {}

    def forward_indexer(self, q, cache):
        cache["total"] = cache["total"] * 0.98 + ops.mass().sum("head")
        return ops.topk(cache["total"])

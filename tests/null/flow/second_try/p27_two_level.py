from vortex_core import ops, register, vFlow


@register("coarse_to_fine")
class CoarseToFine(vFlow):
    """A coarse score over windows of eight pages gates the fine score of each page."""

    def create_cache(self, page):
        return {"c": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"c": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        fine = q.dot(cache["c"], "dim").max("head")
        coarse = fine.conv([1 / 9] * 9, "page")
        return ops.topk(0.7 * fine + 0.3 * coarse.maxpool(5, "page"))

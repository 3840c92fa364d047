from vortex_core import Knobs, ops, register, vFlow


@register("lserve_centroid")
class LServeCentroid(vFlow):
    """Block top-k at sub-page resolution: the best of four sub-page means (LServe's hierarchy, arXiv
    2502.14866, with centroids, as bundled with vortex_torch, arXiv 2606.06453). On an MLA model this is its
    lserve_centroid_mla.

    score(page) = max_row mean_h q_h . mean_{t in row} k_t
    """

    knobs = Knobs(page_size=64, budget="max(1024, length / 16)")

    def create_cache(self, page):
        return {"centroid": page.state(row=4, dim=page.head_dim)}

    def forward_cache(self, page):
        return {"centroid": page.k.split("token", row=4).mean("token")}

    def forward_indexer(self, q, cache):
        return ops.topk((q.mean("head") * cache["centroid"]).sum("dim").max("row"))
